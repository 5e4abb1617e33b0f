"""Computes AUC, bootstrap intervals over patients, calibration and operating points.

Pure numpy on scores and labels. The unit of resampling is always the patient: slices of one head are not independent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class Interval:
    """A point estimate with its 95 % percentile bootstrap interval; all three are nan where undefined."""

    value: float
    low: float
    high: float

    def rounded(self) -> list[float | None]:
        """[value, low, high] with four decimals, for a card; None where undefined."""
        return [rounded(self.value), rounded(self.low), rounded(self.high)]


def rounded(value: float) -> float | None:
    """Four decimals; None for nan, which JSON and YAML do not share."""
    return None if np.isnan(value) else round(float(value), 4)


def auc(scores: Array, truth: Array) -> float:
    """Area under the ROC curve with ties counted half; nan unless both classes occur."""
    positive, negative = np.sort(scores[truth == 1]), np.sort(scores[truth == 0])
    if not len(positive) or not len(negative):
        return float("nan")
    below = np.searchsorted(negative, positive, "left") + np.searchsorted(negative, positive, "right")
    return float(below.sum() / (2 * len(positive) * len(negative)))


def roc(scores: Array, truth: Array) -> tuple[Array, Array]:
    """False and true positive rates from (0, 0) to (1, 1), one point a distinct score."""
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)
    hits, alarms = np.cumsum(truth[order] == 1)[last], np.cumsum(truth[order] == 0)[last]
    rates = (np.append(0, count) / max(int(count[-1]), 1) for count in (alarms, hits))
    false_rate, true_rate = rates
    return false_rate, true_rate


def sensitivity(scores: Array, truth: Array, cutoff: float) -> float:
    """Share of positives at or above the cut-off."""
    return float(np.mean(scores[truth == 1] >= cutoff)) if np.any(truth == 1) else float("nan")


def specificity(scores: Array, truth: Array, cutoff: float) -> float:
    """Share of negatives below the cut-off."""
    return float(np.mean(scores[truth == 0] < cutoff)) if np.any(truth == 0) else float("nan")


def bootstrap(
    measures: Mapping[str, Callable[[Array, Array], float]],
    scores: Array,
    truth: Array,
    patients: Sequence[str],
    rounds: int = 1000,
    seed: int = 0,
) -> dict[str, Interval]:
    """Each `measure(scores, truth)` with its interval from resampling whole patients, all on the same draws."""
    groups = _rows_by_patient(patients)
    single = np.concatenate(groups) if len(groups) == len(truth) else None
    random = np.random.default_rng(seed)
    values: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(rounds):
        drawn = random.integers(0, len(groups), len(groups))
        rows = single[drawn] if single is not None else np.concatenate([groups[index] for index in drawn])
        some_scores, some_truth = scores[rows], truth[rows]
        for name, measure in measures.items():
            values[name].append(measure(some_scores, some_truth))
    return {name: _interval(measure(scores, truth), values[name]) for name, measure in measures.items()}


def _interval(value: float, draws: list[float]) -> Interval:
    defined = [draw for draw in draws if not np.isnan(draw)]
    low, high = np.percentile(defined, [2.5, 97.5]) if defined else (float("nan"), float("nan"))
    return Interval(value, float(low), float(high))


def reliability(probabilities: Array, truth: Array, bins: int = 10) -> list[tuple[int, float, float]]:
    """Rows (count, mean probability, observed rate) of the equal-width bins that are not empty."""
    which = np.minimum((probabilities * bins).astype(int), bins - 1)
    masks = (which == index for index in range(bins))
    return [(int(m.sum()), float(probabilities[m].mean()), float(truth[m].mean())) for m in masks if m.any()]


def calibration_error(probabilities: Array, truth: Array, bins: int = 10) -> float:
    """Expected calibration error over equal-width bins."""
    rows = reliability(probabilities, truth, bins)
    return sum(count * abs(mean - rate) for count, mean, rate in rows) / len(truth)


def platt(logits: Array, truth: Array, weight: Array | None = None, steps: int = 50) -> tuple[float, float]:
    """(slope, offset) of the logistic calibration of raw logits, with Platt's softened targets; slope is at least 0.

    Args:
        logits: uncalibrated answers [n].
        truth: 0 or 1.
        weight: how much each row counts; all the same if None.
        steps: Newton steps.
    """
    mass = np.ones_like(logits) if weight is None else weight / weight.mean()
    positives, negatives = float((truth == 1).sum()), float((truth == 0).sum())
    target = np.where(truth == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    design = np.stack([logits, np.ones_like(logits)], axis=1)
    weights = np.array([1.0, 0.0])
    ridge = 1e-3 * np.eye(2)
    for _ in range(steps):
        answer = 1 / (1 + np.exp(-np.clip(design @ weights, -30, 30)))
        gradient = design.T @ ((answer - target) * mass)
        curvature = (design * (answer * (1 - answer) * mass)[:, None]).T @ design + ridge
        weights = weights - np.linalg.solve(curvature, gradient)
    return max(float(weights[0]), 0.0), float(weights[1])


def cutoff_for_sensitivity(scores: Array, truth: Array, minimum: float) -> float:
    """The highest cut-off at which sensitivity is still at least `minimum`."""
    positive = np.sort(scores[truth == 1])
    return float(positive[int(np.floor((1 - minimum) * len(positive) + 1e-9))])


def cutoff_for_specificity(scores: Array, truth: Array, minimum: float) -> float:
    """The lowest cut-off, just above a negative's score, at which specificity is at least `minimum`."""
    negative = np.sort(scores[truth == 0])
    return float(np.nextafter(negative[int(np.ceil(minimum * len(negative) - 1e-9)) - 1], np.inf))


def _rows_by_patient(patients: Sequence[str]) -> list[Array]:
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(patients):
        rows.setdefault(name, []).append(row)
    return [np.array(indices) for indices in rows.values()]
