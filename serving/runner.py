"""`TorchRunner`: one dedicated thread owns the device and runs a DApp's batches on it.

The event loop never touches torch: a batch in the loop would hold up health checks and every other call. Owns device
choice, warm-up and the copies to and from the device; knows nothing of calls or callers. Next: `dapps/api.py`.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from dapps import DApp
from dapps.arrays import from_torch, to_torch
from dapps.types import Inputs, Tensor
from serving.errors import CallError


class TorchRunner:
    """Runs one DApp on `device` (``"cpu"``, ``"cuda"``; empty: CUDA if there is one).

    At most `maximum_batch` rows at once; 0: as many as the DApp says.
    """

    def __init__(self, dapp: DApp, device: str = "", threads: int = 0, maximum_batch: int = 0) -> None:
        self._maximum_batch = maximum_batch or dapp.maximum_batch
        self._dapp = dapp
        self._device = device
        self._threads = threads
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="device")

    async def start(self) -> str:
        """Loads the weights, warms up on the DApp's example, and returns the device's name."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._start)

    async def run(self, inputs: Inputs) -> Inputs:
        """Runs one batch, arrays [n, *shape] by name; a batch longer than the DApp's maximum goes in parts."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._run, inputs)

    async def check(self) -> None:
        """Runs the example: a device that cannot do that is not healthy."""
        await self.run(self._dapp.example())

    def close(self) -> None:
        """Ends the device thread after the batch it is running."""
        self._thread.shutdown(wait=True)

    def _start(self) -> str:
        import torch

        if self._threads:
            torch.set_num_threads(self._threads)
        self._device = self._device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._dapp.load(self._device)
        example = self._dapp.example()
        for rows in {1, self._maximum_batch}:
            self._run({name: np.repeat(array, rows, axis=0) for name, array in example.items()})
        return self._device

    def _run(self, inputs: Inputs) -> Inputs:
        rows, step = len(next(iter(inputs.values()))), self._maximum_batch
        parts = [self._part({n: a[at : at + step] for n, a in inputs.items()}) for at in range(0, rows, step)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _part(self, inputs: Inputs) -> Inputs:
        import torch

        with torch.inference_mode():
            tensors = {name: to_torch(array, self._device) for name, array in inputs.items()}
            outputs = self._dapp.forward(**tensors)
            # An optional output is there when the inputs it comes from are; any other that is missing is an error.
            given = [tensor for tensor in self._dapp.outputs if not tensor.optional or tensor.name in outputs]
            found = {tensor.name: from_torch(outputs[tensor.name]) for tensor in given}
        return {tensor.name: _checked(found[tensor.name], tensor) for tensor in given}


def _checked(array: np.ndarray[Any, Any], declared: Tensor) -> np.ndarray[Any, Any]:
    if not declared.accepts(array.shape[1:]):
        raise RuntimeError(f"output {declared.name} is not of its declared shape")
    array = array.astype(declared.dtype, copy=False)
    if declared.is_float and not np.isfinite(array).all():
        raise CallError("not_finite", "the model's answer is not a finite number; nothing was charged")
    return array
