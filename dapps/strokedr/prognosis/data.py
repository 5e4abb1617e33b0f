"""Reads the International Stroke Trial: admission rows, outcomes, hospitals and countries.

The table lies outside the repository and stays there. Only columns of the randomisation form become inputs: whatever
was written later knows the outcome. Never imported by the service. Next: `dapps/strokedr/prognosis/train.py`.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dapps.intake.record import Record
from dapps.strokedr.prognosis.admission import encode

Array = np.ndarray[Any, np.dtype[Any]]

NUMBERS = {"age": "AGE", "delay": "RDELAY", "systolic_pressure": "RSBP"}
WORDS = {
    "sex": ("SEX", {"F": "female", "M": "male"}),
    "consciousness": ("RCONSC", {"F": "alert", "D": "drowsy", "U": "unconscious"}),
    "syndrome": (
        "STYPE",
        {
            "TACS": "total_anterior",
            "PACS": "partial_anterior",
            "POCS": "posterior",
            "LACS": "lacunar",
            "OTH": "other",
        },
    ),
}
YES_NO = {
    "symptoms_on_waking": "RSLEEP",
    "atrial_fibrillation": "RATRIAL",
    "ct_before": "RCT",
    "infarct_visible": "RVISINF",
    "heparin_within_24_h": "RHEP24",
    "aspirin_within_3_days": "RASP3",
}
DEFICITS = (
    "face_deficit",
    "arm_deficit",
    "leg_deficit",
    "dysphasia",
    "hemianopia",
    "visuospatial_disorder",
    "brainstem_signs",
    "other_deficit",
)
DEPENDENT = {"1": 1, "2": 1, "3": 0, "4": 0}


@dataclass(frozen=True, slots=True)
class Patients:
    """Admission rows float32 [n,20]; targets [n,3] of 0, 1 or -1 for not known; hospital, country, age and sex."""

    rows: Array
    targets: Array
    hospital: Array
    country: Array
    age: Array
    sex: Array

    def of(self, hospitals: frozenset[str]) -> Array:
        """Row numbers of these hospitals' patients."""
        return np.flatnonzero(np.isin(self.hospital, sorted(hospitals)))


def read(folder: Path) -> Patients:
    """All patients of the table in `DIR/ist`.

    Raises:
        FileNotFoundError: if there is no table.
    """
    tables = sorted((folder / "ist").glob("*.csv"))
    if not tables:
        raise FileNotFoundError("ist/*.csv")
    found = []
    for path in tables:
        with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
            found += list(csv.DictReader(file))
    records = [_record(row) for row in found]
    return Patients(
        np.stack([encode(record) for record in records]),
        np.array([_targets(row) for row in found]),
        np.array([row.get("HOSPNUM") or "?" for row in found]),
        np.array([row.get("COUNTRY") or "?" for row in found]),
        np.array([float(record.get("age", np.nan)) for record in records]),
        np.array([str(record.get("sex", "unknown")) for record in records]),
    )


def _record(row: dict[str, str]) -> Record:
    record: Record = {name: float(row[column]) for name, column in NUMBERS.items() if (row.get(column) or "").strip()}
    for name, (column, words) in WORDS.items():
        if word := words.get((row.get(column) or "").strip().upper()):
            record[name] = word
    answers = {"Y": "yes", "N": "no"}
    for name, column in YES_NO.items():
        if word := answers.get((row.get(column) or "").strip().upper()):
            record[name] = word
    answers["C"] = "not_assessable"
    for number, name in enumerate(DEFICITS, 1):
        if word := answers.get((row.get(f"RDEF{number}") or "").strip().upper()):
            record[name] = word
    return record


def _targets(row: dict[str, str]) -> tuple[int, int, int]:
    outcome = (row.get("OCCODE") or "").strip()
    early = (row.get("ID14") or "").strip()
    dead = int(outcome == "1") if outcome in DEPENDENT else -1
    return DEPENDENT.get(outcome, -1), int(early) if early in ("0", "1") else -1, dead
