"""Measures the prognosis network and writes the texts of its card."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from dapps.api import Cutoffs, Scored
from dapps.evaluation import Split, operating_points
from dapps.strokedr.prognosis.data import Patients

MODELS = ("poor_outcome_6_months", "death_14_days")
AGES = ((0, 60), (60, 70), (70, 80), (80, 120))

Array = np.ndarray[Any, np.dtype[Any]]


def scored(patients: Patients, rows: Array, probability: Array, points: Mapping[str, Cutoffs]) -> Iterator[Scored]:
    """Each served model's answers [len(rows), 2] beside the outcomes that are known, with subgroups."""
    for index, model in enumerate(MODELS):
        answered = patients.targets[rows, index] >= 0
        some = rows[answered]
        if not len(some):
            continue
        age, sex, country = patients.age[some], patients.sex[some], patients.country[some]
        groups = {f"sex: {name}": sex == name for name in ("female", "male")}
        groups |= {f"age: {low} to {high - 1}": (age >= low) & (age < high) for low, high in AGES}
        names, count = np.unique(country, return_counts=True)
        groups |= {f"country: {name}": country == name for name, n in zip(names, count, strict=True) if n >= 100}
        yield Scored(
            model,
            "patient",
            probability[answered, index],
            patients.targets[some, index],
            list(map(str, some)),
            points[model],
            groups,
            {"outcome_not_known": int(np.sum(~answered)), "hospitals": len(set(patients.hospital[some].tolist()))},
        )


def describe(
    patients: Patients,
    rule: str,
    split: Split,
    points: Mapping[str, Cutoffs],
    results: dict[str, Any],
    spread: dict[str, Any],
    ablation_rows: list[dict[str, Any]],
    origin: dict[str, Any],
) -> dict[str, Any]:
    """The whole card."""
    return {
        "name": "StrokeDr prognosis",
        "version": "0.2.0",
        "intended_use": "research",
        "purpose": "Probability that a patient with acute stroke is dead or dependent at six months, and dead by day "
        "14, from what is known at admission. For research on prognosis; never a reason to withhold care.",
        "data": {
            "name": "International Stroke Trial, version 2",
            "citation": "Sandercock, Niewada, Czlonkowska 2011, doi:10.7488/ds/104",
            "licence as stated": "ODC-By",
            "patients": len(patients.rows),
            "hospitals": len(set(patients.hospital.tolist())),
            "countries": len(set(patients.country.tolist())),
        },
        "split": {"rule": rule, "unit": "hospital", "held_out": sorted(split.test, key=int_or_text)},
        "operating_points": operating_points(points),
        "results": results,
        "spread": spread,
        "ablations": ablation_rows,
        "limits": [
            "Patients of 1991 to 1996, before thrombolysis and stroke units were usual: today's outcome is better.",
            "Trial patients who were uncertain candidates for aspirin or heparin; few under 40 years.",
            "At the same record outcome differs among countries: see the subgroups, and recalibrate where it is used.",
            "Whether a CT was made says more of the hospital in the 1990s than of the patient.",
            "Held-out AUC depends on which hospitals are held out: see the spread; and it is lower for a country of "
            "which the training saw nobody: see the ablations.",
            "The interval is the range over members: it tells what the training sample left open, not chance itself.",
        ],
        **origin,
    }


def int_or_text(name: str) -> tuple[int, str]:
    """Sorts numbered names by number."""
    return (int(name), "") if name.isdigit() else (10**9, name)
