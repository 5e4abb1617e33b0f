"""Provides sample cases: pydicom's anonymous slice, and an invented admission record."""

from __future__ import annotations

import json
from typing import Any

from dapps.api import Case, ClinicalFile

ADMISSION: dict[str, Any] = {
    "hours_since_last_known_well": 1.5,
    "disabling_deficit": True,
    "nihss": 11,
    "platelets_10e3_per_ul": 210,
    "inr": 1.0,
    "aptt_s": 29,
    "pt_s": 12,
    "glucose_mg_dl": 118,
    "recent_stemi": False,
}


def cases(scan: ClinicalFile) -> dict[str, Case]:
    """The slice with the record, the slice, and the record alone."""
    record = json.dumps(ADMISSION).encode()
    return {
        "head CT slice, with admission": Case((scan,), record),
        "head CT slice": Case((scan,)),
        "admission alone": Case((), record),
    }
