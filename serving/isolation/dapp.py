"""Represents a stranger's DApp in the replica, while its code runs in a process of its own.

The replica never imports its package: the declaration comes in a message, and every answer is checked as if a caller
had sent it.
"""

from __future__ import annotations

import re
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from dapps import Case, ClinicalFile, DApp, IntakeRefused, Price, Report, Shares, Tensor
from dapps.api import MAX_SAMPLES, Inputs, Manifest, Prepared, Provenance
from serving.errors import StartError
from serving.isolation.messages import Json, pack, read_report, unpack, unpack_items
from serving.isolation.process import MAX_TEXT, Child, broken, canonical, validated
from serving.isolation.spec import Isolation

VERSION = re.compile(r"[A-Za-z0-9._-]{1,64}")
RELEASE = re.compile(r"[A-Za-z0-9._+-]{1,1024}")
DIGEST = re.compile(r"[0-9a-f]{64}")
MAX_CARDS, MAX_TITLE, MAX_BATCH = 32, 100, 1 << 16
PNG = b"\x89PNG\r\n\x1a\n"


class CaseHandle:
    """A case that a child keeps; once this object is gone, the child is told to forget it."""

    def __init__(self, run: int, case: int, gone: deque[tuple[int, int]]) -> None:
        self.run, self.case = run, case
        weakref.finalize(self, gone.append, (run, case))


class IsolatedDApp(DApp):
    """An isolated DApp's declaration, and its clinical steps, each carried out by the child.

    `open_dapp` makes a class of it for each DApp; `child` is the process that answers.
    """

    child: Child
    card_files: tuple[tuple[str, bytes], ...]
    _example: Inputs
    _sample_names: tuple[str, ...]

    def load(self, device: str) -> None:
        """Never called: weights are loaded in the child alone."""
        raise RuntimeError("an isolated DApp is run by IsolatedRunner")

    def forward(self, **tensors: Any) -> dict[str, Any]:
        """Never called, as `load`."""
        raise RuntimeError("an isolated DApp is run by IsolatedRunner")

    def example(self) -> Inputs:
        """The example of the declaration, [n, *shape] by name."""
        return {name: array.copy() for name, array in self._example.items()}

    def sample_names(self) -> list[str]:
        """The names of the declaration: they are known when the child has ended."""
        return list(self._sample_names)

    def sample(self) -> ClinicalFile:
        """The first file of the first sample case."""
        files = next((case.files for case in self.samples().values()), ())
        if not files:
            raise IntakeRefused("no_sample", "this DApp has no sample file")
        return files[0]

    def samples(self) -> dict[str, Case]:
        """The DApp's sample cases by name."""
        _, answer, blobs = self.child.ask({"do": "samples"})

        def cases() -> dict[str, Case]:
            samples, rest = {}, deque(map(bytes, blobs))
            for name, parts, record in answer["samples"]:
                files = tuple(ClinicalFile(rest.popleft(), part=str(part)) for part in parts)
                samples[_named(name)] = Case(files, rest.popleft() if record else None)
            return samples

        return validated(cases)

    def prepare(self, case: Case) -> Prepared:
        """Has the child read a case; all but the items stays there."""
        handle, items = self._prepare(case)
        return Prepared(items, {"case": case, "handle": handle})

    def conclude(self, prepared: Prepared, outputs: Sequence[Inputs]) -> Report:
        """The child's report, rebuilt field by field."""
        answer, _ = self._ask_about(prepared, {"do": "conclude"}, outputs)
        return validated(lambda: read_report(answer["report"]))

    def picture(self, prepared: Prepared, outputs: Sequence[Inputs], report: Report) -> bytes:
        """The child's PNG."""
        _, blobs = self._ask_about(prepared, {"do": "picture", "report": asdict(report)}, outputs)
        if len(blobs) != 1 or bytes(blobs[0][: len(PNG)]) != PNG:
            raise broken()
        return bytes(blobs[0])

    def _prepare(self, case: Case) -> tuple[CaseHandle, tuple[Inputs, ...]]:
        message = {"do": "prepare", "parts": [file.part for file in case.files], "record": case.record is not None}
        contents = [*(file.data for file in case.files), *([] if case.record is None else [case.record])]
        run, answer, blobs = self.child.ask(message, contents)

        def items() -> tuple[CaseHandle, tuple[Inputs, ...]]:
            arrays = unpack_items(answer["items"], blobs, self.inputs)
            if any(len(array) != 1 for item in arrays for array in item.values()):
                raise ValueError("an item is one row")
            return CaseHandle(run, int(answer["case"]), self.child.gone), tuple(arrays)

        return validated(items)

    def _ask_about(self, prepared: Prepared, message: Json, outputs: Sequence[Inputs]) -> tuple[Json, list[memoryview]]:
        """Sends a message about a case; a child that was started since reads the case again first."""
        handle: CaseHandle = prepared.facts["handle"]
        items = [pack(item) for item in outputs]
        if handle.run != self.child.current:
            handle = self._prepare(prepared.facts["case"])[0]
        message = {**message, "case": handle.case, "outputs": [rows for rows, _ in items]}
        _, answer, blobs = self.child.ask(message, [blob for _, data in items for blob in data], handle.run)
        return answer, blobs


