"""Gives money back from channels of the embedded ledger: refunds and withdrawals."""

from __future__ import annotations

from sqlalchemy import Connection

from channels.ledger import accounts, channel_rows
from channels.ledger.ledger import LedgerChannel, LedgerUpdate
from channels.ledger.rules import check_payer, refunded, withdrawing, withdrawn
from channels.ledger.sql_base import SqlBase, find_same
from channels.protocol import ChannelConfig, channel_id, finalize_digest, initiate_digest


class SqlWithdrawals(SqlBase):
    """Refunds that the receiver signs, and withdrawals that the payer signs."""

    def withdrawing(self) -> list[LedgerChannel]:
        """Channels whose payer is withdrawing."""
        with self.database.read() as conn:
            return channel_rows.withdrawing(conn)

    def refund(self, config: ChannelConfig, amount: int, nonce: int, signature: bytes) -> LedgerUpdate:
        """Gives unclaimed money back to the payer's wallet, signed by the receiver's authorizer, once per nonce."""
        with self.database.write() as conn:
            channel = self._known(conn, config)
            after = refunded(channel, amount, nonce, signature, self._terms.chain_id)
            moves = accounts.moves(accounts.channel(channel.channel_id), accounts.wallet(config.payer), amount)
            reference = f"refund:{channel.channel_id}:{nonce}"
            return LedgerUpdate(self._post(conn, "refund", reference, {}, moves, after), after)

    def initiate_withdraw(self, config: ChannelConfig, amount: int, nonce: int, signature: bytes) -> LedgerUpdate:
        """Starts the payer's withdrawal: its delay is the receiver's time to claim."""
        digest = initiate_digest(self._terms.chain_id, channel_id(self._terms.chain_id, config), amount, nonce)
        with self.database.write() as conn:
            channel, reference, done = self._requested(conn, config, nonce, digest, signature)
            if done is not None:
                return LedgerUpdate(done, channel)
            after = withdrawing(channel, amount, self._clock())
            return LedgerUpdate(self._post(conn, "initiate", reference, {"digest": digest.hex()}, (), after), after)

    def finalize_withdraw(self, config: ChannelConfig, nonce: int, signature: bytes) -> LedgerUpdate:
        """Gives the payer what is left of a withdrawal whose delay has passed."""
        digest = finalize_digest(self._terms.chain_id, channel_id(self._terms.chain_id, config), nonce)
        with self.database.write() as conn:
            channel, reference, done = self._requested(conn, config, nonce, digest, signature)
            if done is not None:
                return LedgerUpdate(done, channel)
            after = withdrawn(channel, self._clock())
            amount = channel.balance - after.balance
            source, target = accounts.channel(channel.channel_id), accounts.wallet(config.payer)
            moves = accounts.moves(source, target, amount) if amount else ()
            return LedgerUpdate(self._post(conn, "finalize", reference, {"digest": digest.hex()}, moves, after), after)

    def _requested(
        self, conn: Connection, config: ChannelConfig, nonce: int, digest: bytes, signature: bytes
    ) -> tuple[LedgerChannel, str, str | None]:
        channel = self._known(conn, config)
        check_payer(config, digest, signature)
        reference = f"request:{config.payer}:{nonce}"
        return channel, reference, find_same(conn, reference, digest)
