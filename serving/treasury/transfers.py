"""Moves payers' money into channels and back: deposits, refunds, withdrawals, and refunds that a crash interrupted.

Each move is made on the ledger and then mirrored into the store, in an order in which a crash at any point loses
nothing. Every step carries the treasury's fencing token.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial

from channels.errors import X402, LedgerError, NotReady
from channels.journal import Intent, Journal, Refunds
from channels.ledger import Ledger, LedgerChannel, LedgerUpdate, check_payer
from channels.metering import LedgerSnapshot, Store, Transfer
from channels.protocol import Payment, Signer, channel_id, finalize_digest, refund_digest
from channels.settlement import SqlThread

log = logging.getLogger("leben.treasury")


class ChannelTransfers:
    """Moves payers' money.

    Args:
        store: mirrors the ledger's channels.
        ledger: holds the money.
        journal: stores channels and refunds under way.
        authorizer: the receiver's key that signs refunds.
        sql: runs a step on the thread for SQL.
        retired: earlier authorizers, whose channels still hold money.
    """

    def __init__(
        self,
        store: Store,
        ledger: Ledger,
        journal: Journal,
        authorizer: Signer,
        sql: SqlThread,
        retired: Sequence[Signer] = (),
    ) -> None:
        self._store, self._ledger, self._journal = store, ledger, journal
        self._authorizer, self._sql = authorizer, sql
        self._authorizers: dict[str, Signer] = {str(signer.address): signer for signer in (*retired, authorizer)}
        self.refunds = Refunds(journal)
        self._unmirrored: set[str] = set()
        self._withdrawing: dict[str, tuple[int, int]] = {}
        """Version and token under which each pending withdrawal was mirrored: once is enough."""

    async def deposit(self, payment: Payment, token: int) -> Transfer:
        """Settles a payment's deposit; idempotent by its authorization."""
        authorized = payment.deposit
        if authorized is None:
            raise LedgerError("deposit_payload", "the payment carries no deposit")
        channel = channel_id(self._ledger.terms.chain_id, payment.config)

        def settle() -> LedgerUpdate:
            # Stored first: a channel that Redis loses is rebuilt from this row, never from a client's claim.
            self._journal.remember_channel(payment.config, channel, token)
            try:
                return self._ledger.deposit(payment.config, authorized)
            except LedgerError:
                # Keys cost nothing: without this, refused deposits would fill the books with channels.
                if self._ledger.channel(channel) is None:
                    self._journal.forget_channel(channel, token)
                raise

        settled = await self._sql(settle)
        await self._mirrored(settled, token)
        return Transfer(settled.transaction, authorized.amount)

    async def refund(self, payment: Payment, token: int) -> Transfer:
        """Gives unspent money back; the voucher's ceiling is what has been charged, and everything is drained."""
        name, charged = payment.voucher.channel_id, payment.voucher.max_claimable
        channel = await self._sql(partial(self._ledger.channel, name))
        if channel is None:
            raise LedgerError("channel_not_found", "the channel is not on the ledger")
        if channel.config.receiver_authorizer not in self._authorizers:
            # Refused before anything is reserved: a refund that nobody can sign would keep its amount for ever.
            message = (
                "the mesh has dropped the key that signs refunds of this channel: withdraw instead, which needs no key "
                "but the payer's (initiate, wait for withdrawDelay, finalize)"
            )
            raise LedgerError(X402 + "receiver_authorizer_mismatch", message)
        left = channel.balance - charged
        amount = left if payment.refund_amount is None else payment.refund_amount
        if left <= 0:
            raise LedgerError(X402 + "refund_no_balance", "everything in the channel is charged")
        if not 0 < amount <= left:
            message = "payload.amount is more than 0 and at most what is left in the channel"
            raise LedgerError(X402 + "refund_amount_invalid", message)
        intent = Intent(name, amount, channel.refund_nonce)
        intent = await self._sql(partial(self.refunds.begin, intent, token))
        if await self._store.reserve_refund(name, intent.amount, intent.nonce, charged, token) != "ok":
            await self._sql(lambda: self.refunds.end(intent, token))
            raise NotReady("not_ready", "the channel is in use: ask for the refund again")
        return await self._execute(intent, token)

    async def initiate(self, name: str, amount: int, nonce: int, signature: bytes, token: int) -> LedgerUpdate:
        """Starts a withdrawal that its payer signed; the store takes no call on the channel from now on."""
        config = (await self._channel(name)).config
        done = await self._sql(partial(self._ledger.initiate_withdraw, config, amount, nonce, signature))
        return await self._mirrored(done, token)

    async def finalize(self, name: str, nonce: int, signature: bytes, token: int) -> LedgerUpdate:
        """Gives back what is left of a withdrawal whose delay has passed; what is charged has been claimed."""
        config = (await self._channel(name)).config
        done = await self._sql(partial(self._ledger.finalize_withdraw, config, nonce, signature))
        return await self._mirrored(done, token)

    async def check_finalize(self, name: str, nonce: int, signature: bytes) -> None:
        """Refuses a request that is not the payer's, before any work is done for it."""
        config = (await self._channel(name)).config
        check_payer(config, finalize_digest(self._ledger.terms.chain_id, name, nonce), signature)

    async def resume(self, token: int) -> None:
        """Finishes refunds that a crash interrupted; reserves their amounts before any call may use them."""
        for intent in await self._sql(self.refunds.pending):
            try:
                stored = await self._sql(partial(self._journal.channel, intent.channel_id))
                charged = stored.charged if stored else 0
                outcome = await self._store.reserve_refund(
                    intent.channel_id, intent.amount, intent.nonce, charged, token
                )
                channel = await self._sql(partial(self._ledger.channel, intent.channel_id))
                passed = channel is not None and channel.refund_nonce > intent.nonce
                if outcome != "ok" and not passed:
                    raise LedgerError("refund_nonce", f"the store says {outcome}")
                await self._execute(intent, token)
            except LedgerError as error:
                log.error("ALARM: the refund of channel %s cannot be finished: %s", intent.channel_id, error.code)

    async def watch(self, token: int) -> None:
        """Mirrors withdrawals, channels changed by others, and changes whose mirror failed."""
        self._unmirrored |= {channel.channel_id for channel in await self._sql(self._ledger.changed)}
        for name in list(self._unmirrored):
            await self.mirror(name, token)
            self._unmirrored.discard(name)
        mirrored, self._withdrawing = self._withdrawing, {}
        for channel in await self._sql(self._ledger.withdrawing):
            if mirrored.get(channel.channel_id) != (channel.version, token):
                await self._store.mirror(mirror_of(channel), token)
            self._withdrawing[channel.channel_id] = channel.version, token

    async def mirror(self, name: str, token: int) -> None:
        """Mirrors the ledger's state of a channel into the store."""
        channel = await self._sql(partial(self._ledger.channel, name))
        if channel is not None:
            await self._store.mirror(mirror_of(channel), token)

    async def _channel(self, name: str) -> LedgerChannel:
        channel = await self._sql(partial(self._ledger.channel, name))
        if channel is None:
            raise LedgerError(X402 + "channel_not_found", "the channel is not on the ledger")
        return channel

    async def _mirrored(self, done: LedgerUpdate, token: int) -> LedgerUpdate:
        """Mirrors a change into the store; the keeper repeats it where the store cannot be reached."""
        try:
            await self._store.mirror(mirror_of(done.channel), token)
        except NotReady:
            self._unmirrored.add(done.channel.channel_id)
        return done

    async def _execute(self, intent: Intent, token: int) -> Transfer:
        """Makes a refund whose amount is reserved; after a crash it may be repeated and moves nothing twice."""
        channel = await self._sql(partial(self._ledger.channel, intent.channel_id))
        if channel is None:
            raise LedgerError("channel_not_found", "the channel is not on the ledger")
        transaction = ""
        if channel.refund_nonce == intent.nonce:
            config, chain_id = channel.config, self._ledger.terms.chain_id
            digest = refund_digest(chain_id, intent.channel_id, intent.nonce, intent.amount)
            signature = self._authorizers.get(config.receiver_authorizer, self._authorizer).sign(digest)
            done = await self._sql(lambda: self._ledger.refund(config, intent.amount, intent.nonce, signature))
            transaction, channel = done.transaction, done.channel
        await self._store.mirror(mirror_of(channel), token)
        await self._sql(lambda: self.refunds.end(intent, token))
        return Transfer(transaction, intent.amount)


def mirror_of(channel: LedgerChannel) -> LedgerSnapshot:
    """The store's copy of a ledger's channel."""
    pending = channel.withdraw_amount > 0
    amounts = (channel.balance, channel.total_claimed, pending, channel.refund_nonce, channel.version)
    return LedgerSnapshot(channel.channel_id, *amounts)
