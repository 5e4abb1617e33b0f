"""Payment channels: signed vouchers, atomic metering in Redis, settlement on a ledger.

Knows no web framework, no Ray and no torch. The rooms, from the top floor to the ground: evm, settlement; redis_store,
payer, ledger, journal; metering, receipts; protocol, sql; errors. A room imports only rooms on floors below it.
`docs/one-voucher.md` follows one voucher downward.
"""
