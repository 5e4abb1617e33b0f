"""Checks clinical files: the sample reaches a report, and an unreadable file is refused without being quoted."""

from __future__ import annotations

import re
from collections.abc import Iterator

from dapps.api import Case, ClinicalFile, DApp, Inputs, IntakeRefused, Report
from dapps.conformance import local_calls
from dapps.conformance.answers import check_tensors, run
from dapps.conformance.failure import CheckFailed, hold

CODE = re.compile(r"[a-z][a-z0-9_]{0,39}")
MARK = "CANARY^PATIENT"
"""Part of every bad file and of its name; a refusal that repeats it would repeat a real patient's name."""


def takes_files(dapp: DApp) -> bool:
    """True if it reads clinical files, by `intake` or by `prepare`."""
    return (type(dapp).intake, type(dapp).prepare) != (DApp.intake, DApp.prepare)


def check_sample(dapp: DApp, device: str) -> None:
    """Checks that the sample file, if any, passes intake, forward and report within the declared number of items."""
    try:
        sample = dapp.sample()
    except IntakeRefused:
        return
    reader = _reader(dapp)
    prepared = dapp.prepare(Case((sample,)))
    count = len(prepared.items)
    within = 1 <= count <= dapp.price.maximum_items
    hold(within, "items", f"{reader} made {count} items of the sample, more than priced", "price")
    outputs: list[Inputs] = []
    for item in prepared.items:
        check_tensors(reader, dapp.inputs, item, 1)
        outputs.append(run(dapp, item, device))
        check_tensors("forward", dapp.outputs, outputs[-1], 1)
    with local_calls.installed():
        report = dapp.conclude(prepared, outputs)
    writer = "report" if type(dapp).conclude is DApp.conclude else "conclude"
    hold(isinstance(report, Report) and bool(report.summary), "report", "the report has no summary", writer)
    for finding in report.findings:
        chance = finding.probability
        hold(chance is None or 0 <= chance <= 1, "report", f"{finding.code}: a probability is outside 0..1", writer)


def check_refusals(dapp: DApp) -> None:
    """Checks that an unreadable file is refused by `IntakeRefused`, never by another error, and never quoted."""
    if not takes_files(dapp):
        return
    reader = _reader(dapp)
    for what, file in _bad_files(dapp):
        try:
            dapp.prepare(Case((file,)))
        except IntakeRefused as refused:
            word = CODE.fullmatch(refused.code)
            hold(bool(word), "refusal", "a refusal's code is one lower-case word, such as unreadable", reader)
            hold(bool(refused.message), "refusal", "a refusal's message says what to send instead", reader)
            hold(MARK not in refused.message, "refusal", f"the refusal of {what} quotes the file or its name", reader)
        except Exception as error:
            cause = f"{what} raises {type(error).__name__} instead of IntakeRefused(code, message)"
            raise CheckFailed("refusal", cause, reader) from error
        else:
            hold(what == "a file cut in half", "refusal", f"{what} is taken for a clinical file", reader)


def _bad_files(dapp: DApp) -> Iterator[tuple[str, ClinicalFile]]:
    yield "an empty file", ClinicalFile(b"", f"{MARK}.dat")
    yield "a text file", ClinicalFile(f"{MARK}, 1970-01-01\n".encode() * 50, f"{MARK}.txt")
    yield "a file of noise", ClinicalFile(MARK.encode() + bytes(range(256)) * 64, f"{MARK}.bin")
    try:
        sample = dapp.sample()
    except IntakeRefused:
        return
    yield "a file cut in half", ClinicalFile(sample.data[: len(sample.data) // 2], f"{MARK}-{sample.name}")


def _reader(dapp: DApp) -> str:
    return "intake" if type(dapp).prepare is DApp.prepare else "prepare"
