"""Reads accounts beside the money: over read-only connections, on threads of its own, in a bounded number.

A key costs nothing, so anybody can sign a thousand reads a second. None of them takes the treasury's SQL thread or a
turn of its own at draining, and beyond `max_waiting` they are refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from channels.errors import NotReady
from channels.journal import Journal, Statement
from channels.ledger import Ledger, LedgerChannel
from channels.metering import ChargeRecord
from channels.protocol import Signer
from channels.settlement import Epochs, Piece, Totals
from serving.treasury.accounts import Accounts

MAX_WAITING_READS = 64
READ_THREADS = 2
Json = dict[str, Any]
T = TypeVar("T")


class AccountReads:
    """The reads of one treasury.

    Args:
        journal: opened read-only.
        ledger: opened read-only; no other thread uses it.
        signer: the mesh's receipt key.
        drained: returns once what is charged by now is stored.
        store_levels: stores the Merkle levels of an epoch that a proof had to compute.
        max_waiting: reads that may wait or run at once.
    """

    def __init__(
        self,
        *,
        journal: Journal,
        ledger: Ledger,
        signer: Signer,
        drained: Callable[[], Awaitable[None]],
        store_levels: Callable[[int, Sequence[Piece]], None],
        max_waiting: int = MAX_WAITING_READS,
    ) -> None:
        self.journal, self._ledger = journal, ledger
        self._epochs = Epochs(journal, store_levels)
        self._accounts = Accounts(journal, ledger, signer, self._epochs)
        self._drained, self._max_waiting, self._waiting = drained, max_waiting, 0
        self._threads = ThreadPoolExecutor(max_workers=READ_THREADS, thread_name_prefix="accounts")
        self._own_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="treasury-reads")

    async def receipt(self, reader: str, call_id: str) -> Json | None:
        """See `Accounts.receipt`; a call that was just answered is found."""
        return await self._read(partial(self._accounts.receipt, reader, call_id), fresh=True)

    async def channel(self, reader: str, channel: str) -> Json | None:
        """See `Accounts.channel`."""
        return await self._read(partial(self._accounts.channel, reader, channel), fresh=True)

    async def epoch(self, reader: str, number: int) -> Json | None:
        """See `Accounts.epoch`."""
        return await self._read(partial(self._accounts.epoch, reader, number))

    async def statement(self, reader: str, owner: str, from_ms: int, to_ms: int, after: int) -> Statement | None:
        """See `Accounts.statement`."""
        return await self._read(partial(self._accounts.statement, reader, owner, from_ms, to_ms, after), fresh=True)

    async def earnings(self, reader: str, owner: str) -> Json | None:
        """See `Accounts.earnings`."""
        return await self._read(partial(self._accounts.earnings, reader, owner))

    async def state(self, channel: str) -> LedgerChannel | None:
        """A channel as the ledger has it now."""
        return await self._read(partial(self._ledger.channel, channel))

    async def record(self, call_id: str) -> ChargeRecord | None:
        """A charged call, for a replica that has checked its payer's voucher: strangers' reads do not delay it."""
        return await _run(self._own_thread, partial(self.journal.record, call_id))

    async def figures(self) -> tuple[Totals, int, int, int]:
        """What waits to be settled; channels, quarantined channels, and journal entries that could not be stored."""
        return await _run(self._own_thread, lambda: (self._epochs.unsettled(), *self._epochs.counts()))

    def close(self) -> None:
        """Ends the threads and closes the journal; the ledger's owner closes the ledger."""
        self._threads.shutdown()
        self._own_thread.shutdown()
        self.journal.close()

    async def _read(self, step: Callable[[], T], fresh: bool = False) -> T:
        with self._place():
            if fresh:
                await self._drained()
            return await _run(self._threads, step)

    @contextmanager
    def _place(self) -> Iterator[None]:
        if self._waiting >= self._max_waiting:
            raise NotReady("accounts_busy", "too many reads of accounts wait: repeat the same request shortly")
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1


async def _run(threads: ThreadPoolExecutor, step: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(threads, step)
