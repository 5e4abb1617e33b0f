"""Runs the conformance suite, which an author runs on a DApp and the built-in DApps pass.

The steps: declaration, card and licence, start-up, answered tensors, independence of rows, optional inputs, the
sample's way to a report, refusals, and a GPU against the CPU. Imports torch only when it runs. Read
`dapps/api/dapp.py` first.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from dapps.api import DApp, Inputs
from dapps.conformance import answers, cases, declared
from dapps.conformance.answers import check_batches, check_tensors, run
from dapps.conformance.bench import Bench, Limits
from dapps.conformance.cases import check_sample
from dapps.conformance.declared import check_declaration
from dapps.conformance.failure import CheckFailed, place, raised

__all__ = [
    "CheckFailed",
    "Limits",
    "Outcome",
    "check_batches",
    "check_dapp",
    "check_declaration",
    "check_sample",
    "check_tensors",
    "examine",
    "run",
]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One step of the suite.

    Args:
        step: its name.
        seconds: its duration.
        peak_bytes: most memory of the process so far.
        failure: the broken rule; None if it passed.
        skipped: why it did not run; empty if it ran.
    """

    step: str
    seconds: float
    peak_bytes: int
    failure: CheckFailed | None = None
    skipped: str = ""


def check_dapp(dapp: DApp, device: str = "cpu", without: Collection[str] = (), limits: Limits | None = None) -> None:
    """Loads the DApp and checks every rule.

    Args:
        dapp: not loaded yet.
        device: ``"cpu"``, or ``"cuda"``, which is compared with the CPU.
        without: names of steps to leave out, e.g. ``"card"``.
        limits: of time and memory.

    Raises:
        CheckFailed: at the first rule that does not hold; it names the line to change.
    """
    for outcome in examine(dapp, device, without, limits):
        if outcome.failure is not None:
            raise outcome.failure


def examine(
    dapp: DApp, device: str = "cpu", without: Collection[str] = (), limits: Limits | None = None
) -> Iterator[Outcome]:
    """Runs the steps one by one and yields each outcome; skips steps that depend on a failed one."""
    source = getattr(sys.modules[type(dapp).__module__], "__file__", None)
    bench = Bench(limits or Limits(), Path(source).parent if source else None)
    example: Inputs = {}

    def load() -> None:
        dapp.load("cpu")

    def examples() -> None:
        example.update(dapp.example())
        check_tensors("example", dapp.inputs, example, 1)

    steps: list[tuple[str, Callable[[], None], str, str]] = [
        ("declaration", lambda: check_declaration(dapp), "", ""),
        ("card", lambda: declared.check_card(dapp), "declaration", ""),
        ("start-up", load, "declaration", "load"),
        ("example", examples, "start-up", "example"),
        ("batches", lambda: check_batches(dapp, example, "cpu"), "example", "forward"),
        ("largest batch", lambda: answers.check_largest(dapp, example, "cpu"), "batches", "forward"),
        ("optional", lambda: answers.check_optional(dapp, example, "cpu"), "batches", "forward"),
        ("sample", lambda: check_sample(dapp, "cpu"), "start-up", "intake"),
        ("refusals", lambda: cases.check_refusals(dapp), "start-up", "intake"),
    ]
    if device != "cpu":
        steps.append(("device", lambda: answers.check_device(dapp, example, device), "batches", "load"))
    passed: set[str] = set()
    try:
        for name, step, needed, quiet in steps:
            if name in without or (needed and needed not in passed):
                why = "left out" if name in without else f"needs {needed}"
                yield Outcome(name, 0.0, bench.peak_bytes, skipped=why)
                continue
            began_s = time.monotonic()
            failure = _failure(type(dapp), name, lambda step=step, quiet=quiet: bench.do(step, quiet))  # type: ignore[misc]
            yield Outcome(name, time.monotonic() - began_s, bench.peak_bytes, failure)
            if failure is None:
                passed.add(name)
            elif failure.rule == "time":
                return  # its thread still runs the author's code
    finally:
        bench.close()


def _failure(kind: type[DApp], step: str, run: Callable[[], None]) -> CheckFailed | None:
    try:
        run()
        return None
    except CheckFailed as failure:
        cause = failure.__cause__
        failure.place = failure.place or (raised(cause, kind) if cause else "") or place(kind, failure.attribute)
        return failure
    except Exception as error:  # an author's code may raise anything
        message = f"{step} raises {type(error).__name__}: {error}"
        return CheckFailed("raises", message, place=raised(error, kind) or place(kind, ""))
