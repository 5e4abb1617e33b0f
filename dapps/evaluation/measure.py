"""Measures a model on labelled data, for model cards and for `leben dapp evaluate`.

A DApp answers a folder with `Scored` values: probabilities, truth and patients. One function computes everything else,
so that a card and a later evaluation cannot differ in method. Knows no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from dapps.api import Array, Scored, Skipped
from dapps.evaluation import metrics
from dapps.evaluation.labels import Unusable


def skipped(models: Iterable[str], error: FileNotFoundError | Unusable) -> Iterator[Skipped]:
    """These models, skipped because their part of the folder is missing or cannot be used."""
    reason = f"not found: {error.filename or error}" if isinstance(error, FileNotFoundError) else str(error)
    return (Skipped(model, reason) for model in models)


def measured(scored: Scored) -> dict[str, Any]:
    """The numbers of a card: intervals [value, low, high] are 95 % by bootstrap over patients; None where undefined."""
    probability, truth, at = scored.probability, scored.truth, scored.at
    intervals = metrics.bootstrap(
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
        **{name: interval.rounded() for name, interval in intervals.items()},
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
