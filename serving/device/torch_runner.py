"""Runs a DApp's batches on a device that one dedicated thread owns.

The event loop never touches torch: a batch on the loop would delay health checks and every other call. Chooses the
device, warms it up, and handles its failures.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import psutil

from dapps import DApp
from dapps.api import Inputs, Tensor
from serving.device.optimizations import Forward, tuned, usual
from serving.device.pinned_memory import SLOTS
from serving.errors import CallError

log = logging.getLogger("leben.runner")


class TorchRunner:
    """Runs one DApp on `device` (``"cpu"``, ``"cuda"``; empty: CUDA if there is one).

    Args:
        dapp: not loaded yet.
        device: see above.
        threads: torch threads on the CPU; 0: torch decides.
        maximum_batch: most rows at once; 0: as the DApp declares. Lowered when the device's memory is too small.
        optimizations: see `optimizations.NAMES`; None: those known to be faster on the device.
    """

    def __init__(
        self,
        dapp: DApp,
        device: str = "",
        threads: int = 0,
        maximum_batch: int = 0,
        optimizations: Sequence[str] | None = None,
    ) -> None:
        self._maximum_batch = maximum_batch or dapp.maximum_batch
        self._dapp, self._device, self._threads, self._optimizations = dapp, device, threads, optimizations
        self._forward = Forward(dapp, device)
        self._broken = ""
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="device")
        self._answers = ThreadPoolExecutor(max_workers=1, thread_name_prefix="answers")

    @property
    def maximum_batch(self) -> int:
        """Most rows that fit into the device's memory at once, as far as is known."""
        return self._maximum_batch

    @property
    def optimizations(self) -> tuple[str, ...]:
        """The optimizations that keep the DApp's answers within its tolerance."""
        return self._forward.optimizations

    async def start(self) -> str:
        """Loads the weights, warms up on the DApp's example, and returns the device's name."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._start)

    async def run(self, inputs: Inputs) -> Inputs:
        """Runs one batch, arrays [n, *shape] by name; a batch longer than `maximum_batch` runs in parts."""
        running = await asyncio.get_running_loop().run_in_executor(self._thread, self._run, inputs)
        return await asyncio.wrap_future(running) if isinstance(running, Future) else running

    @property
    def depth(self) -> int:
        """How many batches may run at once: one, or two where copying overlaps with computing."""
        return SLOTS if "staged" in self.optimizations else 1

    def check(self) -> None:
        """Checks whether the device has failed, without using it.

        Raises:
            RuntimeError: it has; a process cannot recover from that and must be replaced.
        """
        if self._broken:
            raise RuntimeError(f"the device has failed: {self._broken}")

    def memory_bytes(self) -> int:
        """Memory that torch has reserved on the device, or this process's memory on a CPU."""
        import torch

        return torch.cuda.memory_reserved() if self._device == "cuda" else int(psutil.Process().memory_info().rss)

    def close(self) -> None:
        """Ends the device thread after the batch that runs."""
        self._thread.shutdown(wait=True)
        self._answers.shutdown(wait=True)

    def _start(self) -> str:
        import torch

        if self._threads:
            torch.set_num_threads(self._threads)
        self._device = self._device or ("cuda" if torch.cuda.is_available() else "cpu")
        example = self._dapp.example()
        # First the answer in fp32 on the CPU: the reference for every optimization.
        self._dapp.load("cpu")
        reference = Forward(self._dapp, "cpu")(example)
        if self._device != "cpu":
            self._dapp.load(self._device)
        self._forward = Forward(self._dapp, self._device)
        self._warm(example)  # finds how many rows fit, before optimizations are tried on as many
        names = usual(self._dapp, self._device) if self._optimizations is None else self._optimizations
        self._forward = tuned(self._dapp, self._device, names, self._maximum_batch, reference)
        self._warm(example)
        return self._device

    def _warm(self, example: Inputs) -> None:
        for rows in {1, self._maximum_batch}:
            _joined([self._run({name: np.repeat(array, rows, axis=0) for name, array in example.items()})])

    def _run(self, inputs: Inputs) -> Inputs | Future[Inputs]:
        """Runs in the device's thread: the outputs, or a future of them until they are copied."""
        if self._broken:
            raise _failed()
        rows, at, parts = len(next(iter(inputs.values()))), 0, []
        while at < rows:
            step = min(self._maximum_batch, rows - at)
            part = self._try({name: array[at : at + step] for name, array in inputs.items()}, step)
            if part is not None:
                parts.append(part)
                at += step
        return self._answers.submit(_joined, parts) if self.depth > 1 else _joined(parts)

    def _try(self, inputs: Inputs, rows: int) -> Inputs | Future[Inputs] | None:
        """One part's outputs; None if the device's memory is too small for as many rows: then fewer are tried."""
        import torch

        try:
            answer = self._forward.launch(inputs)
            return self._answers.submit(self._arrived, answer) if self.depth > 1 else self._arrived(answer)
        except torch.OutOfMemoryError:
            if rows == 1:
                raise CallError(
                    "out_of_memory", "the device's memory is too small for this call; it costs nothing"
                ) from None
            self._maximum_batch = max(1, rows // 2)
            log.warning("%s: out of device memory, batches of %d now", type(self._dapp).__name__, self._maximum_batch)
            if self._device == "cuda":
                torch.cuda.empty_cache()
            return None
        except torch.AcceleratorError as error:
            raise self._fail(error) from error

    def _arrived(self, answer: Callable[[], Inputs]) -> Inputs:
        import torch

        try:
            outputs = answer()
        except torch.AcceleratorError as error:
            raise self._fail(error) from error
        # An optional output may be absent, with the inputs that it comes from; any other missing output is an error.
        present = [tensor for tensor in self._dapp.outputs if not tensor.optional or tensor.name in outputs]
        return {tensor.name: checked(outputs[tensor.name], tensor) for tensor in present}

    def _fail(self, error: Exception) -> CallError:
        # After an error a CUDA context is lost for good: every later call in this process would fail too.
        self._broken = type(error).__name__
        return _failed()


def _joined(parts: list[Inputs | Future[Inputs]]) -> Inputs:
    # One thread reads all answers in their order, so the parts' futures are done before it joins them.
    outputs = [part.result() if isinstance(part, Future) else part for part in parts]
    return {name: np.concatenate([part[name] for part in outputs]) for name in outputs[0]}


def _failed() -> CallError:
    return CallError("device_failed", "the device of this replica has failed and is replaced; the call costs nothing")


def checked(array: np.ndarray[Any, Any], declared: Tensor) -> np.ndarray[Any, Any]:
    """Converts an output to its declared dtype.

    Args:
        array: [n, *shape].
        declared: the DApp's output.

    Raises:
        CallError: `not_finite`.
        RuntimeError: its shape is not the declared one.
    """
    if not declared.accepts(array.shape[1:]):
        raise RuntimeError(f"output {declared.name} is not of its declared shape")
    array = array.astype(declared.dtype, copy=False)
    if declared.is_float and not np.isfinite(array).all():
        raise CallError("not_finite", "the model's answer is not a finite number; nothing was charged")
    return array
