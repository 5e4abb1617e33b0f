"""Runs the treasury on Ray Serve: it alone holds the ledger, the receiver's keys and the settler.

The deployment has no HTTP route; replicas and the control application reach it by handle. `keeper.py` keeps money in
step, `reads.py` reads accounts beside it. Refusals are raised as `ChannelError`s, which keep their code on the way.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from ray import serve

from channels.errors import ChannelError, LedgerUnavailable, NotReady
from channels.journal import LEASE_S, Journal, StaleToken, Statement
from channels.ledger import LedgerChannel, LedgerUpdate
from channels.metering import ChargeRecord, Transfer
from channels.protocol import Payment, Signer
from channels.redis_store import RedisStore
from channels.settlement import Epochs, Piece, SettlePolicy, Settler
from channels.sql import DatabaseUnavailable
from serving.cluster import HEAD_NODE
from serving.cluster.refusal_log import quiet_refusals
from serving.treasury.integrity_check import IntegrityCheck
from serving.treasury.keeper import Keeper
from serving.treasury.ledgers import opened
from serving.treasury.metrics import TreasuryMetrics
from serving.treasury.reads import MAX_WAITING_READS, AccountReads
from serving.treasury.spec import TreasurySpec
from serving.treasury.transfers import ChannelTransfers

log = logging.getLogger("leben.treasury")
MAX_ONGOING = 1_000
"""Serve's own limit would make deposits queue behind reads; `MAX_WAITING_READS` refuses those long before."""
Json = dict[str, Any]
T = TypeVar("T")


