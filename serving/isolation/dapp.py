"""`IsolatedDApp`: a stranger's DApp as the replica sees it, while its code runs in a process of its own.

The replica never imports its package: what it declares, it says in a message, and every answer is checked as if a
caller had sent it.
"""

from __future__ import annotations

import re
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from dapps import Case, ClinicalFile, DApp, Price, Report, Shares, Tensor
from dapps.api import Inputs, Manifest, Prepared, Provenance
from serving.errors import StartError
from serving.isolation.messages import Json, pack, read_report, unpack
from serving.isolation.process import MAX_TEXT, Child, broken, canonical, validated
from serving.isolation.spec import Isolation

VERSION = re.compile(r"[A-Za-z0-9._-]{1,64}")
RELEASE = re.compile(r"[A-Za-z0-9._+-]{1,1024}")
DIGEST = re.compile(r"[0-9a-f]{64}")
MAX_CARDS, MAX_TITLE = 32, 100
PNG = b"\x89PNG\r\n\x1a\n"


class CaseHandle:
    """A case that a child keeps for us, until this object is gone."""

    def __init__(self, run: int, case: int, gone: deque[tuple[int, int]]) -> None:
        self.run, self.case = run, case
        weakref.finalize(self, gone.append, (run, case))


class IsolatedDApp(DApp):
    """What the replica knows of an isolated DApp, and its clinical side, each step carried to the child.

    `open_dapp` makes a class of it for each DApp; `child` is the process behind it.
    """

    child: Child
    card_files: tuple[tuple[str, bytes], ...]
    _example: Inputs

    def load(self, device: str) -> None:
        """Never called: weights are loaded in the child alone."""
        raise RuntimeError("an isolated DApp is run by IsolatedRunner")

    def forward(self, **tensors: Any) -> dict[str, Any]:
        """Never called, as `load`."""
        raise RuntimeError("an isolated DApp is run by IsolatedRunner")

    def example(self) -> Inputs:
        """The example that the child gave when it was started."""
        return {name: array.copy() for name, array in self._example.items()}

    def samples(self) -> dict[str, Case]:
        """The child's."""
        _, answer, found = self.child.ask({"do": "samples"})

        def cases() -> dict[str, Case]:
            read, left = {}, deque(map(bytes, found))
            for name, parts, record in answer["samples"]:
                files = tuple(ClinicalFile(left.popleft(), part=str(part)) for part in parts)
                read[_named(name)] = Case(files, left.popleft() if record else None)
            return read

        return validated(cases)

    def prepare(self, case: Case) -> Prepared:
        """Reads a case in the child; what it knows of the case besides the items stays there."""
        mark, items = self._prepare(case)
        return Prepared(items, {"case": case, "mark": mark})

    def conclude(self, prepared: Prepared, outputs: Sequence[Inputs]) -> Report:
        """The child's report, rebuilt field by field."""
        answer, _ = self._again(prepared, {"do": "conclude"}, outputs)
        return validated(lambda: read_report(answer["report"]))

    def picture(self, prepared: Prepared, outputs: Sequence[Inputs], report: Report) -> bytes:
        """The child's PNG."""
        _, blobs = self._again(prepared, {"do": "picture", "report": asdict(report)}, outputs)
        if len(blobs) != 1 or bytes(blobs[0][: len(PNG)]) != PNG:
            raise broken()
        return bytes(blobs[0])

    def _prepare(self, case: Case) -> tuple[CaseHandle, tuple[Inputs, ...]]:
        message = {"do": "prepare", "parts": [file.part for file in case.files], "record": case.record is not None}
        blobs = [*(file.data for file in case.files), *([] if case.record is None else [case.record])]
        run, answer, found = self.child.ask(message, blobs)

        def items() -> tuple[CaseHandle, tuple[Inputs, ...]]:
            read, at = [], 0
            for rows in answer["items"]:
                read.append(unpack(rows, found[at : at + len(rows)], self.inputs))
                at += len(rows)
            if any(len(array) != 1 for item in read for array in item.values()):
                raise ValueError("an item is one row")
            return CaseHandle(run, int(answer["case"]), self.child.gone), tuple(read)

        return validated(items)

    def _again(self, prepared: Prepared, message: Json, outputs: Sequence[Inputs]) -> tuple[Json, list[memoryview]]:
        """Asks about a case; a child that was started since has forgotten it and reads it again first."""
        mark: CaseHandle = prepared.facts["mark"]
        packed = [pack(each) for each in outputs]
        blobs = [blob for _, data in packed for blob in data]
        if mark.run != self.child.current:
            mark = self._prepare(prepared.facts["case"])[0]
        asked = {**message, "case": mark.case, "outputs": [rows for rows, _ in packed]}
        _, answer, found = self.child.ask(asked, blobs, mark.run)
        return answer, found


