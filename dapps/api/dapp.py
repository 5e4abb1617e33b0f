"""Defines `DApp`, the one class that an author writes.

A DApp declares its tensors, price and shares, loads a torch module on a device and answers batches. The mesh does the
rest: batching, metering, settlement. The built-in DApps (`dapps/chdr`, `dapps/strokedr`) use the same class. Never
imports torch.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from dapps.api import calls, manifest
from dapps.api.manifest import Manifest, packaged
from dapps.api.scoring import Scored, Skipped
from dapps.api.types import (
    Case,
    ClinicalFile,
    Inputs,
    IntakeRefused,
    Prepared,
    Price,
    Provenance,
    Report,
    Shares,
    Tensor,
)
from dapps.api.version import PackageVersion, package_metadata

MAX_SAMPLES = 16
"""Most samples that a mesh offers free of charge; further ones are left out."""

Progress = Callable[[str, int, int], None]
"""Called with the step, how much of it is done, and how much there is."""

if TYPE_CHECKING:
    import torch


class DApp(ABC):
    """A diagnostic application: declared tensors in, declared tensors out, a price per item.

    Class attributes an author sets:
        version: semantic version of code and weights together; by default that of its package.
        inputs, outputs: `Tensor`s per item; at call time every array has a leading batch dimension.
        price: atomic units of the settlement asset per item.
        shares: basis points per carrier.
        maximum_batch: most items of one `forward`.
    """

    version: ClassVar[str] = PackageVersion()  # type: ignore[assignment] # mypy takes no descriptor for its value
    inputs: ClassVar[Sequence[Tensor]]
    outputs: ClassVar[Sequence[Tensor]]
    price: ClassVar[Price]
    shares: ClassVar[Shares] = Shares()
    maximum_batch: ClassVar[int] = 32
    guidelines: ClassVar[Sequence[str]] = ()
    """Names of the guidelines it weighs: their digests are part of its own, so a changed threshold is another DApp."""
    tolerance: ClassVar[float] = 1e-3
    """Largest absolute difference from fp32 on CPU that an optimization may cause in an output."""
    precisions: ClassVar[Sequence[str]] = ()
    """Half precisions, of ``"bf16"`` and ``"fp16"``, in which the model may run while it keeps its tolerance."""
    thresholds: ClassVar[Mapping[str, float]] = {}
    """Numbers by name that decide its answers; read them as ``self.thresholds[…]`` at each answer.

    An operator may change them while it runs; receipts and reports then carry another digest.
    """
    calls: ClassVar[Sequence[str]] = ()
    """Names of the DApps that it calls for a part of its answer, see `call`.

    Such a DApp runs each call alone, in a thread of its own, and is priced by item: its own price pays for the DApps
    that it calls.
    """
    title: ClassVar[str] = ""
    """Its name on pages; by default the name of the class."""

    def __init_subclass__(cls, **arguments: Any) -> None:
        """Takes the package's version while the class is defined: later its module may be that of the next version."""
        super().__init_subclass__(**arguments)
        if isinstance(inspect.getattr_static(cls, "version"), PackageVersion):
            metadata = package_metadata(cls.__module__)
            if metadata is not None:
                cls.version = metadata.version

    @abstractmethod
    def load(self, device: str) -> None:
        """Loads weights onto `device` (``"cpu"`` or ``"cuda"``), in the thread that runs `forward`.

        Called once for the CPU, whose answer to the example is the reference for every device, then once for the device
        if that is another. The runner may change the memory layout of modules that are attributes of the DApp.
        """

    @abstractmethod
    def forward(self, **tensors: torch.Tensor) -> dict[str, torch.Tensor]:
        """Answers one batch: tensors [n, *shape] by input name in, tensors [n, *shape] by output name out.

        Row i of every output depends on row i of the inputs alone. Torch has no type for BYTES: such inputs and outputs
        are numpy arrays of `bytes` objects.
        """

    @abstractmethod
    def example(self) -> Inputs:
        """One realistic item, arrays of shape [1, *shape]: used for warm-up, health checks and documentation."""

    def call(self, name: str, **tensors: Any) -> dict[str, Any]:
        """Calls another DApp from `forward` or `conclude`, within the quote of the call that is being answered.

        This DApp's price for the call pays the other's owners, and the other's receipt is embedded in the caller's. A
        failed call costs nothing, and this DApp may answer without it.

        Args:
            name: one of `calls`.
            tensors: arrays or tensors [n, *shape] by the other's input names.

        Returns:
            The other's outputs [n, *shape] by name: tensors on the same device if any input is a tensor, else arrays.

        Raises:
            ChildFailed: it did not answer. Unhandled, this call fails too, and nobody is paid.
        """
        if name not in self.calls:
            raise calls.ChildFailed("child_undeclared", f"{name} is not among the `calls` of {type(self).__name__}")
        return calls.call(name, tensors)

    def intake(self, file: ClinicalFile) -> Inputs:
        """Reads a clinical file into input arrays [n, *shape].

        Raises:
            IntakeRefused: if the file cannot or must not be answered.
        """
        raise IntakeRefused("no_intake", "this DApp takes tensors only: call its infer route")

    def report(self, outputs: Inputs) -> Report:
        """Turns the outputs for one clinical file, arrays [n, *shape], into a `Report`."""
        raise IntakeRefused("no_report", "this DApp answers tensors only: call its infer route")

    def prepare(self, case: Case) -> Prepared:
        """Reads a whole case into items; by default one file through `intake`, and no record.

        Override this instead of `intake` to take several files or a record.

        Raises:
            IntakeRefused: if the case cannot or must not be answered.
        """
        if len(case.files) != 1 or case.record is not None:
            raise IntakeRefused("one_file", "this DApp takes exactly one file and no record")
        rows = self.intake(case.files[0])
        count = len(next(iter(rows.values())))
        return Prepared(tuple({name: array[at : at + 1] for name, array in rows.items()} for at in range(count)))

    def conclude(self, prepared: Prepared, outputs: Sequence[Inputs]) -> Report:
        """Turns the outputs of all items, in their order, into a `Report`; by default through `report`."""
        return self.report({name: np.concatenate([item[name] for item in outputs]) for name in outputs[0]})

    def picture(self, prepared: Prepared, outputs: Sequence[Inputs], report: Report) -> bytes:
        """A PNG of the input and the findings; runs off the event loop."""
        raise IntakeRefused("no_picture", "this DApp draws no picture: ask for another view")

    def evaluate(self, data: Path, held_out: bool, progress: Progress) -> Iterator[Scored | Skipped]:
        """Answers a folder of labelled data with the loaded weights; by default nothing.

        Args:
            data: a folder of the layout that the training script reads.
            held_out: only rows that the model's card names as held out; else every row.
            progress: called with (step, done, all) now and then.
        """
        return iter(())

    def sample(self) -> ClinicalFile:
        """A valid clinical file without any real person's data, for examples and tests."""
        raise IntakeRefused("no_sample", "this DApp has no sample file")

    def samples(self) -> dict[str, Case]:
        """Cases without any real person's data that visitors of the mesh try free of charge, by a short name.

        By default the one of `sample()`; empty for a DApp that takes tensors only: visitors then try `example()`.
        """
        try:
            return {"sample": Case((self.sample(),))}
        except IntakeRefused:
            return {}

    def sample_names(self) -> list[str]:
        """The names of `samples()`, which the catalogue shows."""
        return list(self.samples())

    @cached_property
    def manifest(self) -> Manifest:
        """Digests of code, weights, card and guidelines, one by one and all together."""
        declared = type(self).thresholds
        changed = {name: value for name, value in self.thresholds.items() if declared.get(name) != value}
        return manifest.manifest_of(type(self), self.version, self.guidelines, changed)

    @property
    def digest(self) -> str:
        """SHA-256 over every packaged file beside the class, guidelines, changed thresholds: it is in every receipt."""
        return self.manifest.dapp

    @cached_property
    def card_files(self) -> tuple[tuple[str, bytes], ...]:
        """The model cards packaged beside the class, (path, content) sorted by path."""
        package = sorted(manifest.packaged_beside(type(self)))
        return tuple((path, content) for path, content in package if path.rpartition("/")[2] == "CARD.yaml")

    @cached_property
    def provenance(self) -> Provenance:
        """The package, weights and intake that answer: digests that go into every report."""
        intake = manifest.digest(packaged(files("dapps.intake")))
        return Provenance(type(self).__qualname__, self.version, self.digest, self.manifest.weights, intake)

    @property
    def release(self) -> str:
        """What answers, as receipts name it: the version, then name, version and digest of each guideline."""
        names = [".".join(guideline) for guideline in self.manifest.guidelines]
        return "+".join([self.version, ".".join(names)]) if names else self.version

    @property
    def description(self) -> str:
        """The first line of the class's docstring."""
        return (inspect.getdoc(type(self)) or "").split("\n", 1)[0]
