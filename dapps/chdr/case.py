"""Turns a case for CHDr. into items for the network: windows of each recording, and the record beside them.

Every refusal comes from here, before the model runs and before anything is charged. Read `dapps/chdr/gate.py` next.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dapps.api import ClinicalFile, Coding, Inputs, IntakeRefused, Prepared
from dapps.chdr import gate
from dapps.chdr.windows import windows
from dapps.intake.ordinals import file_at_fault
from dapps.intake.record import Field, Quantity, Values
from dapps.intake.wav import read_wav

LOINC = "http://loinc.org"
MAX_SITES = 6
MAX_ITEMS = 32
SITES = {
    "av": "aortic",
    "aortic": "aortic",
    "pv": "pulmonary",
    "pulmonary": "pulmonary",
    "tv": "tricuspid",
    "tricuspid": "tricuspid",
    "mv": "mitral",
    "mitral": "mitral",
    "erb": "Erb's point",
}
UNNAMED = "unnamed site"
RIGHT_HAND = Coding(LOINC, "59407-7")
FOOT = Coding(LOINC, "59418-4")
HOURS = {"h": 1.0, "min": 1 / 60, "d": 24.0, "wk": 168.0, "mo": 730.5, "a": 8766.0}
RECORD: tuple[Field, ...] = (
    Quantity("age", HOURS, 0, 120 * 8766.0, Coding(LOINC, "30525-0")),
    *(Quantity(f"spo2_right_hand{again}", {"%": 1.0}, 30, 100, RIGHT_HAND) for again in ("", "_2", "_3")),
    *(Quantity(f"spo2_foot{again}", {"%": 1.0}, 30, 100, FOOT) for again in ("", "_2", "_3")),
)
"""The fields of a record: age, and oxygen saturation of up to three screens."""


def prepare(files: Sequence[ClinicalFile], record: Values | None) -> Prepared:
    """Makes one item of each window of each recording, those of one site together.

    Args:
        files: recordings of one patient, each from one auscultation site, of which several may be from the same.
        record: the values of RECORD, if there is a record.

    Raises:
        IntakeRefused: with the code of the first fault.
    """
    if not files:
        raise IntakeRefused("empty", "send one to six recordings; a record alone is not answered")
    if len(files) > MAX_SITES:
        raise IntakeRefused("too_many", f"at most {MAX_SITES} recordings of one patient are taken")
    if len({file.data for file in files}) < len(files):
        raise IntakeRefused("duplicate", "two of the recordings are the same file")
    sites: dict[str, dict[str, Any]] = {}
    windows_by_site: dict[str, list[Inputs]] = {}
    limit = MAX_ITEMS // len(files)
    for ordinal, file in enumerate(files, 1):
        with file_at_fault(ordinal, len(files) > 1):
            sound = read_wav(file.data)
            gate.refuse_no_heart(sound)
        cut = windows(sound, limit)
        site = SITES.get(file.part.lower(), UNNAMED)
        key = site if site != UNNAMED else f"{UNNAMED} {ordinal}"  # nothing says that two of them are one
        fact = sites.setdefault(key, {"site": site, "windows": 0, "seconds": 0.0})
        fact["windows"] += len(cut)
        fact["seconds"] = round(fact["seconds"] + len(sound) / gate.RATE_HZ, 1)
        windows_by_site.setdefault(key, []).extend({"PCG": window[None]} for window in cut)
    items = [item for site_items in windows_by_site.values() for item in site_items]
    facts: dict[str, Any] = {"sites": list(sites.values())}
    if record is not None:
        facts["record"] = record
    return Prepared(tuple(items), facts)
