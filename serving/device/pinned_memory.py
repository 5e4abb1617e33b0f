"""`Staging`: a ring of host memory from which a device copies while it computes.

Inputs go in on one stream and answers come out on another, so that the next batch is already there when the device is
free, and an answer on its way stalls nobody. On CUDA the memory is pinned; on the CPU the same steps run, without any
gain. Knows torch, no DApp. Used by `levers.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np

from dapps.api import DTYPES, Array, Inputs, from_torch, to_torch

if TYPE_CHECKING:
    import torch

SLOTS = 2
"""Batches between the host and the device: one that computes and one that is copied."""
Compute = Callable[[dict[str, Any]], dict[str, Any]]


class Staging:
    """The streams and the ring of one device thread.

    Args:
        device: ``"cuda"``, or ``"cpu"``, whose streams do nothing.
    """

    def __init__(self, device: str) -> None:
        import torch

        self._device = device
        self._kind: Any = torch.cuda if device == "cuda" else torch.cpu
        self._inwards, self._outwards = self._kind.Stream(), self._kind.Stream()
        self._free: SimpleQueue[_Slot] = SimpleQueue()
        for _ in range(SLOTS):
            self._free.put(_Slot(device))

    def launch(self, compute: Compute, inputs: Inputs) -> Callable[[], Inputs]:
        """Starts a batch, arrays [n, *shape] by name; what is returned waits for its answer, in any thread, once.

        A slot belongs to one batch until its answer has been taken: no batch can write over another's rows.
        """
        slot = self._free.get()
        try:
            here = self._kind.current_stream()
            with self._kind.stream(self._inwards):
                tensors = {name: slot.placed(name, array) for name, array in inputs.items()}
            here.wait_stream(self._inwards)
            self._used_on(here, tensors)
            outputs = compute(tensors)
            self._outwards.wait_stream(here)
            self._used_on(self._outwards, outputs)
            with self._kind.stream(self._outwards):
                hosted = {name: slot.hosted(name, value) for name, value in outputs.items()}
                arrived = self._kind.Event(blocking=True) if self._device == "cuda" else self._kind.Event()
                arrived.record(self._outwards)
        except BaseException:
            self._free.put(slot)
            raise

        def answer() -> Inputs:
            try:
                arrived.synchronize()
                return {name: np.array(from_torch(value)) for name, value in hosted.items()}
            finally:
                self._free.put(slot)

        return answer

    def _used_on(self, stream: Any, tensors: dict[str, Any]) -> None:
        # The allocator would give the memory to the next batch while this stream still reads it.
        for value in tensors.values():
            if getattr(value, "is_cuda", False):
                value.record_stream(stream)


class _Slot:
    """Buffers of one batch, by name and direction; each grows to the largest that it has held."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._buffers: dict[tuple[str, str], torch.Tensor] = {}

    def placed(self, name: str, array: Array) -> Any:
        """The array on the device; BYTES, for which torch has no type, stay an array."""
        if array.dtype == DTYPES["BYTES"]:
            return np.array(array)
        flat = self._buffer("in", name, array.nbytes)
        flat.numpy()[:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        like = to_torch(array[:0], "cpu")
        return flat.view(like.dtype).view(array.shape).to(self._device, non_blocking=True, copy=True)

    def hosted(self, name: str, value: Any) -> Any:
        """A tensor's copy in host memory, there when its stream is; an array as it is."""
        if isinstance(value, np.ndarray):
            return value
        flat = self._buffer("out", name, value.numel() * value.element_size())
        return flat.view(value.dtype).view(value.shape).copy_(value, non_blocking=True)

    def _buffer(self, way: str, name: str, size: int) -> torch.Tensor:
        import torch

        kept = self._buffers.get((way, name))
        if kept is None or len(kept) < size:
            kept = self._buffers[way, name] = torch.empty(size, dtype=torch.uint8, pin_memory=self._device == "cuda")
        return kept[:size]
