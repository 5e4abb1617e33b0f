"""`Batcher`: a late-binding queue in front of one device.

The device asks for the next batch when it is free, so a lone call never waits and a busy device always gets as full a
batch as there is. Results travel with the object that asked for them: one caller's rows can never reach another.
Knows no HTTP, no money and no torch.
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
from serving.telemetry import Execution, Usage, tracing

Bucket = tuple[tuple[str, str, tuple[int, ...]], ...]
"""What may share a batch: the names, dtypes and item shapes of the inputs that are present."""
UNRANKED = 2**64
"""Where a call without a priority stands: after those that have one."""


class Runner(Protocol):
    """One device: runs a batch [n, *shape] and gives outputs [n, *shape]."""

    async def run(self, inputs: Inputs) -> Inputs:
        """Runs one batch; at most `Batcher.depth` of them at once, 1 unless the device copies beside computing."""


@dataclass(slots=True, eq=False)
class _Item:
    inputs: Inputs
    rows: int
    bucket: Bucket
    priority: int
    queued_s: float
    deadline_s: float
    result: asyncio.Future[Inputs] = field(repr=False)
    usage: Usage
    begun: bool = False


class Batcher:
    """Batches calls for one runner.

    Args:
        runner: the device.
        maximum_batch: most rows that the device is given at once; a single larger call runs alone.
        queue_limit: most rows waiting; beyond it a call is refused, because a longer queue only makes all late.
        observe: told of every batch that was answered.
    """

    def __init__(
        self,
        runner: Runner,
        maximum_batch: int,
        queue_limit: int = 256,
        observe: Callable[[Execution], None] = lambda execution: None,
    ) -> None:
        self._runner = runner
        self._maximum_batch = maximum_batch
        self._queue_limit = queue_limit
        self._observe = observe
        self._queues: OrderedDict[str, list[_Item]] = OrderedDict()
        self._rows = 0
        self._workers: set[asyncio.Task[None]] = set()
        self.depth = 1
        """How many batches the device is given at once: see `Runner.run`."""

    def bound(self, maximum_batch: int) -> None:
        """From the next batch on, the device is given at most so many rows at once."""
        self._maximum_batch = maximum_batch

    @property
    def waiting(self) -> int:
        """Rows in the queue."""
        return self._rows

    async def submit(
        self,
        inputs: Inputs,
        payer: str = "",
        timeout_s: float = 60.0,
        priority: int = 0,
        usage: Usage | None = None,
    ) -> Inputs:
        """Runs one call's rows and returns its outputs.

        Args:
            inputs: arrays [n, *shape] by name, checked against the declaration.
            payer: calls of one payer queue behind each other; payers take turns.
            timeout_s: after this long in the queue the call is dropped without being run.
            priority: 1 goes first among the payer's own calls, 0 after all that have one; never before another payer.
            usage: what the rows use is added to it.

        Raises:
            CallError: `queue_full` or `deadline`; whatever the model raises comes through as it is.
        """
        rows = len(next(iter(inputs.values())))
        if self._full(rows):
            self._make_room(payer, rows)
        loop, now_s = asyncio.get_running_loop(), time.monotonic()
        times = (now_s, now_s + timeout_s)
        future = loop.create_future()
        item = _Item(inputs, rows, _bucket(inputs), priority or UNRANKED, *times, future, usage or Usage())
        self._queues.setdefault(payer, []).append(item)
        self._rows += rows
        if len(self._workers) < self.depth:
            self._workers.add(asyncio.create_task(self._work()))
        # A caller is told when its time is up, not when the device is next free.
        timer = loop.call_later(max(timeout_s, 0), _expire, item)
        queued_ns = time.time_ns()
        try:
            answer = await item.result
        finally:
            timer.cancel()
        used = item.usage
        tracing.past("queue", queued_ns, used.began_ns, rows=rows)
        tracing.past("device", used.began_ns, used.ended_ns, rows=rows)
        return answer

    def admit(self, payer: str) -> None:
        """Lets a call of one row come, or refuses it before anything is spent on it: it may still be refused later.

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
        """Room in a full queue, at the cost of whoever fills it: a flood by one payer must not keep the others out.

        Raises:
            CallError: `queue_full`: nobody has more waiting than this payer would have.
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
        """Rows that wait, by payer."""
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
            # In the step that found nothing to do, not later: who comes next must see that a worker is needed.
            self._workers.discard(cast("asyncio.Task[None]", asyncio.current_task()))

    def _next(self) -> list[_Item]:
        """The next batch: payers take turns; the first in turn sets the bucket, the others fill it up."""
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
        item = min(fitting, key=lambda each: (each.priority, each.deadline_s))
        queue.remove(item)
        self._rows -= item.rows
        self._queues.move_to_end(payer)
        if not queue:
            del self._queues[payer]
        return item

    def _drop_dead(self) -> None:
        """Takes out of the queue what is late or has lost its caller: neither may run, nor keep others out."""
        now_s = time.monotonic()
        for payer in list(self._queues):
            kept = []
            for item in self._queues[payer]:
                if item.deadline_s < now_s:
                    _expire(item)
                if item.result.done():
                    self._rows -= item.rows
                else:
                    kept.append(item)
            if kept:
                self._queues[payer] = kept
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
            # One bad item must not fail its neighbours, nor make each of them run alone: it is halved out.
            middle = len(batch) // 2
            for half in (batch[:middle], batch[middle:]):
                alive = [item for item in half if not _dead(item)]
                if alive:
                    await self._run(alive)
            return
        queued_s = sum(began_s - item.queued_s for item in batch)
        took_ns, ended_ns = int((time.monotonic() - began_s) * 1e9), time.time_ns()
        total = sum(item.rows for item in batch)
        self._observe(Execution(total, len(batch), int(queued_s * 1e9), took_ns))
        at = 0
        for item in batch:
            item.usage.began_ns, item.usage.ended_ns = ended_ns - took_ns, ended_ns
            item.usage.device_ns += took_ns * item.rows // total
            if not item.result.done():
                rows = {name: array[at : at + item.rows].copy() for name, array in outputs.items()}
                item.result.set_result(rows)
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
        raise RuntimeError("the model gave back another number of rows than it was given")


def _dead(item: _Item) -> bool:
    """True if the item may not run, again: late, or without its caller."""
    if item.deadline_s < time.monotonic():
        _fail(item, CallError("deadline", "the call waited longer than its deadline; it was not answered"))
    return item.result.done()


def _expire(item: _Item) -> None:
    if not item.begun:
        _fail(item, CallError("deadline", "the call waited longer than its deadline; it was not run"))


def _fail(item: _Item, error: Exception) -> None:
    if not item.result.done():
        item.result.set_exception(error)
