"""`Batcher`: a late-binding queue in front of one device.

The device asks for the next batch when it is free, so a lone call never waits and a busy device always gets as full a
batch as there is. Results travel with the object that asked for them: one caller's rows can never reach another.
Knows no HTTP, no money and no torch. Next: `runner.py`.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from dapps.types import Inputs
from serving.errors import CallError

Bucket = tuple[tuple[str, str, tuple[int, ...]], ...]
"""What may share a batch: the names, dtypes and item shapes of the inputs that are present."""


class Runner(Protocol):
    """One device: runs a batch [n, *shape] and gives outputs [n, *shape]."""

    async def run(self, inputs: Inputs) -> Inputs:
        """Runs one batch; never called twice at once."""


@dataclass(slots=True, eq=False)
class _Item:
    inputs: Inputs
    rows: int
    bucket: Bucket
    deadline_s: float
    result: asyncio.Future[Inputs] = field(repr=False)


class Batcher:
    """Batches calls for one runner.

    Args:
        runner: the device.
        maximum_batch: most rows that the device is given at once.
        queue_limit: most rows waiting; beyond it a call is refused, because a longer queue only makes all late.
    """

    def __init__(self, runner: Runner, maximum_batch: int, queue_limit: int = 256) -> None:
        self._runner = runner
        self._maximum_batch = maximum_batch
        self._queue_limit = queue_limit
        self._queues: OrderedDict[str, list[_Item]] = OrderedDict()
        self._rows = 0
        self._task: asyncio.Task[None] | None = None

    async def submit(self, inputs: Inputs, payer: str = "", timeout_s: float = 60.0) -> Inputs:
        """Runs one call's rows and returns its outputs.

        Args:
            inputs: arrays [n, *shape] by name, checked against the declaration.
            payer: calls of one payer queue behind each other; payers take turns.
            timeout_s: after this long in the queue the call is dropped without being run.

        Raises:
            CallError: `queue_full` or `deadline`; whatever the model raises comes through as it is.
        """
        rows = len(next(iter(inputs.values())))
        if self._rows + rows > max(self._queue_limit, rows):
            raise CallError("queue_full", "the queue of this model is full: try again shortly")
        loop = asyncio.get_running_loop()
        item = _Item(inputs, rows, _bucket(inputs), time.monotonic() + timeout_s, loop.create_future())
        self._queues.setdefault(payer, []).append(item)
        self._rows += rows
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work())
        return await item.result

    async def _work(self) -> None:
        while batch := self._next():
            try:
                await self._run(batch)
            except Exception as error:
                for item in batch:
                    _fail(item, error)

    def _next(self) -> list[_Item]:
        """The next batch: payers take turns; the first in turn sets the bucket, the others fill it up."""
        self._drop_late()
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
        item = min(fitting, key=lambda each: each.deadline_s)
        queue.remove(item)
        self._rows -= item.rows
        self._queues.move_to_end(payer)
        if not queue:
            del self._queues[payer]
        return item

    def _drop_late(self) -> None:
        now_s = time.monotonic()
        for payer in list(self._queues):
            kept = []
            for item in self._queues[payer]:
                if item.deadline_s < now_s:
                    _fail(item, CallError("deadline", "the call waited longer than its deadline; it was not run"))
                if item.result.done():  # late, or its caller has gone
                    self._rows -= item.rows
                else:
                    kept.append(item)
            if kept:
                self._queues[payer] = kept
            else:
                del self._queues[payer]

    async def _run(self, batch: list[_Item]) -> None:
        try:
            outputs = await self._runner.run(_join(batch))
            _check(outputs, sum(item.rows for item in batch))
        except Exception as error:
            if len(batch) == 1:
                _fail(batch[0], error)
                return
            # One bad item must not fail its neighbours: each runs alone.
            for item in batch:
                if not item.result.done():
                    await self._run([item])
            return
        at = 0
        for item in batch:
            if not item.result.done():
                rows = {name: array[at : at + item.rows].copy() for name, array in outputs.items()}
                item.result.set_result(rows)
            at += item.rows


def _bucket(inputs: Inputs) -> Bucket:
    return tuple(sorted((name, array.dtype.str, array.shape[1:]) for name, array in inputs.items()))


def _join(batch: list[_Item]) -> Inputs:
    if len(batch) == 1:
        return batch[0].inputs
    return {name: np.concatenate([item.inputs[name] for item in batch]) for name in batch[0].inputs}


def _check(outputs: dict[str, np.ndarray[Any, Any]], rows: int) -> None:
    if any(len(array) != rows for array in outputs.values()):
        raise RuntimeError("the model gave back another number of rows than it was given")


def _fail(item: _Item, error: Exception) -> None:
    if not item.result.done():
        item.result.set_exception(error)
