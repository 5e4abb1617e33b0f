"""What CHDr.'s card says: the measures of each part of the data, and the words around them.

Every number comes in from the training run. Never imported by the service. Read `dapps/card.py` for how it is written.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dapps import card, metrics
from dapps.chdr.data import Recordings

Array = np.ndarray[Any, np.dtype[Any]]


def by_patients(scores: Array, truth: Array, patients: Array) -> tuple[Array, Array, list[str]]:
    """One score a patient, the mean over recordings; a patient has a murmur if any recording has."""
    names = sorted(set(patients.tolist()))
    mean = [scores[patients == name].mean() for name in names]
    return np.array(mean), np.array([int(truth[patients == name].any()) for name in names]), names


def measure(recordings: Recordings, at: card.Cutoffs, parts: dict[str, tuple[Array, Array]]) -> dict[str, Any]:
    """The measured sections: each part, given as (rows, probabilities), by recording, by patient and by noise."""
    told: dict[str, Any] = {}
    for name in ("development", "test"):
        rows, probability = parts[name]
        truth, patients = recordings.label[rows], recordings.patient[rows]
        told[f"{name}, by recording"] = card.measured(probability, truth, patients.tolist(), at)
        mean, has, names = by_patients(probability, truth, patients)
        told[f"{name}, by patient (mean of recordings)"] = card.measured(mean, has, names, at)
        told[f"{name}, AUC by marked noise"] = {
            kind: f"{metrics.auc(probability[mask], truth[mask]):.3f} of {int(mask.sum())} recordings"
            for kind, mask in (("noisy", recordings.noisy[rows]), ("clean", ~recordings.noisy[rows]))
        }
    rows, probability = parts["extrastole"]
    told["test, extrastole recordings (label excluded from training)"] = {
        "recordings": len(rows),
        "at or above the high cut-off": int(np.sum(probability >= at.high)),
    }
    return told


def describe(
    recordings: Recordings, split: str, at: card.Cutoffs, told: dict[str, Any], origin: dict[str, Any]
) -> dict[str, Any]:
    """The whole card."""
    return {
        "name": "CHDr murmur",
        "version": "0.1.0",
        "purpose": "Probability that a heart murmur is heard in a phonocardiogram. Not congenital heart disease: most "
        "childhood murmurs are innocent. Research use only.",
        "data": {
            "name": "PASCAL Classifying Heart Sounds Challenge 2011, set B (DigiScope)",
            "citation": "Bentley, Nordehn, Coimbra, Mannor: pascal-chsc-2011",
            "licence as stated": "no licence text; the owners ask to be cited",
            "recordings used (murmur or normal)": int(np.sum(recordings.label >= 0)),
            "patients": len(set(recordings.patient[recordings.label >= 0].tolist())),
            "refused by the intake": recordings.refused or "none",
        },
        "split": split,
        "operating point": card.operating_point(at, "recordings"),
        **told,
        "subgroups": "Age and sex are not in the labels, so no such subgroup could be measured.",
        "limits": [
            "One stethoscope system, few patients with a murmur: intervals are wide.",
            "Children and adults mixed, recorded in a hospital; no newborn screening population.",
            "Murmur grade, timing and cause are unknown; the answer is 'murmur heard, refer', never a disease.",
            "Murmur recordings tend to be longer in this set; windows of fixed length keep length from telling.",
        ],
        **origin,
    }
