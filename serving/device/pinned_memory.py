"""Copies batches to and from the device through a ring of pinned host memory, while the device computes.

Inputs are copied on one stream and outputs on another: the next batch is on the device when that is free, and copying
an answer stalls nothing. On CUDA the memory is pinned; on the CPU the same steps run without any gain.
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
"""Batches in flight: one computes while another is copied."""
Compute = Callable[[dict[str, Any]], dict[str, Any]]


class StagingRing:
    """The streams and the ring of one device thread.

    Args:
        device: ``"cuda"``, or ``"cpu"``, whose streams have no effect.
    """

    def __init__(self, device: str) -> None:
        import torch

        self._device = device
        self._kind: Any = torch.cuda if device == "cuda" else torch.cpu
        self._copy_in, self._copy_out = self._kind.Stream(), self._kind.Stream()
        self._free: SimpleQueue[_Slot] = SimpleQueue()
        for _ in range(SLOTS):
            self._free.put(_Slot(device))

    def launch(self, compute: Compute, inputs: Inputs) -> Callable[[], Inputs]:
        """Starts a batch, arrays [n, *shape] by name, and returns a function that waits for its answer.

        The function may be called once, in any thread. A slot belongs to one batch until its answer has been read, so
        no batch can overwrite another's rows.
        """
        slot = self._free.get()
        try:
            compute_stream = self._kind.current_stream()
            with self._kind.stream(self._copy_in):
                tensors = {name: slot.to_device(name, array) for name, array in inputs.items()}
            compute_stream.wait_stream(self._copy_in)
            self._used_on(compute_stream, tensors)
            outputs = compute(tensors)
            self._copy_out.wait_stream(compute_stream)
            self._used_on(self._copy_out, outputs)
            with self._kind.stream(self._copy_out):
                outputs_host = {name: slot.to_host(name, value) for name, value in outputs.items()}
                copied = self._kind.Event(blocking=True) if self._device == "cuda" else self._kind.Event()
                copied.record(self._copy_out)
        except BaseException:
            self._free.put(slot)
            raise

        def answer() -> Inputs:
            try:
                copied.synchronize()
                return {name: np.array(from_torch(value)) for name, value in outputs_host.items()}
            finally:
                self._free.put(slot)

        return answer

    def _used_on(self, stream: Any, tensors: dict[str, Any]) -> None:
        # Without this the allocator would reuse the memory for the next batch while this stream still reads it.
        for value in tensors.values():
            if getattr(value, "is_cuda", False):
                value.record_stream(stream)


class _Slot:
    """Buffers of one batch, by direction and name; each grows to the longest tensor that it has held."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._buffers: dict[tuple[str, str], torch.Tensor] = {}

    def to_device(self, name: str, array: Array) -> Any:
        """The array on the device; BYTES stay an array, for torch has no such type."""
        if array.dtype == DTYPES["BYTES"]:
            return np.array(array)
        flat = self._buffer("in", name, array.nbytes)
        flat.numpy()[:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        like = to_torch(array[:0], "cpu")
        return flat.view(like.dtype).view(array.shape).to(self._device, non_blocking=True, copy=True)

    def to_host(self, name: str, value: Any) -> Any:
        """A tensor's copy in host memory, complete once the current stream is; an array is returned unchanged."""
        if isinstance(value, np.ndarray):
            return value
        flat = self._buffer("out", name, value.numel() * value.element_size())
        return flat.view(value.dtype).view(value.shape).copy_(value, non_blocking=True)

    def _buffer(self, direction: str, name: str, size: int) -> torch.Tensor:
        import torch

        buffer = self._buffers.get((direction, name))
        if buffer is None or len(buffer) < size:
            buffer = torch.empty(size, dtype=torch.uint8, pin_memory=self._device == "cuda")
            self._buffers[direction, name] = buffer
        return buffer[:size]
