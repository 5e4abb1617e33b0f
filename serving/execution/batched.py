"""Runs a DApp's calls in batches on one device, and checks that the device still computes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from dapps import DApp
from serving.execution.batcher import MAX_WAITING_ROWS, Batcher, Runner
from serving.execution.executor import CHECK_PAYER, Completion, Executor, Submission
from serving.telemetry import Execution

IDLE_CHECK_S = 30.0
CHECK_TIMEOUT_S = 20.0


class DeviceRunner(Runner, Protocol):
    """A runner that owns its device: `TorchRunner`, or that of an isolated DApp."""

    @property
    def depth(self) -> int:
        """How many batches the device takes at once; known once it has started."""

    async def start(self) -> str:
        """Loads the weights, warms up and returns the device's name."""

    def check(self) -> None:
        """Raises RuntimeError if the device has failed for good."""

    def memory_bytes(self) -> int:
        """Memory in use on the device, or in the process on a CPU."""

    def close(self) -> None:
        """Ends the device's threads after the batch that runs."""


class BatchedExecutor(Executor):
    """Executes one DApp on one device.

    Args:
        runner: the device.
        dapp: its example is the health check.
        maximum_batch: most rows that the device is given at once.
        observe: called with every batch that ran.
        queue_limit: most rows waiting.
        now_s: a clock that only moves forward, in seconds.
    """

    def __init__(
        self,
        runner: DeviceRunner,
        dapp: DApp,
        maximum_batch: int,
        observe: Callable[[Execution], None] = lambda execution: None,
        queue_limit: int = MAX_WAITING_ROWS,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.runner = runner
        self._dapp, self._maximum_batch, self._queue_limit = dapp, maximum_batch, queue_limit
        self._observe, self._now_s = observe, now_s
        self._ran_s = now_s()
        self._queue: Batcher | None = None

    @property
    def queue(self) -> Batcher:
        """The batcher.

        Raises:
            RuntimeError: the executor has not started: until then the device's depth is unknown.
        """
        if self._queue is None:
            raise RuntimeError("the executor has not started")
        return self._queue

    @property
    def waiting(self) -> int:
        """Rows in the queue."""
        return self.queue.waiting

    async def start(self) -> str:
        """Starts the device and opens the queue in front of it."""
        device = await self.runner.start()
        self._queue = Batcher(
            self.runner,
            self._maximum_batch,
            self._queue_limit,
            observe=self._executed,
            depth=self.runner.depth,
        )
        self._ran_s = self._now_s()
        return device

    def admit(self, payer: str) -> None:
        """See `Queue.admit`."""
        self.queue.admit(payer)

    def submit(self, submission: Submission) -> Coroutine[Any, Any, Completion]:
        """See `Queue.submit`; hands out the batcher's own coroutine, which costs a call less than awaiting it here."""
        return self.queue.submit(submission)

    def resize(self, maximum_batch: int) -> None:
        """Bounds the rows of later batches."""
        self.queue.resize(maximum_batch)

    async def check(self) -> None:
        """Raises what the device fails with; computes the example if nothing has run for `IDLE_CHECK_S`."""
        self.runner.check()
        if self._now_s() - self._ran_s > IDLE_CHECK_S:
            await self.queue.submit(Submission(self._dapp.example(), CHECK_PAYER, CHECK_TIMEOUT_S))
            self._ran_s = self._now_s()

    def memory_bytes(self) -> int:
        """Memory in use on the device."""
        return self.runner.memory_bytes()

    async def close(self) -> None:
        """Ends the device's threads."""
        await asyncio.to_thread(self.runner.close)

    def _executed(self, execution: Execution) -> None:
        self._ran_s = self._now_s()
        self._observe(execution)
