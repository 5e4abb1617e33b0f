"""Keeps a mesh's money in step: drains the store's journal into SQL, claims when due, and reconciles the store.

Of several treasuries on one ledger one holds the lease and works; the others stand by. Whoever takes over gets a higher
fencing token, and what the one before it still tries changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

from channels.errors import LedgerUnavailable, NotReady
from channels.journal import LEASE_S, Journal, JournalChannel, StaleToken
from channels.metering import ChannelSnapshot, ClockSkewMonitor
from channels.redis_store import RedisStore, keys
from channels.settlement import Settlement, Settler, SqlThread, Totals, drain
from channels.sql import DatabaseUnavailable
from serving.treasury.integrity_check import IntegrityCheck
from serving.treasury.metrics import TreasuryMetrics
from serving.treasury.transfers import ChannelTransfers

log = logging.getLogger("leben.treasury")
DRAIN_PAUSE_S = 0.25
SHARED_DRAIN_PAUSE_S = 0.05
"""Readers cause at most one drain in this time, so that they cannot keep the store busy."""
METRICS_PAUSE_S = 5.0
RECONCILE_WAIT_S = 20.0
TOGETHER = 256
"""Channels that are written to the store at once; its connection sends them in one go."""
Figures = tuple[Totals, int, int, int]
T = TypeVar("T")


class Keeper:
    """The maintenance of one treasury.

    Args:
        store: where calls are charged.
        journal: the durable copy of charges.
        settler: claims and splits.
        transfers: mirrors the ledger into the store and finishes refunds.
        check: verifies the books now and then.
        metrics: of money that waits.
        figures: reads what the metrics show, beside the SQL thread.
        sql: runs a step on the one thread that writes money.
        holder: names the lease.
        retry_pause_s: seconds before a failed step is tried again.
        renew_s: seconds after which the lease is renewed.
    """

    def __init__(
        self,
        *,
        store: RedisStore,
        journal: Journal,
        settler: Settler,
        transfers: ChannelTransfers,
        check: IntegrityCheck,
        metrics: TreasuryMetrics,
        figures: Callable[[], Awaitable[Figures]],
        sql: SqlThread,
        holder: str,
        retry_pause_s: float = 1.0,
        renew_s: float = LEASE_S / 3,
    ) -> None:
        self.store, self.journal, self.settler, self.transfers = store, journal, settler, transfers
        self._check, self._metrics, self._figures, self._sql = check, metrics, figures, sql
        self._holder, self._retry_pause_s, self._renew_s = holder, retry_pause_s, renew_s
        self._clocks = ClockSkewMonitor(store)
        self._draining, self._settling = asyncio.Lock(), asyncio.Lock()
        self._shared_drain: asyncio.Task[None] | None = None
        self._reconciled = asyncio.Event()
        self._renewed_s = self._measured_s = self._shared_s = float("-inf")
        self.token = 0
        """The fencing token; 0 while another treasury holds the lease."""
        self.progress = 0, 0
        """(channels settled, channels in all) of the settlement that runs or ran last."""

    @property
    def is_open(self) -> bool:
        """True once the store has been reconciled."""
        return self._reconciled.is_set()

    async def opened(self, timeout_s: float | None = RECONCILE_WAIT_S) -> None:
        """Waits until the store has been reconciled.

        Raises:
            TimeoutError: it takes too long.
        """
        async with asyncio.timeout(timeout_s):
            await self._reconciled.wait()

    async def drain(self) -> None:
        """Stores what is charged by now, in a turn of its own."""
        await self.opened()
        async with self._draining:
            await self._drain()

    async def refund(self, move: Callable[[int], Awaitable[T]]) -> T:
        """Runs a refund once everything is drained; nothing is drained until it has ended."""
        await self.opened()
        async with self._draining:
            await self._drain()
            return await move(self.token)

    async def drained(self) -> None:
        """Returns once what is charged by now is stored.

        All who wait share the next drain: however many ask, at most one more waits for its turn, so reads that anybody
        may make delay no deposit, refund or settlement.
        """
        await self.opened()
        if self._shared_drain is None:
            self._shared_drain = asyncio.create_task(self._drain_for_all())
        await asyncio.shield(self._shared_drain)

    async def settle(self) -> list[Settlement]:
        """Settles until nothing is left; one step is one epoch with one receiver and a bounded number of channels."""
        done: list[Settlement] = []
        async with self._settling:
            self.progress = 0, (await self._sql(self.settler.waiting)).channels
            while (step := await self._sql(lambda: self.settler.settle(self.token))).epoch is not None:
                log.info("epoch %s claimed %s", step.epoch, step.claimed)
                done.append(step)
                for name in step.channels:
                    await self.transfers.mirror(name, self.token)
                self.progress = self.progress[0] + len(step.channels), self.progress[1]
                await self._renew()
        return done

    async def run(self) -> None:
        """Works until it is cancelled; a step that fails is tried again."""
        while True:
            try:
                await self._round()
            except StaleToken:
                log.error("a newer treasury has taken over; this one stands by")
                self.token = 0
                self._reconciled.clear()
            except NotReady as error:
                if error.code == "stale_treasury":  # another treasury has the store, and soon the lease
                    self.token = 0
                log.warning("no call is served until the treasury has the store: %s (%s)", error, error.code)
                self._reconciled.clear()
                await asyncio.sleep(self._retry_pause_s)
            except DatabaseUnavailable as error:
                log.error("%s; what is charged waits in the store, and settlement goes on by itself", error)
                await asyncio.sleep(self._retry_pause_s)
            except LedgerUnavailable as error:
                log.error("the ledger: %s (%s); calls are served up to the exposure cap", error, error.code)
                await asyncio.sleep(self._retry_pause_s)
            except Exception:
                log.exception("settlement step failed; it is tried again")
                await asyncio.sleep(self._retry_pause_s)

    async def _round(self) -> None:
        if not self.token:
            lease: int | None = await self._sql(lambda: self.journal.lease(self._holder))
            self.token = lease or 0
            await asyncio.sleep(0 if self.token else self._retry_pause_s)
            return
        async with self._draining:
            await self._renew()
            if not self.is_open:
                await self._clocks.check_once()
                await self.store.check()
            if await self.store.begin_reconcile(self.token):
                await self._reconcile()
            elif not self.is_open:
                # Calls went on while no treasury ran: a refund to be resumed is checked against all of them.
                await self._drain()
                await self._refresh()
                await self.transfers.resume(self.token)
            self._reconciled.set()
            # First: what is drained survives a loss of the store, also while the ledger does not answer.
            moved = await self._drain()
            await self.transfers.watch(self.token)
        if await self._sql(self.settler.due):
            await self.settle()
        await self._measure()
        await asyncio.sleep(0 if moved else DRAIN_PAUSE_S)

    async def _reconcile(self) -> None:
        """Raises a store that was restarted, emptied or replaced to what SQL and the ledger hold, then opens it."""
        self._reconciled.clear()
        await self.store.check()  # what comes back may be another server, or one with other settings
        # The token is also the incarnation of every number that is issued from here on: without a new one, a number
        # that the lost memory had given to a receipt would be given to another.
        self.token = await self._sql(self._retake)
        await self.store.begin_reconcile(self.token)
        await self._drain()
        await self._each(self._restore)
        await self._refresh()
        await self.transfers.resume(self.token)
        positions = await self._sql(lambda: [self.journal.drained(bucket) for bucket in range(keys.BUCKETS)])
        # An old treasury that wakes here, after a flush, must not open the store from what it read before.
        await self._sql(partial(self.journal.check, self.token))
        await self.store.open_for_service(self.token, positions)

    async def _drain(self) -> int:
        return await drain(self.store, self.journal, self.token, sql=self._sql)

    async def _drain_for_all(self) -> None:
        try:
            await asyncio.sleep(self._shared_s + SHARED_DRAIN_PAUSE_S - time.monotonic())
            async with self._draining:
                self._shared_drain = None  # whoever comes from here on may have been charged after this drain
                self._shared_s = time.monotonic()
                await self._drain()
        except BaseException:
            self._shared_drain = None
            raise

    async def _renew(self) -> None:
        if time.monotonic() - self._renewed_s > self._renew_s:
            await self._sql(lambda: self.journal.renew(self.token))
            self._renewed_s = time.monotonic()

    async def _measure(self) -> None:
        if time.monotonic() - self._measured_s > METRICS_PAUSE_S:
            self._measured_s = time.monotonic()
            self._metrics.set(*await self._figures(), self._check.sound, await self._clocks.skew_s())
        self._check.poll()

    async def _restore(self, channel: JournalChannel) -> None:
        calls = await self._sql(partial(self.journal.charged_keys, channel.channel_id))
        proof = (channel.proof_maximum, channel.proof_signature)
        snapshot = ChannelSnapshot(channel.channel_id, channel.charged, channel.seq, *proof, dict(calls))
        await self.store.restore(snapshot, self.token)

    async def _refresh(self) -> None:
        await self._each(lambda channel: self.transfers.mirror(channel.channel_id, self.token))

    async def _each(self, step: Callable[[JournalChannel], Awaitable[None]]) -> None:
        """Runs a step for every channel, many at once.

        The lease is kept up meanwhile: with many channels this takes longer than one lasts, and two treasuries that
        took it from each other in turn would never come to an end.
        """
        channels = await self._sql(lambda: list(self.journal.channels()))
        for start in range(0, len(channels), TOGETHER):
            part = channels[start : start + TOGETHER]
            outcomes = await asyncio.gather(*map(step, part), return_exceptions=True)
            for error in filter(None, outcomes):  # all of them have ended: none goes on after another has failed
                raise error
            await self._renew()

    def _retake(self) -> int:
        """A newer token, as long as this treasury is the one in charge: a replaced one stays replaced."""
        self.journal.check(self.token)
        return self.journal.acquire(self._holder)
