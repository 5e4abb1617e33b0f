"""Payment channels: signed vouchers, atomic metering in Redis, settlement on a ledger.

Knows no web framework, no Ray and no torch. Read `channels/channel.py` first (the rules), then one voucher downward:
`voucher.py` → `channel.py` → `store_redis.py` and `scripts/*.lua` → `journal.py` → `settler.py` → `ledger.py`.
"""
