"""Queues calls in front of one device and forms batches of them.

Late binding: the next batch is formed when the device is free, so a lone call never waits and a busy device gets the
fullest batch there is. An item carries the future of its own caller, so rows cannot reach another caller.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import numpy as np

from dapps.api import Inputs
from serving.errors import CallError
from serving.execution.executor import OWN_PAYERS, Completion, Submission
from serving.telemetry import Execution, tracing

Bucket = tuple[tuple[str, str, tuple[int, ...]], ...]
"""Calls may share a batch if the names, dtypes and item shapes of their inputs are equal."""
MAX_WAITING_ROWS = 256
UNRANKED = 2**64
"""The rank of a call without a priority: behind every call that has one."""


class Runner(Protocol):
    """Computes batches on one device."""

    async def run(self, inputs: Inputs) -> Inputs:
        """Computes one batch [n, *shape] and returns outputs [n, *shape]; called at most `depth` times at once."""


@dataclass(slots=True, eq=False)
class _Item:
    inputs: Inputs
    rows: int
    payer: str
    bucket: Bucket
    priority: int
    queued_s: float
    deadline_s: float
    result: asyncio.Future[Completion] = field(repr=False)
    begun: bool = False
    began_ns: int = 0
    ended_ns: int = 0


class Batcher:
    """Batches calls for one runner.

    Args:
        runner: the device.
        maximum_batch: most rows that the device is given at once; a single larger call runs alone.
        queue_limit: most rows waiting; beyond it a call is refused, because a longer queue only delays every call.
        observe: called with every batch that ran.
        depth: how many batches the device is given at once: 1, or more where copying overlaps with computing.
    """

    def __init__(
        self,
        runner: Runner,
        maximum_batch: int,
        queue_limit: int = MAX_WAITING_ROWS,
        observe: Callable[[Execution], None] = lambda execution: None,
        depth: int = 1,
    ) -> None:
        self._runner = runner
        self._maximum_batch = maximum_batch
        self._queue_limit = queue_limit
        self._observe = observe
        self._queues: OrderedDict[str, list[_Item]] = OrderedDict()
        self._rows = 0
        self._workers: set[asyncio.Task[None]] = set()
        self._depth = depth

    def resize(self, maximum_batch: int) -> None:
        """Bounds the rows of a batch, from the next batch on."""
        self._maximum_batch = maximum_batch

    @property
    def waiting(self) -> int:
        """Rows in the queue."""
        return self._rows

    @property
    def running(self) -> int:
        """Batches that the device is computing."""
        return len(self._workers)

    async def submit(self, submission: Submission) -> Completion:
        """Runs one call's rows and returns its outputs.

        Raises:
            CallError: `queue_full` or `deadline`. Errors of the model pass through unchanged.
        """
        tensors, payer, timeout_s = submission.tensors, submission.payer, submission.timeout_s
        rows = len(next(iter(tensors.values())))
        if self._full(rows):
            self._make_room(payer, rows)
        loop, now_s = asyncio.get_running_loop(), time.monotonic()
        item = _Item(
            inputs=tensors,
            rows=rows,
            payer=payer,
            bucket=_bucket(tensors),
            priority=submission.priority or UNRANKED,
            queued_s=now_s,
            deadline_s=now_s + timeout_s,
            result=loop.create_future(),
        )
        self._queues.setdefault(payer, []).append(item)
        self._rows += rows
        if len(self._workers) < self._depth:
            self._workers.add(asyncio.create_task(self._work()))
        # The caller gets its refusal when its time is up, not when the device is next free.
        timer = loop.call_later(max(timeout_s, 0), _expire, item)
        queued_ns = time.time_ns()
        try:
            completion = await item.result
        finally:
            timer.cancel()
        tracing.past("queue", queued_ns, item.began_ns, rows=rows)
        tracing.past("device", item.began_ns, item.ended_ns, rows=rows)
        return completion

    def admit(self, payer: str) -> None:
        """Refuses a call of one row that the queue has no place for; one that is admitted may still be refused later.

        Raises:
            CallError: `queue_full`.
        """
        if self._full(1):
            self._drop_dead()
            waiting = self._waiting()
            if self._full(1) and max(waiting.values()) <= waiting.get(payer, 0) + 1:
                raise _queue_full()

    def _full(self, rows: int) -> bool:
        return self._rows + rows > max(self._queue_limit, rows)

    def _make_room(self, payer: str, rows: int) -> None:
        """Makes room in a full queue at the cost of the payer who fills it: one payer's flood must not shut others out.

        Raises:
            CallError: `queue_full`: no payer has more rows waiting than this one would have.
        """
        self._drop_dead()
        refused, waiting = _queue_full(), self._waiting()
        while self._full(rows):
            heaviest = max(waiting, key=waiting.__getitem__)
            if waiting[heaviest] <= waiting.get(payer, 0) + rows:
                raise refused
            last = self._queues[heaviest].pop()
            if not self._queues[heaviest]:
                del self._queues[heaviest]
            self._rows -= last.rows
            waiting[heaviest] -= last.rows
            _fail(last, refused)

    def _waiting(self) -> dict[str, int]:
        """Waiting rows by payer."""
        return {name: sum(item.rows for item in queue) for name, queue in self._queues.items()}

    async def _work(self) -> None:
        try:
            while batch := self._next():
                for item in batch:
                    item.begun = True
                try:
                    await self._run(batch)
                except Exception as error:
                    for item in batch:
                        _fail(item, error)
        finally:
            # In the same step that found the queue empty: the next call must see that it needs a worker.
            self._workers.discard(cast("asyncio.Task[None]", asyncio.current_task()))

    def _next(self) -> list[_Item]:
        """Forms the next batch: payers take turns; the first in turn sets the bucket, the others fill it up."""
        self._drop_dead()
        batch: list[_Item] = []
        rows = 0
        moved = True
        while moved:
            moved = False
            for payer in list(self._queues):
                item = self._take(payer, batch[0].bucket if batch else None, self._maximum_batch - rows, bool(batch))
                if item is not None:
                    batch.append(item)
                    rows += item.rows
                    moved = True
        return batch

    def _take(self, payer: str, bucket: Bucket | None, room: int, bounded: bool) -> _Item | None:
        queue = self._queues[payer]
        fitting = [i for i in queue if (bucket is None or i.bucket == bucket) and not (bounded and i.rows > room)]
        if not fitting:
            return None
        item = min(fitting, key=lambda item: (item.priority, item.deadline_s))
        queue.remove(item)
        self._rows -= item.rows
        self._queues.move_to_end(payer)
        if not queue:
            del self._queues[payer]
        return item

    def _drop_dead(self) -> None:
        """Removes items that are late or have lost their caller: they must neither run nor shut others out."""
        for payer in list(self._queues):
            alive = []
            for item in self._queues[payer]:
                if _dead(item):
                    self._rows -= item.rows
                else:
                    alive.append(item)
            if alive:
                self._queues[payer] = alive
            else:
                del self._queues[payer]

    async def _run(self, batch: list[_Item]) -> None:
        began_s = time.monotonic()
        try:
            outputs = await self._runner.run(_join(batch))
            _check(outputs, sum(item.rows for item in batch))
        except Exception as error:
            if len(batch) == 1:
                _fail(batch[0], error)
                return
            # Bisection: one bad item must neither fail its neighbours nor make each of them run alone.
            middle = len(batch) // 2
            for half in (batch[:middle], batch[middle:]):
                alive = [item for item in half if not _dead(item)]
                if alive:
                    await self._run(alive)
            return
        calls = [item for item in batch if item.payer not in OWN_PAYERS]
        queued_s = sum(began_s - item.queued_s for item in calls)
        took_ns, ended_ns = int((time.monotonic() - began_s) * 1e9), time.time_ns()
        total = sum(item.rows for item in batch)
        if calls:
            counted = sum(item.rows for item in calls)
            self._observe(Execution(rows=counted, calls=len(calls), queued_ns=int(queued_s * 1e9), took_ns=took_ns))
        at = 0
        for item in batch:
            item.began_ns, item.ended_ns = ended_ns - took_ns, ended_ns
            if not item.result.done():
                rows = {name: array[at : at + item.rows].copy() for name, array in outputs.items()}
                item.result.set_result(Completion(rows, device_ns=took_ns * item.rows // total))
            at += item.rows


def _queue_full() -> CallError:
    return CallError("queue_full", "the queue of this model is full: try again shortly")


def _bucket(inputs: Inputs) -> Bucket:
    return tuple(sorted((name, array.dtype.str, array.shape[1:]) for name, array in inputs.items()))


def _join(batch: list[_Item]) -> Inputs:
    if len(batch) == 1:
        return batch[0].inputs
    return {name: np.concatenate([item.inputs[name] for item in batch]) for name in batch[0].inputs}


def _check(outputs: dict[str, np.ndarray[Any, Any]], rows: int) -> None:
    if any(len(array) != rows for array in outputs.values()):
        raise RuntimeError("the model returned another number of rows than it was given")


def _dead(item: _Item) -> bool:
    """True if the item must not run: its deadline has passed, or its caller has gone."""
    if item.deadline_s < time.monotonic():
        _fail(item, _late())
    return item.result.done()


def _expire(item: _Item) -> None:
    """Ends the wait of an item whose time is up; one that runs is answered whatever its deadline."""
    if not item.begun:
        _fail(item, _late())


def _late() -> CallError:
    return CallError("deadline", "the call waited longer than its deadline; it was not answered")


def _fail(item: _Item, error: Exception) -> None:
    if not item.result.done():
        item.result.set_exception(error)
