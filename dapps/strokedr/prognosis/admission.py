"""Defines the admission record of acute stroke: its fields, and its row of numbers for the network.

The fields are those of the International Stroke Trial's randomisation form, and none that was filled in later. An
unknown field is -1 in the row; the network is trained to answer without any of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dapps.api import Coding, IntakeRefused
from dapps.intake.record import Field, Quantity, Values
from dapps.knowledge.fields import Choice

UNKNOWN = -1.0
DEFICIT = ("no", "yes", "not_assessable")
LOINC = "http://loinc.org"

FIELDS: tuple[Field, ...] = (
    Quantity("age", {"a": 1.0}, 16, 110, Coding(LOINC, "30525-0")),
    Quantity("delay", {"h": 1.0, "min": 1 / 60}, 0, 48),
    Quantity("systolic_pressure", {"mm[Hg]": 1.0, "kPa": 7.50062}, 50, 300, Coding(LOINC, "8480-6")),
    Choice("sex", ("female", "male")),
    Choice("consciousness", ("alert", "drowsy", "unconscious")),
    Choice("symptoms_on_waking"),
    Choice("atrial_fibrillation"),
    Choice("ct_before"),
    Choice("infarct_visible"),
    Choice("heparin_within_24_h"),
    Choice("aspirin_within_3_days"),
    Choice("face_deficit", DEFICIT),
    Choice("arm_deficit", DEFICIT),
    Choice("leg_deficit", DEFICIT),
    Choice("dysphasia", DEFICIT),
    Choice("hemianopia", DEFICIT),
    Choice("visuospatial_disorder", DEFICIT),
    Choice("brainstem_signs", DEFICIT),
    Choice("other_deficit", DEFICIT),
    Choice("syndrome", ("total_anterior", "partial_anterior", "posterior", "lacunar", "other")),
)
NAMES = tuple(declared.name for declared in FIELDS)
NUMBERS = 3
"""The first fields are numbers; the others are the position of a word in its list."""
LEVELS = tuple(len(declared.words) for declared in FIELDS if isinstance(declared, Choice))
NEEDED = ("age", "consciousness")
MIN_KNOWN = 8
MOTOR = ("face_deficit", "arm_deficit", "leg_deficit")
CORTICAL = ("dysphasia", "hemianopia", "visuospatial_disorder")
DEFICITS = (*MOTOR, *CORTICAL, "brainstem_signs", "other_deficit")


def encode(record: Values) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The record as float32 [len(FIELDS)], unknown fields as -1."""
    row = np.full(len(FIELDS), UNKNOWN, np.float32)
    for index, declared in enumerate(FIELDS):
        if declared.name in record:
            value = record[declared.name]
            row[index] = declared.words.index(str(value)) if isinstance(declared, Choice) else float(value)
    return row


def refuse_implausible(record: Values) -> None:
    """Refuses a record that holds too little, or that contradicts itself.

    Raises:
        IntakeRefused: `incomplete`; `low_quality` for a contradiction that at most one of the 13 872 records shows.
    """
    missing = [name for name in NEEDED if name not in record]
    if missing or sum(name in record for name in NAMES) < MIN_KNOWN:
        needed = f"{' and '.join(NEEDED)} and {MIN_KNOWN} fields in all"
        raise IntakeRefused("incomplete", f"the admission record says too little: {needed} are needed")
    if record.get("infarct_visible") == "yes" and record.get("ct_before") == "no":
        raise IntakeRefused("low_quality", "the record contradicts itself: an infarct is seen without a CT")
    syndrome = record.get("syndrome")
    if syndrome == "lacunar" and (_all(record, MOTOR, "no") or _any(record, CORTICAL, "yes")):
        raise IntakeRefused("low_quality", "the record contradicts itself: its deficits are not a lacunar syndrome")
    if syndrome == "lacunar" and record["consciousness"] == "unconscious":
        raise IntakeRefused("low_quality", "the record contradicts itself: lacunar stroke leaves a patient conscious")
    if record.get("brainstem_signs") == "yes" and syndrome in ("total_anterior", "partial_anterior", "lacunar"):
        raise IntakeRefused(
            "low_quality", "the record contradicts itself: brainstem signs go with a posterior syndrome"
        )
    if record["consciousness"] == "unconscious" and _all(record, DEFICITS, "no"):
        raise IntakeRefused("low_quality", "the record contradicts itself: unconscious, and nothing is wrong")
    if syndrome == "total_anterior" and (_all(record, MOTOR, "no") or _all(record, CORTICAL, "no")):
        raise IntakeRefused(
            "low_quality", "the record contradicts itself: its deficits are not a total anterior syndrome"
        )


def _all(record: Values, names: tuple[str, ...], word: str) -> bool:
    return all(record.get(name) == word for name in names)


def _any(record: Values, names: tuple[str, ...], word: str) -> bool:
    return any(record.get(name) == word for name in names)
