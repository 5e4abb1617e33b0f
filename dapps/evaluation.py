"""What is measured of a model on labelled data: one list of numbers for model cards and for `leben dapp evaluate`.

A DApp answers a folder with `Scored` values: probabilities beside the truth, and whose they are. Everything else is
computed here, so that a card and a later evaluation cannot differ in method. Knows no torch. Next: `dapps/metrics.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dapps import metrics
from dapps.card import Cutoffs
from dapps.labels import Unusable

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class Scored:
    """One model's answers [n] on data whose truth (0 or 1) is known.

    Args:
        model: a stable word, e.g. ``haemorrhage_slice``; names the operating point in the card.
        item: what one row is, e.g. ``slice``.
        probability: calibrated probabilities.
        truth: 0 or 1.
        patients: whose each row is; they are resampled as a whole.
        at: the cut-offs that were fixed on the training side.
        subgroups: masks [n] by name, e.g. ``sex: female``.
        notes: counts worth knowing, e.g. how many files were refused.
    """

    model: str
    item: str
    probability: Array
    truth: Array
    patients: Sequence[str]
    at: Cutoffs
    subgroups: Mapping[str, Array] = field(default_factory=dict)
    notes: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not len(self.probability) == len(self.truth) == len(self.patients):
            raise ValueError(f"{self.model}: probabilities, truth and patients differ in number")
        if not len(self.truth):
            raise ValueError(f"{self.model}: there is nothing to measure")


@dataclass(frozen=True, slots=True)
class Skipped:
    """A model that could not be evaluated on a folder, and why."""

    model: str
    reason: str


def skipped(models: Iterable[str], error: FileNotFoundError | Unusable) -> Iterator[Skipped]:
    """These models, skipped because their part of the folder is missing or cannot be used."""
    reason = f"not found: {error.filename or error}" if isinstance(error, FileNotFoundError) else str(error)
    return (Skipped(model, reason) for model in models)


def measured(scored: Scored) -> dict[str, Any]:
    """The numbers of a card: intervals [value, low, high] are 95 % by bootstrap over patients; None where undefined."""
    probability, truth, at = scored.probability, scored.truth, scored.at
    found = metrics.bootstrap(
        {
            "auc": metrics.auc,
            "sensitivity_at_low": lambda score, label: metrics.sensitivity(score, label, at.low),
            "specificity_at_low": lambda score, label: metrics.specificity(score, label, at.low),
            "sensitivity_at_high": lambda score, label: metrics.sensitivity(score, label, at.high),
            "specificity_at_high": lambda score, label: metrics.specificity(score, label, at.high),
        },
        probability,
        truth,
        scored.patients,
    )
    return {
        "item": scored.item,
        "n": len(truth),
        "positive": int(truth.sum()),
        "prevalence": metrics.rounded(float(truth.mean())),
        "patients": len(set(scored.patients)),
        **{name: interval.rounded() for name, interval in found.items()},
        "grey_zone_share": metrics.rounded(float(np.mean((probability >= at.low) & (probability < at.high)))),
        "ece": metrics.rounded(metrics.calibration_error(probability, truth)),
        "brier": metrics.rounded(float(np.mean((probability - truth) ** 2))),
        "reliability": [
            {"n": count, "mean_probability": round(mean, 4), "observed": round(rate, 4)}
            for count, mean, rate in metrics.reliability(probability, truth)
        ],
        "subgroups": {name: _subgroup(scored, mask) for name, mask in scored.subgroups.items() if mask.any()},
        "notes": dict(scored.notes),
    }


def _subgroup(scored: Scored, mask: Array) -> dict[str, Any]:
    probability, truth = scored.probability[mask], scored.truth[mask]
    return {
        "n": int(mask.sum()),
        "positive": int(truth.sum()),
        "auc": metrics.rounded(metrics.auc(probability, truth)),
        "sensitivity_at_low": metrics.rounded(metrics.sensitivity(probability, truth, scored.at.low)),
        "specificity_at_high": metrics.rounded(metrics.specificity(probability, truth, scored.at.high)),
        "ece": metrics.rounded(metrics.calibration_error(probability, truth)),
    }
