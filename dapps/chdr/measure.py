"""Measures the murmur network and writes the texts of its card."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from dapps.api import Cutoffs, IntakeRefused, Scored
from dapps.chdr import gate
from dapps.chdr.data import Recordings
from dapps.evaluation import Calibration, Split, operating_points

RECORDING, PATIENT = MODELS = ("murmur_recording", "murmur_patient")

Array = np.ndarray[Any, np.dtype[Any]]


def by_patients(recordings: Recordings, rows: Array, logits: Array) -> tuple[Array, Array, list[str]]:
    """One logit a patient, the mean over recordings; a patient has a murmur if any recording has."""
    patients, truth = recordings.patient[rows], recordings.label[rows]
    names = sorted(set(patients.tolist()))
    mean = [logits[patients == name].mean() for name in names]
    return np.array(mean), np.array([int((truth[patients == name] == 1).any()) for name in names]), names


def scored(
    recordings: Recordings, rows: Array, logits: Array, whole: Calibration, points: Mapping[str, Cutoffs]
) -> Iterator[Scored]:
    """Each recording, and each patient over all sites, from the calibrated logits of these rows."""
    noisy = recordings.noisy[rows]
    groups = {"noise: marked noisy": noisy, "noise: not marked": ~noisy}
    notes = {
        "refused_by_the_reader": sum(recordings.refused.values()),
        "would_be_low_quality": sum(_low_quality(recordings.sounds[row]) for row in rows),
    }
    alone = 1 / (1 + np.exp(-logits))
    patients = recordings.patient[rows].tolist()
    yield Scored(RECORDING, "recording", alone, recordings.label[rows], patients, points[RECORDING], groups, notes)
    mean, has, names = by_patients(recordings, rows, logits)
    sites = np.array([int(np.sum(recordings.patient[rows] == name)) for name in names])
    groups = {"recordings: 1 or 2": sites <= 2, "recordings: 3 or more": sites > 2}
    yield Scored(PATIENT, "patient", whole.probability(mean), has, names, points[PATIENT], groups)


def _low_quality(sound: Array) -> bool:
    try:
        gate.refuse_no_heart(sound)
    except IntakeRefused:
        return True
    return False


def describe(
    recordings: Recordings,
    rule: str,
    split: Split,
    whole: Calibration,
    points: Mapping[str, Cutoffs],
    results: dict[str, Any],
    ablation_rows: list[dict[str, Any]],
    origin: dict[str, Any],
) -> dict[str, Any]:
    """The whole card."""
    return {
        "name": "CHDr murmur",
        "version": "0.2.0",
        "intended_use": "research",
        "purpose": "Probability that a heart murmur is heard in phonocardiograms. Not congenital heart disease: most "
        "childhood murmurs are innocent. Research use only.",
        "data": {
            "name": "PASCAL Classifying Heart Sounds Challenge 2011, set B (DigiScope)",
            "citation": "Bentley, Nordehn, Coimbra, Mannor: pascal-chsc-2011",
            "licence as stated": "no licence text; the owners ask to be cited",
            "recordings used (murmur or normal)": int(np.sum(recordings.label >= 0)),
            "patients": len(set(recordings.patient[recordings.label >= 0].tolist())),
            "refused by the reader": recordings.refused or "none",
        },
        "split": {"rule": rule, "unit": "patient", "held_out": sorted(split.test)},
        "operating_points": operating_points(points),
        "calibration": {PATIENT: {"slope": whole.slope, "offset": whole.offset}},
        "results": results,
        "ablations": ablation_rows,
        "subgroups_missing": "Age and sex are not in the labels, so no such subgroup could be measured.",
        "limits": [
            "One stethoscope system, few patients with a murmur: intervals are wide.",
            "Children and adults mixed, recorded in a hospital; no newborn screening population.",
            "Murmur grade, timing and cause are unknown; the answer is 'murmur heard, refer', never a disease.",
            "Murmur recordings tend to be longer in this set; windows of fixed length keep length from telling.",
            "Extra systoles are left out of training and of every number here.",
            "The interval is the range over members, not a confidence interval.",
        ],
        **origin,
    }
