"""Reads the International Stroke Trial: admission rows, outcomes, hospitals and countries.

The table stays outside the repository. Only columns of the randomisation form become inputs, because later columns
depend on the outcome. The service never imports this module.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dapps.evaluation import labels
from dapps.intake.record import Values
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
INPUTS = (
    *NUMBERS.values(),
    *(column for column, _ in WORDS.values()),
    *YES_NO.values(),
    *(f"RDEF{n}" for n in range(1, 9)),
)
OUTCOMES = ("OCCODE", "ID14")
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
        Unusable: if a table has no row, or lacks an input's column or both outcomes: guessing without is no test.
    """
    tables = sorted((folder / "ist").glob("*.csv"))
    if not tables:
        raise FileNotFoundError("ist/*.csv")
    table, records = [], []
    for path in tables:
        rows = labels.read(path, INPUTS)
        if not set(OUTCOMES).intersection(rows[0]):
            raise labels.Unusable(f"ist/{path.name} lacks both outcomes, {' and '.join(OUTCOMES)}")
        table += rows
        records += [_record(row, line, path) for line, row in enumerate(rows, 1)]
    return Patients(
        np.stack([encode(record) for record in records]),
        np.array([_targets(row) for row in table]),
        np.array([row.get("HOSPNUM") or "?" for row in table]),
        np.array([row.get("COUNTRY") or "?" for row in table]),
        np.array([float(record.get("age", np.nan)) for record in records]),
        np.array([str(record.get("sex", "unknown")) for record in records]),
    )


def _record(row: labels.Row, line: int, path: Path) -> Values:
    numbers = {name: labels.number(row, column, line, path) for name, column in NUMBERS.items()}
    record: Values = {name: value for name, value in numbers.items() if value is not None}
    for name, (column, words) in WORDS.items():
        if word := words.get(row[column].upper()):
            record[name] = word
    answers = {"Y": "yes", "N": "no"}
    for name, column in YES_NO.items():
        if word := answers.get(row[column].upper()):
            record[name] = word
    answers["C"] = "not_assessable"
    for number, name in enumerate(DEFICITS, 1):
        if word := answers.get(row[f"RDEF{number}"].upper()):
            record[name] = word
    return record


def _targets(row: labels.Row) -> tuple[int, int, int]:
    outcome, early = row.get("OCCODE", ""), row.get("ID14", "")
    dead = int(outcome == "1") if outcome in DEPENDENT else -1
    return DEPENDENT.get(outcome, -1), int(early) if early in ("0", "1") else -1, dead
