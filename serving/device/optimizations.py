"""Makes a DApp's forward faster with those optimizations that keep its answers within the DApp's tolerance.

At warm-up the example is answered in fp32 on the CPU. An optimization that moves an output further from that answer
than `DApp.tolerance` is refused, and the reason is logged once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np

from dapps import DApp
from dapps.api import Inputs, from_torch, to_torch
from serving.device.pinned_memory import StagingRing

if TYPE_CHECKING:
    import torch

log = logging.getLogger("leben.optimizations")

NAMES = ("tf32", "channels_last", "bf16", "fp16", "compile", "graph", "staged")
"""In the order in which they are tried, each on top of those accepted before it."""
GRAPH_BUCKETS = (1, 2, 4, 8, 16, 32, 64)
CUDA_ONLY = frozenset({"tf32", "fp16", "graph"})


def usual(dapp: DApp, device: str) -> tuple[str, ...]:
    """The optimizations that are on by default: those that `docs/performance.md` shows to be faster on the device."""
    import torch

    if device != "cpu" or not _modules(dapp):
        return ()  # without a network there is no layout to change, only inputs to copy for nothing
    features = torch.cpu.get_capabilities()
    half = "bf16" in dapp.precisions and (features.get("avx512_bf16") or features.get("amx_bf16"))
    return ("channels_last", "bf16") if half else ("channels_last",)


class Refused(Exception):
    """An optimization that cannot be used here; the text says why."""


class Forward:
    """One DApp's forward on one device, numpy in and numpy out, with the optimizations that are switched on.

    Not thread-safe: it belongs to the device's thread.

    Args:
        dapp: loaded on `device`.
        device: ``"cpu"`` or ``"cuda"``.
    """

    def __init__(self, dapp: DApp, device: str) -> None:
        self._dapp, self._device = dapp, device
        self._compiled: Callable[..., Any] | None = None
        self._graphs: dict[int, _Graph] = {}
        self._staging: StagingRing | None = None
        self.optimizations: tuple[str, ...] = ()
        self.tolerance = dapp.tolerance

    def __call__(self, inputs: Inputs) -> Inputs:
        """Computes one batch, arrays [n, *shape] by name."""
        return self.launch(inputs)()

    def launch(self, inputs: Inputs) -> Callable[[], Inputs]:
        """Starts one batch and returns a function that gives its outputs, in any thread; `staged`, it may still run."""
        import torch

        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
                if name in self.optimizations:
                    stack.enter_context(torch.autocast(self._device, dtype=dtype))
            if self._staging is not None:
                return self._staging.launch(self._computed, inputs)
            outputs = self._computed({name: to_torch(array, self._device) for name, array in inputs.items()})
            answer = {name: from_torch(value) for name, value in outputs.items()}
        return lambda: answer

    def _computed(self, inputs: dict[str, Any]) -> dict[str, Any]:
        tensors = {name: self._laid_out(value) for name, value in inputs.items()}
        rows = len(next(iter(tensors.values())))
        graph = self._graphs.get(_bucket(rows, self._graphs))
        outputs: dict[str, Any]
        if graph and graph.fits(tensors):
            outputs = graph.replay(tensors, rows)
        else:
            outputs = (self._compiled or self._dapp.forward)(**tensors)
        return outputs

    def use(self, optimizations: tuple[str, ...], maximum_batch: int) -> None:
        """Switches to exactly these optimizations.

        Raises:
            Refused: one of them cannot be used here.
        """
        import torch

        for name in optimizations:
            self._check(name)
        self.optimizations, self._graphs, self._compiled, self._staging = optimizations, {}, None, None
        layout = torch.channels_last if "channels_last" in optimizations else torch.contiguous_format
        for module in _modules(self._dapp):
            module.to(memory_format=layout)
        if self._device == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = "tf32" in optimizations
        if "compile" in optimizations:
            self._compiled = torch.compile(self._dapp.forward, dynamic=False)
        if "graph" in optimizations:
            self._capture(maximum_batch)
        if "staged" in optimizations:
            self._staging = StagingRing(self._device)

    def _check(self, name: str) -> None:
        if name not in NAMES:
            raise Refused(f"there is no such optimization; one of {', '.join(NAMES)}")
        if name in CUDA_ONLY and self._device != "cuda":
            raise Refused("it needs a CUDA device")
        if name in ("bf16", "fp16") and name not in self._dapp.precisions:
            raise Refused("the DApp does not name it in `precisions`")

    def _laid_out(self, tensor: Any) -> Any:
        import torch

        if "channels_last" in self.optimizations and isinstance(tensor, torch.Tensor) and tensor.dim() == 4:
            return tensor.contiguous(memory_format=torch.channels_last)
        return tensor

    def _capture(self, maximum_batch: int) -> None:
        example = self._dapp.example()
        for rows in sorted({min(rows, maximum_batch) for rows in (*GRAPH_BUCKETS, maximum_batch)}):
            batch = {name: np.repeat(array, rows, axis=0) for name, array in example.items()}
            self(batch)  # outside the capture: this run chooses kernels and allocates memory
            tensors = {name: self._laid_out(to_torch(array, self._device)) for name, array in batch.items()}
            self._graphs[rows] = _Graph(self._compiled or self._dapp.forward, tensors)


class _Graph:
    """A captured forward for one number of rows; shorter batches are padded with copies of their last row."""

    def __init__(self, forward: Callable[..., Any], tensors: dict[str, torch.Tensor]) -> None:
        import torch

        self._inputs = {name: tensor.clone() for name, tensor in tensors.items()}
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._outputs = forward(**self._inputs)

    def fits(self, tensors: dict[str, torch.Tensor]) -> bool:
        """True if these are the captured inputs, apart from the number of rows."""
        return tensors.keys() == self._inputs.keys() and all(
            tensor.shape[1:] == self._inputs[name].shape[1:] for name, tensor in tensors.items()
        )

    def replay(self, tensors: dict[str, torch.Tensor], rows: int) -> dict[str, torch.Tensor]:
        for name, tensor in tensors.items():
            self._inputs[name][:rows].copy_(tensor)
            self._inputs[name][rows:].copy_(tensor[-1:])
        self._graph.replay()
        return {name: value[:rows].clone() for name, value in self._outputs.items()}


def tuned(dapp: DApp, device: str, names: Sequence[str], maximum_batch: int, reference: Inputs) -> Forward:
    """The DApp's forward with those of the named optimizations that keep its answers within its tolerance.

    Args:
        dapp: loaded on `device`.
        device: ``"cpu"`` or ``"cuda"``.
        names: some of `NAMES`, in any order.
        maximum_batch: most rows of one batch.
        reference: the answer to the example in fp32 on the CPU, arrays [1, *shape].
    """
    forward = Forward(dapp, device)
    example = dapp.example()
    batch = {name: np.repeat(array, maximum_batch, axis=0) for name, array in example.items()}
    unknown = [name for name in names if name not in NAMES]
    for name in [*unknown, *(name for name in NAMES if name in names)]:
        before = forward.optimizations
        try:
            # A failed compilation leaves torch unusable in its thread, so it must not run in the device's.
            with ThreadPoolExecutor(max_workers=1) as thread:
                thread.submit(_try, forward, (*before, name), maximum_batch, (example, batch), reference).result()
        except Exception as error:  # optimizations are optional: whatever one raises, the model answers without it
            why = str(error) if isinstance(error, Refused) else type(error).__name__
            log.warning("%s: optimization %s is off: %s", type(dapp).__name__, name, why)
            forward.use(before, maximum_batch)
    return forward


def _try(
    forward: Forward, optimizations: tuple[str, ...], maximum_batch: int, batches: Sequence[Inputs], reference: Inputs
) -> None:
    forward.use(optimizations, maximum_batch)
    for batch in batches:
        _compare(forward(batch), reference, forward.tolerance)


def _compare(outputs: Inputs, reference: Inputs, tolerance: float) -> None:
    for name, expected in reference.items():
        rows = np.repeat(expected, len(outputs[name]), axis=0)
        if expected.dtype.kind in "fV":
            shift = float(np.max(np.abs(outputs[name].astype(np.float64) - rows.astype(np.float64)), initial=0.0))
            if not shift <= tolerance:  # not `>`: NaN is refused too
                raise Refused(f"it moves {name} by {shift:.2g}, and the DApp's tolerance is {tolerance:.2g}")
        elif not np.array_equal(outputs[name], rows):
            raise Refused(f"it changes {name}")


def _bucket(rows: int, graphs: dict[int, Any]) -> int:
    return min((size for size in graphs if size >= rows), default=0)


def _modules(dapp: DApp) -> list[Any]:
    import torch

    return [value for value in vars(dapp).values() if isinstance(value, torch.nn.Module)]