@serve.deployment(name="Treasury", ray_actor_options=HEAD_NODE, max_ongoing_requests=MAX_ONGOING)
class Treasury:
    """The deployment; one replica.

    Args:
        spec: what it starts with.
        clock: seconds since 1970, for the ledger and the settler.
        retry_pause_s: see `Keeper`.
        renew_s: see `Keeper`.
        max_waiting_reads: see `AccountReads`.
    """

    def __init__(
        self,
        spec: TreasurySpec,
        *,
        clock: Callable[[], float] = time.time,
        retry_pause_s: float = 1.0,
        renew_s: float = LEASE_S / 3,
        max_waiting_reads: int = MAX_WAITING_READS,
    ) -> None:
        quiet_refusals()
        url = spec.ledger_url.get_secret_value()
        authorizer = Signer(bytes.fromhex(spec.authorizer_key.get_secret_value()))
        retired = [Signer(bytes.fromhex(key.get_secret_value())) for key in spec.retired_keys]
        policy = SettlePolicy(spec.settle_interval_s, spec.settle_amount, spec.exposure_cap // 2)
        # Money moves one step at a time: SQL that writes runs on this one thread, never on the event loop.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ledger")
        self.store = RedisStore(spec.store_url.get_secret_value(), spec.exposure_cap, mesh=spec.mesh)
        self.journal = Journal.open(url)
        self.ledger = opened(url, self.journal, spec.chain, clock=clock)
        reading_journal = Journal.open(url, read_only=True)
        self._reading_ledger = opened(url, reading_journal, spec.chain, clock=clock, read_only=True)
        self.settler = Settler(self.journal, self.ledger, authorizer, policy, clock, retired)
        self.transfers = ChannelTransfers(self.store, self.ledger, self.journal, authorizer, self.sql, retired)
        self.reads = AccountReads(
            journal=reading_journal,
            ledger=self._reading_ledger,
            signer=Signer(bytes.fromhex(spec.receipt_key.get_secret_value())),
            drained=lambda: self.keeper.drained(),
            store_levels=self._levels_computed,
            max_waiting=max_waiting_reads,
        )
        self.keeper = Keeper(
            store=self.store,
            journal=self.journal,
            settler=self.settler,
            transfers=self.transfers,
            check=IntegrityCheck(spec.ledger_url, ledger=spec.chain is None),
            metrics=TreasuryMetrics(spec.exposure_cap),
            figures=self.reads.figures,
            sql=self.sql,
            holder=spec.holder,
            retry_pause_s=retry_pause_s,
            renew_s=renew_s,
        )
        self._loop = asyncio.get_event_loop()
        self._storing: set[asyncio.Task[None]] = set()
        self.maintenance = self._loop.create_task(self.keeper.run())

    async def deposit(self, payment: Payment) -> Transfer:
        """Settles the deposit of a payment and mirrors it; idempotent by its authorization.

        Raises:
            ChannelError: the ledger refuses, and nothing has moved.
            NotReady: it is not known to have happened: the same request may be repeated.
        """
        return await self._shielded(self._deposit(payment))

    async def refund(self, payment: Payment) -> Transfer:
        """Gives unspent money back to a channel's payer; its voucher's ceiling is what has been charged.

        Raises:
            ChannelError, NotReady: as `deposit`.
        """
        return await self._shielded(self.keeper.refund(partial(self.transfers.refund, payment)))

    async def payout(self, owner: str, to: str, amount: int, nonce: int, signature: bytes) -> Json:
        """Moves an owner's earnings to a wallet at its signed request, once a nonce. Raises as `deposit`."""
        return await self._shielded(self._payout(owner, to, amount, nonce, signature))

    async def initiate(self, channel: str, amount: int, nonce: int, signature: bytes) -> Json:
        """Starts a payer's withdrawal: no call is taken from now on, and what is charged is claimed at once.

        Raises:
            ChannelError, NotReady: as `deposit`.
        """
        return await self._shielded(self._initiate(channel, amount, nonce, signature))

    async def finalize(self, channel: str, nonce: int, signature: bytes) -> Json:
        """Ends a payer's withdrawal whose delay has passed: everything that was not charged goes back.

        Raises:
            ChannelError, NotReady: as `deposit`.
        """
        return await self._shielded(self._finalize(channel, nonce, signature))

    async def settle(self) -> Json:
        """Drains, claims and splits everything that is charged by now: the sum claimed, the last root, the payouts."""
        await self.keeper.opened(None)
        await self.keeper.drain()
        settlements = await self.keeper.settle()
        payouts: dict[tuple[str, str, str], int] = {}
        for credit in (credit for settlement in settlements for credit in settlement.payouts):
            name = (credit.owner, credit.carrier, credit.dapp)
            payouts[name] = payouts.get(name, 0) + credit.amount
        rows = [
            {"owner": owner, "carrier": carrier, "dapp": dapp, "amount": amount}
            for (owner, carrier, dapp), amount in payouts.items()
        ]
        root = settlements[-1].root if settlements else None
        return {"epochs": len(settlements), "claimed": sum(payouts.values()), "root": root, "payouts": rows}

    async def progress(self) -> tuple[int, int]:
        """(channels settled, channels in all) of the settlement that runs or ran last."""
        return self.keeper.progress

    async def receipt(self, reader: str, call_id: str) -> Json | None:
        """See `AccountReads`, as for all reads below."""
        return await _answered(self.reads.receipt(reader, call_id))

    async def channel(self, reader: str, channel: str) -> Json | None:
        """A channel's amounts."""
        return await _answered(self.reads.channel(reader, channel))

    async def epoch(self, reader: str, number: int) -> Json | None:
        """A settled epoch."""
        return await _answered(self.reads.epoch(reader, number))

    async def statement(self, reader: str, owner: str, from_ms: int, to_ms: int, after: int) -> Statement | None:
        """A page of a statement."""
        return await _answered(self.reads.statement(reader, owner, from_ms, to_ms, after))

    async def earnings(self, reader: str, owner: str) -> Json | None:
        """What an owner earned."""
        return await _answered(self.reads.earnings(reader, owner))

    async def state(self, channel: str) -> LedgerChannel | None:
        """A channel as the ledger has it now, for the JSON-RPC views."""
        return await _answered(self.reads.state(channel))

    async def record(self, call_id: str) -> ChargeRecord | None:
        """A charged call, for a replica that was asked for it again after its answer was dropped."""
        return await _answered(self.reads.record(call_id))

    async def ping(self) -> bool:
        """True once the store has been reconciled."""
        return self.keeper.is_open

    def check_health(self) -> None:
        """Fails when the maintenance task has died."""
        if self.maintenance.done():
            raise RuntimeError("the treasury's maintenance task has died")

    async def sql(self, step: Callable[[], T]) -> T:
        """Runs a step on the one thread that writes money."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, step)

    async def close(self) -> None:
        """Ends the maintenance and closes everything; the lease runs out by itself."""
        while not self.maintenance.done():  # Python 3.11's wait_for, in the store's client, may swallow a cancellation
            self.maintenance.cancel()
            await asyncio.wait({self.maintenance}, timeout=0.1)
        await self.store.close()
        self._thread.shutdown()
        self.reads.close()
        for ledger in (self._reading_ledger, self.ledger):
            ledger.close()
        self.journal.close()

    async def _deposit(self, payment: Payment) -> Transfer:
        await self.keeper.opened()
        return await self.transfers.deposit(payment, self.keeper.token)

    async def _payout(self, owner: str, to: str, amount: int, nonce: int, signature: bytes) -> Json:
        transaction = await self.sql(partial(self.ledger.payout, owner, to, amount, nonce, signature))
        left = await self.sql(partial(self.ledger.earnings, owner))
        return {"transaction": transaction, "amount": str(amount), "available": str(left)}

    async def _initiate(self, channel: str, amount: int, nonce: int, signature: bytes) -> Json:
        await self.keeper.opened()
        return _withdrawal(await self.transfers.initiate(channel, amount, nonce, signature, self.keeper.token))

    async def _finalize(self, channel: str, nonce: int, signature: bytes) -> Json:
        await self.transfers.check_finalize(channel, nonce, signature)
        await self.keeper.drain()
        # What is charged by now is claimed first: money that has left the channel cannot be claimed afterwards.
        if await self.sql(partial(self.settler.owes, channel)):
            await self.keeper.settle()
        return _withdrawal(await self.transfers.finalize(channel, nonce, signature, self.keeper.token))

    async def _shielded(self, move: Coroutine[Any, Any, T]) -> T:
        # A caller that hangs up must not leave money on the ledger that the store does not know of.
        return await _answered(asyncio.shield(asyncio.create_task(move)))

    def _levels_computed(self, number: int, pieces: Sequence[Piece]) -> None:
        """Called on a reading thread: an older epoch's levels are stored by the thread that may write."""
        self._loop.call_soon_threadsafe(self._store_levels, number, pieces)

    def _store_levels(self, number: int, pieces: Sequence[Piece]) -> None:
        async def store() -> None:
            try:
                await self.sql(partial(Epochs(self.journal).store_levels, number, pieces, self.keeper.token))
            except ChannelError as error:
                log.warning("the Merkle levels of epoch %d are computed again next time: %s", number, error)

        task = asyncio.create_task(store())
        self._storing.add(task)
        task.add_done_callback(self._storing.discard)


async def _answered(step: Awaitable[T]) -> T:
    """The result of a step; failures that pass by themselves are raised as `NotReady`."""
    try:
        return await step
    except DatabaseUnavailable as error:
        log.error("the ledger's database: %s", error)
        raise NotReady("not_ready", "the ledger cannot be reached: repeat the same request shortly") from error
    except LedgerUnavailable as error:
        log.error("the ledger: %s (%s)", error, error.code)
        message = "the ledger does not answer: the same request, repeated, moves money once"
        raise NotReady("not_ready", message) from error
    except (StaleToken, TimeoutError) as error:
        raise NotReady("not_ready", "the treasury is reconciling: repeat the same request shortly") from error


def _withdrawal(update: LedgerUpdate) -> Json:
    state = update.channel
    return {"transaction": update.transaction, "balance": str(state.balance), "claimed": str(state.total_claimed)}
