"""`DApp`: the one class an author writes. READ FIRST.

A DApp declares its tensors, price and shares, loads a torch module on a device and answers batches. The mesh does the
rest: batching, metering, settlement. The built-in DApps (`dapps/chdr`, `dapps/strokedr`) use only what is here.
Never imports torch. Next: `dapps/types.py` for the nouns, `dapps/registry.py` for how a DApp is found.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dapps.types import ClinicalFile, Inputs, IntakeRefused, Price, Report, Shares, Tensor

if TYPE_CHECKING:
    import torch

    from dapps.knowledge import Guideline


class DApp(ABC):
    """A diagnostic application: declared tensors in, declared tensors out, a price per item.

    Class attributes an author sets:
        version: semantic version of code and weights together.
        inputs, outputs: `Tensor`s per item; at call time every array has a leading batch dimension.
        price: atomic units of the settlement asset per item.
        shares: basis points per carrier.
        maximum_batch: most items that one `forward` is given.
    """

    version: ClassVar[str]
    inputs: ClassVar[Sequence[Tensor]]
    outputs: ClassVar[Sequence[Tensor]]
    price: ClassVar[Price]
    shares: ClassVar[Shares] = Shares()
    maximum_batch: ClassVar[int] = 32
    guidelines: ClassVar[Sequence[str]] = ()
    """Names of the guidelines it weighs: their digests are part of its own, so a changed threshold is another DApp."""
    tolerance: ClassVar[float] = 1e-3
    """Largest absolute difference from fp32 on CPU that any lever may cause in an output."""

    @abstractmethod
    def load(self, device: str) -> None:
        """Loads weights onto `device` (``"cpu"`` or ``"cuda"``); called once, in the thread that runs `forward`."""

    @abstractmethod
    def forward(self, **tensors: torch.Tensor) -> dict[str, torch.Tensor]:
        """Answers one batch: tensors [n, *shape] by input name in, tensors [n, *shape] by output name out.

        Row i of every output depends on row i of the inputs alone. BYTES is the exception that torch has no type for:
        such inputs come, and such outputs are given, as numpy arrays of `bytes` objects.
        """

    @abstractmethod
    def example(self) -> Inputs:
        """One realistic item, arrays of shape [1, *shape]: used for warm-up, health checks and documentation."""

    def intake(self, file: ClinicalFile) -> Inputs:
        """Reads a clinical file into input arrays [n, *shape].

        Raises:
            IntakeRefused: if the file cannot or must not be answered.
        """
        raise IntakeRefused("no_intake", "this DApp takes tensors only: call its infer route")

    def report(self, outputs: Inputs) -> Report:
        """Turns the outputs for one clinical file, arrays [n, *shape], into a `Report`."""
        raise IntakeRefused("no_report", "this DApp answers tensors only: call its infer route")

    def sample(self) -> ClinicalFile:
        """A valid clinical file without any real person's data, for examples and tests."""
        raise IntakeRefused("no_sample", "this DApp has no sample file")

    @cached_property
    def digest(self) -> str:
        """SHA-256 over every packaged file beside the class, and its guidelines; it goes into every receipt."""
        module = sys.modules[type(self).__module__]
        total = hashlib.sha256(f"{type(self).__qualname__}\0{self.version}\0".encode())
        if module.__package__:
            found = _packaged(files(module.__package__))
        else:  # a class in a script, while it is being developed
            source = getattr(module, "__file__", None)
            found = [("", Path(source).read_bytes())] if source else []
        for name, content in sorted(found):
            total.update(name.encode() + b"\0" + hashlib.sha256(content).digest())
        for guideline in self._weighed:
            total.update(f"guideline\0{guideline.id}\0{guideline.digest}\0".encode())
        return total.hexdigest()

    @cached_property
    def release(self) -> str:
        """What answers, as receipts name it: the version, then name, version and digest of each guideline."""
        named = [f"{each.id}.{each.sheet.version}.{each.digest}" for each in self._weighed]
        return "+".join([self.version, ".".join(named)]) if named else self.version

    @cached_property
    def _weighed(self) -> tuple[Guideline, ...]:
        from dapps.knowledge import find

        return tuple(find(name) for name in self.guidelines)

    @property
    def description(self) -> str:
        """The first line of the class's docstring."""
        return (inspect.getdoc(type(self)) or "").split("\n", 1)[0]


def _packaged(folder: Any, prefix: str = "") -> list[tuple[str, bytes]]:
    found: list[tuple[str, bytes]] = []
    for entry in folder.iterdir():
        if entry.name == "__pycache__":
            continue
        path = f"{prefix}{entry.name}"
        found += _packaged(entry, f"{path}/") if entry.is_dir() else [(path, entry.read_bytes())]
    return found
