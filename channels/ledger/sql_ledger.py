"""Keeps channels in SQL books as x402's settlement contract keeps them on a chain.

Checks the same signatures as the contract, under a chain id drawn when the ledger is made, so that no signature is
good on another ledger. Each change is one transaction of the books whose memo holds the channel after it: `verify`
recomputes the whole state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy.exc import SQLAlchemyError

from channels.errors import LedgerError
from channels.ledger import accounts, channel_rows
from channels.ledger.books import MINT, BrokenBooks, Entry, balance, find, verify
from channels.ledger.ledger import Claimed, ClaimRow, Ledger, LedgerChannel, LedgerUpdate
from channels.ledger.rules import check_config, check_deposit, claimable, refused
from channels.ledger.sql_base import find_same
from channels.ledger.sql_payouts import SqlPayouts
from channels.ledger.sql_withdrawals import SqlWithdrawals
from channels.metering import AMOUNT_LIMIT
from channels.protocol import (
    ChannelConfig,
    Deposit,
    Json,
    channel_id,
    claim_digest,
    deposit_digest,
    deposit_nonce,
    signed_by,
)


class SqlLedger(SqlPayouts, SqlWithdrawals):
    """The embedded ledger."""

    def wallet(self, address: str) -> int:
        """The amount that an address holds outside channels."""
        with self.database.read() as conn:
            return balance(conn, accounts.wallet(address))

    def channel(self, channel_id: str) -> LedgerChannel | None:
        """A channel now, or None if nothing was ever deposited."""
        with self.database.read() as conn:
            return channel_rows.load(conn, channel_id)

    def changed(self) -> list[LedgerChannel]:
        """Always empty: only the treasury writes to this ledger."""
        return []

    def fund(self, address: str, amount: int) -> str:
        """Credits a wallet: embedded ledgers only, where the operator sells credit."""
        with self.database.write() as conn:
            if amount <= 0 or balance(conn, accounts.wallet(address)) + amount >= AMOUNT_LIMIT:
                raise LedgerError("amount_invalid", "a wallet is funded with more than 0 and holds less than 2^53")
            return self._post(conn, "fund", None, {}, accounts.moves(MINT, accounts.wallet(address), amount))

    def deposit(self, config: ChannelConfig, deposit: Deposit) -> LedgerUpdate:
        """Moves an authorized amount from the payer's wallet into the channel, once per authorization."""
        identity = channel_id(self._terms.chain_id, config)
        nonce = deposit_nonce(identity, deposit.salt)
        window = deposit.valid_after, deposit.valid_before
        check_config(config, self._terms)
        digest = deposit_digest(self._token, config.payer, deposit.amount, *window, nonce)
        if not signed_by(digest, deposit.signature, config.payer):
            raise refused("receive_authorization_signature", "the deposit is not signed by the payer for this ledger")
        reference = f"deposit:{config.payer}:0x{nonce.hex()}"
        with self.database.write() as conn:
            channel = channel_rows.load(conn, identity) or LedgerChannel(identity, config)
            # Before the window is checked: a retry after a lost reply may come later, and must find its deposit.
            done = find_same(conn, reference, digest)
            if done is not None:
                return LedgerUpdate(done, channel)
            check_deposit(channel, deposit, balance(conn, accounts.wallet(config.payer)), self._clock())
            after = replace(channel, balance=channel.balance + deposit.amount, version=channel.version + 1)
            memo = {"digest": digest.hex(), "config": config.to_json(), "authorization": deposit.to_json()}
            moves = accounts.moves(accounts.wallet(config.payer), accounts.channel(identity), deposit.amount)
            return LedgerUpdate(self._post(conn, "deposit", reference, memo, moves, after), after)

    def simulate_claim(self, rows: Sequence[ClaimRow]) -> None:
        """Raises what `claim` would raise for these rows, and moves nothing."""
        with self.database.read() as conn:
            claimable(rows, lambda config: self._known(conn, config), self._verifier)

    def claim(self, rows: Sequence[ClaimRow], authorizer_signature: bytes) -> Claimed:
        """Moves what vouchers allow from channels to their receivers: all rows or none."""
        batch = [(row.voucher.channel_id, row.voucher.max_claimable, row.total_claimed) for row in rows]
        digest = claim_digest(self._terms.chain_id, batch)
        for authorizer in {row.config.receiver_authorizer for row in rows}:
            if not signed_by(digest, authorizer_signature, authorizer):
                raise refused("authorizer_address_mismatch", "the claim is not signed by the receiver's authorizer")
        reference = f"claim:0x{digest.hex()}"
        with self.database.write() as conn:
            after = claimable(rows, lambda config: self._known(conn, config), self._verifier)
            moved = tuple(amount for _, amount in after)
            if not any(moved):
                done = find(conn, reference)
                return Claimed(done.hash if done else "", moved)
            proofs = [[*map(str, batch[place]), row.voucher.signature.hex()] for place, row in enumerate(rows)]
            claimed = [(channel, amount) for channel, amount in after if amount]
            moves: list[Entry] = []
            for channel, amount in claimed:
                target = accounts.receiver(channel.config.receiver)
                moves += accounts.moves(accounts.channel(channel.channel_id), target, amount)
            changed = [channel for channel, _ in claimed]
            return Claimed(self._post(conn, "claim", reference, {"rows": proofs}, moves, *changed), moved)

    def verify(self) -> tuple[int, str]:
        """Recomputes every hash, balance and channel; returns the number of transactions and the last hash.

        Raises:
            BrokenBooks: names the first transaction, account or channel that differs.
        """
        expected: dict[str, Json] = {}
        number, head = 0, ""
        try:
            with self.database.read() as conn:
                for posted in verify(conn):
                    number, head = posted.number, posted.hash
                    for state in posted.memo.get("channels", ()):
                        expected[state["channel_id"]] = state
                channel_rows.check_rows(conn, expected, self._terms.chain_id)
        except SQLAlchemyError as error:
            raise BrokenBooks(f"what follows transaction {number} cannot be read") from error
        return number, head


def _fits(ledger: SqlLedger) -> Ledger:
    return ledger
