"""Runs an isolated DApp's batches in its child."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import psutil

from dapps import IntakeRefused
from dapps.api import Inputs
from serving.errors import CallError, StartError
from serving.isolation.dapp import IsolatedDApp
from serving.isolation.messages import pack, unpack
from serving.isolation.process import validated

T = TypeVar("T")


class IsolatedRunner:
    """Runs one isolated DApp's batches in its child, in the place of a `TorchRunner`.

    Args:
        dapp: from `open_dapp`.
        device: as for `TorchRunner`, chosen in the child.
        threads: torch threads of the child on CPU.
        maximum_batch: maximum rows of a batch; 0: the DApp's own maximum.
        optimizations: as for `TorchRunner`, tried in the child.
    """

    depth = 1
    """The child answers one message at a time."""

    def __init__(
        self,
        dapp: IsolatedDApp,
        device: str = "",
        threads: int = 0,
        maximum_batch: int = 0,
        optimizations: Sequence[str] | None = None,
    ) -> None:
        self._dapp = dapp
        self._start = {
            "do": "start",
            "device": device,
            "threads": threads,
            "maximum_batch": maximum_batch or dapp.maximum_batch,
            "optimizations": None if optimizations is None else list(optimizations),
        }
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="isolated")

    async def start(self) -> str:
        """Loads the weights in the child and warms it up; returns the device's name.

        Raises:
            StartError: the child cannot be started, or the DApp fails to load.
        """
        try:
            answer = await self._threaded(self._dapp.child.begin, self._start)
        except (CallError, IntakeRefused) as error:
            raise StartError(error.message) from error
        return str(answer.get("device", ""))[:32]

    async def run(self, inputs: Inputs) -> Inputs:
        """Runs one batch, arrays [n, *shape] by name.

        Raises:
            CallError: as `Child.ask`, or `not_finite`.
        """
        return await self._threaded(self._run, inputs)

    def check(self) -> None:
        """Never fails: a child whose device has failed is killed at once, and the next call starts a fresh one."""

    def memory_bytes(self) -> int:
        """Bytes of main memory held by the child and all that it started."""
        try:
            child = psutil.Process(self._dapp.child.pid or -1)
            return sum(int(process.memory_info().rss) for process in (child, *child.children(recursive=True)))
        except (psutil.Error, ValueError):
            return 0  # it has just been killed

    def close(self) -> None:
        """Kills the child; none is started again."""
        self._dapp.child.close()
        self._thread.shutdown(wait=True)

    async def _threaded(self, work: Callable[..., T], *values: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *values)

    def _run(self, inputs: Inputs) -> Inputs:
        rows, blobs = pack(inputs)
        _, answer, data = self._dapp.child.ask({"do": "run", "tensors": rows}, blobs)
        outputs = validated(lambda: unpack(answer["tensors"], data, self._dapp.outputs))
        for tensor in self._dapp.outputs:
            if tensor.is_float and tensor.name in outputs and not np.isfinite(outputs[tensor.name]).all():
                raise CallError("not_finite", "the model's answer is not a finite number; nothing was charged")
        return outputs
