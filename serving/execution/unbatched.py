"""Runs each call of a DApp that calls other DApps by itself, in a thread.

Such calls wait for others, so they must block neither the event loop nor a batch. A batch would also mix callers, and a
child call is paid for by one caller's quote.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context

from dapps import DApp
from dapps.api import Inputs
from serving.device import Forward, checked
from serving.errors import CallError
from serving.execution.admission import ConcurrencyLimit
from serving.execution.executor import OWN_PAYERS, Completion, Executor, Submission
from serving.telemetry import Execution

MAX_THREADS = 16


class UnbatchedExecutor(Executor):
    """Executes one DApp that calls others, in the order of arrival. All calls have one priority.

    Args:
        dapp: not loaded yet.
        threads: torch threads on the CPU; 0: torch decides.
        observe: called with every call that was answered.
        slots: how many calls run at once.
    """

    def __init__(
        self,
        dapp: DApp,
        threads: int = 0,
        observe: Callable[[Execution], None] = lambda execution: None,
        slots: int = MAX_THREADS,
    ) -> None:
        self._dapp, self._threads, self._observe = dapp, threads, observe
        self._device, self._forward = "", Forward(dapp, "cpu")
        self._pool = ThreadPoolExecutor(slots, thread_name_prefix="unbatched")
        self._free = asyncio.Semaphore(slots)
        self._limit = ConcurrencyLimit()

    @property
    def waiting(self) -> int:
        """Calls that run or wait, with those whose thread still runs although their caller has gone."""
        return self._limit.taken

    async def start(self) -> str:
        """Loads the weights and returns the device's name."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._start)

    def admit(self, payer: str) -> None:
        """See `ConcurrencyLimit.admit`."""
        self._limit.admit(payer)

    async def submit(self, submission: Submission) -> Completion:
        """Runs one call's rows in a thread.

        The slot and the payer's place last as long as the thread, not as long as the caller: a thread cannot be
        stopped, and a slot freed before would let callers who hang up fill all threads while the queue looks empty.

        Raises:
            CallError: `queue_full` or `deadline`. Errors of the DApp pass through unchanged.
        """
        queued_s, payer = time.monotonic(), submission.payer
        self._limit.enter(payer)
        try:
            async with asyncio.timeout(submission.timeout_s):
                await self._free.acquire()
        except BaseException as error:
            self._limit.leave(payer)
            if isinstance(error, TimeoutError):
                raise CallError("deadline", "the call waited longer than its deadline; it was not answered") from error
            raise
        loop, began_s = asyncio.get_running_loop(), time.monotonic()

        def ended(thread: Future[Inputs]) -> None:
            with suppress(RuntimeError):  # the event loop has been closed since
                loop.call_soon_threadsafe(self._leave, payer)

        # The context carries whose call this is and how other DApps are reached.
        thread = self._pool.submit(copy_context().run, self._answer, submission.tensors)
        thread.add_done_callback(ended)
        outputs = await asyncio.wrap_future(thread)
        took_ns = int((time.monotonic() - began_s) * 1e9)
        queued_ns = int((began_s - queued_s) * 1e9)
        if payer not in OWN_PAYERS:
            self._observe(Execution(rows=submission.rows, calls=1, queued_ns=queued_ns, took_ns=took_ns))
        return Completion(outputs, device_ns=took_ns)

    async def close(self) -> None:
        """Ends the threads after the calls that they run."""
        await asyncio.to_thread(self._pool.shutdown, wait=True)

    def _leave(self, payer: str) -> None:
        self._free.release()
        self._limit.leave(payer)

    def _start(self) -> str:
        import torch

        if self._threads:
            torch.set_num_threads(self._threads)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._dapp.load(self._device)
        self._forward = Forward(self._dapp, self._device)
        return self._device

    def _answer(self, inputs: Inputs) -> Inputs:
        rows, outputs = len(next(iter(inputs.values()))), self._forward(inputs)
        present = [tensor for tensor in self._dapp.outputs if not tensor.optional or tensor.name in outputs]
        answer = {tensor.name: checked(outputs[tensor.name], tensor) for tensor in present}
        if any(len(array) != rows for array in answer.values()):
            raise RuntimeError("the model returned another number of rows than it was given")
        return answer