def open_dapp(isolation: Isolation) -> IsolatedDApp:
    """Starts the child of a DApp and reads its declaration.

    Raises:
        StartError: it is not installed, cannot be isolated on this machine, or its declaration is invalid.
    """
    child = Child(isolation)
    try:
        declaration, blobs = child.describe()
        if declaration["calls"]:
            raise StartError(f"{isolation.dapp} calls other DApps, which only a trusted DApp may do")
        return _declared(declaration, blobs, child)
    except StartError:
        child.close()
        raise
    except Exception as error:  # a stranger may declare anything
        child.close()
        raise StartError(f"{isolation.dapp} declares what cannot be served: {type(error).__name__}") from error


def declaration(dapp: IsolatedDApp) -> bytes:
    """The declaration as bytes, which every later child must repeat."""
    return canonical(*dapp.child.describe())


def _declared(declaration: Json, blobs: list[memoryview], child: Child) -> IsolatedDApp:
    inputs = tuple(Tensor(**row) for row in declaration["inputs"])
    provenance = Provenance(**declaration["provenance"])
    guidelines = tuple(map(tuple, declaration["manifest"]["guidelines"]))
    manifest = Manifest(**{**declaration["manifest"], "guidelines": guidelines})
    texts: list[tuple[Any, Callable[[str], object]]] = [
        (declaration["class"], str.isidentifier),
        (declaration["release"], RELEASE.fullmatch),
    ]
    texts += [(text, VERSION.fullmatch) for text in (declaration["version"], provenance.version)]
    digests = [manifest.dapp, manifest.code, manifest.weights, manifest.card]
    digests += [getattr(provenance, f"{name}_digest") for name in ("dapp", "model", "intake")]
    for id_, version, digest in manifest.guidelines:
        texts += [(id_, VERSION.fullmatch), (version, VERSION.fullmatch)]
        digests.append(digest)
    texts += [(digest, DIGEST.fullmatch) for digest in digests]
    if any(not isinstance(text, str) or not rule(text) for text, rule in texts):
        raise ValueError("a version, a digest or the class's name")
    batch = declaration["maximum_batch"]
    if type(batch) is not int or not 1 <= batch <= MAX_BATCH:
        raise ValueError("maximum_batch")
    cards = declaration["cards"][:MAX_CARDS]
    body = {
        "__doc__": str(declaration["description"])[:MAX_TEXT],
        "version": declaration["version"],
        "inputs": inputs,
        "outputs": tuple(Tensor(**row) for row in declaration["outputs"]),
        "price": Price(**declaration["price"]),
        "shares": Shares(**declaration["shares"]),
        "maximum_batch": batch,
        "tolerance": float(declaration["tolerance"]),
        "title": str(declaration["title"])[:MAX_TITLE],
        "manifest": manifest,
        "card_files": tuple((str(path)[:MAX_TEXT], str(text).encode()) for path, text in cards),
        "release": declaration["release"],
        "provenance": provenance,
        "child": child,
        "_example": unpack(declaration["example"], blobs, inputs),
        "_sample_names": tuple(map(_named, declaration["samples"][:MAX_SAMPLES])),
    }
    if not declaration["diagnoses"]:
        body |= {"prepare": DApp.prepare}  # takes tensors alone, no cases
    dapp: IsolatedDApp = type(declaration["class"], (IsolatedDApp,), body)()
    return dapp


def _named(name: object) -> str:
    if not isinstance(name, str) or not VERSION.fullmatch(name):
        raise ValueError("the name of a sample")
    return name