def open_dapp(isolation: Isolation) -> IsolatedDApp:
    """Starts the child of a DApp and reads what it declares.

    Raises:
        StartError: it is not installed, cannot be isolated on this machine, or declares nonsense.
    """
    child = Child(isolation)
    try:
        told, blobs = child.describe()
        if told["calls"]:
            raise StartError(
                f"{isolation.dapp} asks other DApps, which an isolated one cannot: only a trusted one does"
            )
        return _declared(told, blobs, child)
    except StartError:
        child.close()
        raise
    except Exception as error:  # whatever a stranger declares
        child.close()
        raise StartError(f"{isolation.dapp} declares what cannot be served: {type(error).__name__}") from error


def declaration(dapp: IsolatedDApp) -> bytes:
    """What a later child must declare as well."""
    return canonical(*dapp.child.describe())


def _declared(told: Json, blobs: list[memoryview], child: Child) -> IsolatedDApp:
    inputs = tuple(Tensor(**row) for row in told["inputs"])
    provenance = Provenance(**told["provenance"])
    texts = {"class": str.isidentifier, "version": VERSION.fullmatch, "release": RELEASE.fullmatch}
    named = [(told[name], rule) for name, rule in texts.items()]
    made = Manifest(**{**told["manifest"], "guidelines": tuple(map(tuple, told["manifest"]["guidelines"]))})
    named += [(digest, DIGEST.fullmatch) for digest in (made.dapp, made.code, made.weights, made.card)]
    for id_, version, digest in made.guidelines:
        named += [(id_, VERSION.fullmatch), (version, VERSION.fullmatch), (digest, DIGEST.fullmatch)]
    named.append((provenance.version, VERSION.fullmatch))
    named += [(getattr(provenance, f"{name}_digest"), DIGEST.fullmatch) for name in ("dapp", "model", "intake")]
    if any(not isinstance(text, str) or not rule(text) for text, rule in named):  # type: ignore[operator]
        raise ValueError("a version, a digest or the class's name")
    batch = told["maximum_batch"]
    if type(batch) is not int or not 1 <= batch <= 1 << 16:
        raise ValueError("maximum_batch")
    body = {
        "__doc__": str(told["description"])[:MAX_TEXT],
        "version": told["version"],
        "inputs": inputs,
        "outputs": tuple(Tensor(**row) for row in told["outputs"]),
        "price": Price(**told["price"]),
        "shares": Shares(**told["shares"]),
        "maximum_batch": batch,
        "tolerance": float(told["tolerance"]),
        "title": str(told["title"])[:MAX_TITLE],
        "manifest": made,
        "card_files": tuple((str(path)[:MAX_TEXT], str(text).encode()) for path, text in told["cards"][:MAX_CARDS]),
        "release": told["release"],
        "provenance": provenance,
        "child": child,
        "_example": unpack(told["example"], blobs, inputs),
    }
    if not told["diagnoses"]:
        body |= {"prepare": DApp.prepare}  # what says of itself that it takes tensors alone
    dapp: IsolatedDApp = type(told["class"], (IsolatedDApp,), body)()
    return dapp


def _named(name: object) -> str:
    if not isinstance(name, str) or not VERSION.fullmatch(name):
        raise ValueError("the name of a sample")
    return name
