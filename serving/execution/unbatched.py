"""Runs each call of a DApp that calls other DApps in a thread of its own.

Stands where batcher and runner stand for every other DApp. A batch would mix callers, and what is asked of others is
asked within one caller's quote. Takes turns in the order of arrival, and lets no payer have more than half the places.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial

import psutil

from dapps import DApp
from dapps.api import Inputs
from serving.device import Forward, checked
from serving.errors import CallError
from serving.execution.admission import ConcurrencyLimit
from serving.telemetry import Execution, Usage

THREADS = 16


class UnbatchedExecutor:
    """Runs one DApp that asks others; `depth` and `waiting` are those of a batcher.

    Args:
        dapp: not loaded yet.
        threads: torch threads on the CPU; 0: torch decides.
        observe: told of every call that was answered.
    """

    depth = 1

    def __init__(
        self, dapp: DApp, threads: int = 0, observe: Callable[[Execution], None] = lambda execution: None
    ) -> None:
        self._dapp, self._threads, self._observe = dapp, threads, observe
        self._device, self._forward = "", Forward(dapp, "cpu")
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="solo")
        self._free = asyncio.Semaphore(THREADS)
        self._places = ConcurrencyLimit()

    def bound(self, maximum_batch: int) -> None:
        """There are no batches to bound."""

    @property
    def waiting(self) -> int:
        """Calls that run or wait."""
        return self._places.taken

    async def start(self) -> str:
        """Loads the weights, and returns the device's name."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._start)

    async def submit(
        self,
        inputs: Inputs,
        payer: str = "",
        timeout_s: float = 60.0,
        priority: int = 0,
        usage: Usage | None = None,
    ) -> Inputs:
        """Runs one call's rows and returns its outputs; see `Batcher.submit`. All calls have one priority.

        Raises:
            CallError: `queue_full` or `deadline`; whatever the DApp raises comes through as it is.
        """
        queued_s = time.monotonic()
        with self._places.take(payer):
            try:
                async with asyncio.timeout(timeout_s):
                    await self._free.acquire()
            except TimeoutError as error:
                raise CallError("deadline", "the call waited longer than its deadline; it was not run") from error
            try:
                return await self._run(inputs, queued_s, usage)
            finally:
                self._free.release()

    def admit(self, payer: str) -> None:
        """See `ConcurrencyLimit.admit`."""
        self._places.admit(payer)

    def healthy(self) -> None:
        """What it asks of others is their health; its own process answers, or this would not run."""

    def memory_bytes(self) -> int:
        """What this process has of the machine's memory."""
        return int(psutil.Process().memory_info().rss)

    def close(self) -> None:
        """Ends the threads after the calls that they run."""
        self._pool.shutdown(wait=True)

    def _start(self) -> str:
        import torch

        if self._threads:
            torch.set_num_threads(self._threads)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._dapp.load(self._device)
        self._forward = Forward(self._dapp, self._device)
        return self._device

    async def _run(self, inputs: Inputs, queued_s: float, usage: Usage | None) -> Inputs:
        began_s = time.monotonic()
        # The context says whose call this is, and how others are reached.
        work = partial(copy_context().run, self._answer, inputs)
        outputs: Inputs = await asyncio.get_running_loop().run_in_executor(self._pool, work)
        took_ns = int((time.monotonic() - began_s) * 1e9)
        if usage is not None:
            usage.device_ns += took_ns
        rows = len(next(iter(inputs.values())))
        self._observe(Execution(rows, 1, int((began_s - queued_s) * 1e9), took_ns))
        return outputs

    def _answer(self, inputs: Inputs) -> Inputs:
        rows, outputs = len(next(iter(inputs.values()))), self._forward(inputs)
        given = [tensor for tensor in self._dapp.outputs if not tensor.optional or tensor.name in outputs]
        answer = {tensor.name: checked(outputs[tensor.name], tensor) for tensor in given}
        if any(len(array) != rows for array in answer.values()):
            raise RuntimeError("the model gave back another number of rows than it was given")
        return answer
