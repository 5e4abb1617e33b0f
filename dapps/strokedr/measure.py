"""Measures the haemorrhage network and writes the texts of its card."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from dapps.api import Cutoffs, Scored
from dapps.evaluation import Calibration, Split, operating_points
from dapps.strokedr import series
from dapps.strokedr.data import Slices
from dapps.strokedr.net import TARGETS

SLICE, IN_SERIES, SERIES = MODELS = ("haemorrhage_slice", "haemorrhage_slice_in_series", "haemorrhage_series")

Array = np.ndarray[Any, np.dtype[Any]]


def whole_series(slices: Slices, rows: Array, logits: Array) -> tuple[Array, Array, Array, list[str]]:
    """Smoothed logits [len(rows)]; and for each patient the series' logit, the truth, and the name.

    Args:
        slices: the data.
        rows: which slices.
        logits: calibrated logits of these rows.
    """
    smoothed, joint, truth, names = np.empty(len(rows)), [], [], []
    place = {row: index for index, row in enumerate(rows.tolist())}
    for head in slices.heads(rows):
        where = [place[row] for row in head.tolist()]
        smoothed[where] = series.smooth(logits[where])
        joint.append(series.together(smoothed[where]))
        truth.append(int(slices.truth(head).any()))
        names.append(str(slices.patient[head[0]]))
    return smoothed, np.array(joint), np.array(truth), names


def scored(
    slices: Slices,
    rows: Array,
    logits: Array,
    calibrations: Mapping[str, Calibration],
    points: Mapping[str, Cutoffs],
) -> Iterator[Scored]:
    """Each slice alone, each slice with its neighbours, and each series, from the calibrated logits of these rows."""
    truth, patients = slices.truth(rows), slices.patient[rows].tolist()
    smoothed, joint, has, names = whole_series(slices, rows, logits)
    none = slices.target[rows, 0].numpy() == 0
    kinds = {
        f"bleed: {kind.lower()}": none | (slices.target[rows, index].numpy() > 0)
        for index, kind in enumerate(TARGETS[1:], 1)
        if (slices.target[rows, index] > 0).any()
    }
    notes = {"left_out": slices.left_out}
    alone = 1 / (1 + np.exp(-logits))
    yield Scored(SLICE, "slice", alone, truth, patients, points[SLICE], kinds, notes)
    near = calibrations[IN_SERIES].probability(smoothed)
    yield Scored(IN_SERIES, "slice", near, truth, patients, points[IN_SERIES], kinds, notes)
    whole = calibrations[SERIES].probability(joint)
    yield Scored(SERIES, "series", whole, has, names, points[SERIES])


def describe(
    slices: Slices,
    rule: str,
    split: Split,
    calibrations: Mapping[str, Calibration],
    points: Mapping[str, Cutoffs],
    results: dict[str, Any],
    ablation_rows: list[dict[str, Any]],
    origin: dict[str, Any],
) -> dict[str, Any]:
    """The whole card."""
    return {
        "name": "StrokeDr haemorrhage",
        "version": "0.2.0",
        "intended_use": "research",
        "purpose": "Probability of intracranial haemorrhage on one axial non-contrast head-CT slice, and on a series "
        "of them. Research use only.",
        "data": {
            "name": "CT-ICH",
            "citation": "Hssayeni et al., Data 2020, 5(1):14, doi:10.13026/w8q8-ky94",
            "licence as stated": "CC BY 4.0 in the paper (v1.2.0/1.3.0); v1.3.1 is registered as restricted",
            "slices": len(slices.patient),
            "patients": len(set(slices.patient.tolist())),
        },
        "split": {"rule": rule, "unit": "patient", "held_out": sorted(split.test)},
        "operating_points": operating_points(points),
        "calibration": {name: {"slope": fit.slope, "offset": fit.offset} for name, fit in calibrations.items()},
        "results": results,
        "ablations": ablation_rows,
        "subgroups_missing": "Age and sex are not in the labels used here, so no such subgroup could be measured; "
        "subgroups by kind of bleed are that kind against all slices without a bleed.",
        "limits": [
            "Trauma patients of one hospital and one scanner, read from an 8-bit video export of one brain window.",
            "Few patients bleed: intervals are wide. A few slice labels may be wrong (re-attached to file names).",
            "Scalp swelling and fractures go along with bleeds in trauma; the model may lean on them.",
            "Says nothing about ischaemia, large-vessel occlusion or stroke.",
            "The spacing of the training exports is unknown; a 250 mm field of view was assumed.",
            "The interval is the range over members, not a confidence interval.",
        ],
        **origin,
    }
