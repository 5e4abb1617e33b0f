"""What StrokeDr.'s card says: the measures of each part of the data, and the words around them.

Every number comes in from the training run. Never imported by the service. Read `dapps/card.py` for how it is written.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dapps import card, metrics
from dapps.strokedr.data import Slices
from dapps.strokedr.net import TARGETS

PATIENT_TOP = 3

Array = np.ndarray[Any, np.dtype[Any]]


def by_patients(scores: Array, truth: Array, patients: Array) -> tuple[Array, Array, list[str]]:
    """One score a patient, the mean of the highest PATIENT_TOP slices, with the patient's truth."""
    names = sorted(set(patients.tolist()))
    top = [np.sort(scores[patients == name])[-PATIENT_TOP:].mean() for name in names]
    return np.array(top), np.array([int(truth[patients == name].any()) for name in names]), names


def measure(slices: Slices, at: card.Cutoffs, parts: dict[str, tuple[Array, Array]]) -> dict[str, Any]:
    """The measured sections: each part, given as (rows, probabilities), by slice, by patient and by subtype."""
    told: dict[str, Any] = {}
    for name, (rows, probability) in parts.items():
        truth, patients = slices.truth(rows), slices.patient[rows]
        top, has, names = by_patients(probability, truth, patients)
        told[f"{name}, by slice"] = card.measured(probability, truth, patients.tolist(), at)
        told[f"{name}, by patient"] = {
            "patients": len(names),
            "with haemorrhage": int(has.sum()),
            "score": f"mean of the {PATIENT_TOP} highest slice probabilities",
            "AUC": metrics.bootstrap(metrics.auc, top, has, names).rounded(),
        }
        told[f"{name}, sensitivity at low cut-off by subtype"] = {
            kind: f"{metrics.sensitivity(probability[mask], truth[mask], at.low):.3f} of {int(mask.sum())} slices"
            for kind in TARGETS[1:]
            if (mask := slices.target[rows, TARGETS.index(kind)].numpy() > 0).any()
        }
    return told


def describe(
    slices: Slices, split: str, at: card.Cutoffs, told: dict[str, Any], origin: dict[str, Any]
) -> dict[str, Any]:
    """The whole card."""
    return {
        "name": "StrokeDr haemorrhage",
        "version": "0.1.0",
        "purpose": "Probability of intracranial haemorrhage on one axial non-contrast head-CT slice. "
        "Research use only.",
        "data": {
            "name": "CT-ICH",
            "citation": "Hssayeni et al., Data 2020, 5(1):14, doi:10.13026/w8q8-ky94",
            "licence as stated": "CC BY 4.0 in the paper (v1.2.0/1.3.0); v1.3.1 is registered as restricted",
            "slices": len(slices.patient),
            "patients": len(set(slices.patient.tolist())),
        },
        "split": split,
        "operating point": card.operating_point(at, "answers"),
        **told,
        "subgroups": "Age and sex are not in the labels used here, so no such subgroup could be measured.",
        "limits": [
            "Trauma patients of one hospital and one scanner, read from an 8-bit video export of one brain window.",
            "Few patients bleed: intervals are wide. A few slice labels may be wrong (re-attached to file names).",
            "Scalp swelling and fractures go along with bleeds in trauma; the model may lean on them.",
            "Sees one slice at a time. Says nothing about ischaemia, large-vessel occlusion or stroke.",
            "The spacing of the training exports is unknown; a 250 mm field of view was assumed.",
        ],
        **origin,
    }
