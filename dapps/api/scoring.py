"""Defines the values of an evaluation: scored answers, skipped models and the cut-offs between yes, no and unknown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dapps.api.types import Array


@dataclass(frozen=True, slots=True)
class Scored:
    """One model's answers [n] on data whose truth (0 or 1) is known.

    Args:
        model: a stable word, e.g. ``haemorrhage_slice``; names the operating point in the card.
        item: the kind of one row, e.g. ``slice``.
        probability: calibrated probabilities.
        truth: 0 or 1.
        patients: the patient of each row; the bootstrap resamples patients.
        at: the cut-offs, fixed on the training side.
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
            raise ValueError(f"{self.model}: no rows to measure")


@dataclass(frozen=True, slots=True)
class Skipped:
    """A model that could not be evaluated on a folder, and why."""

    model: str
    reason: str


@dataclass(frozen=True, slots=True)
class Cutoffs:
    """Two cut-offs on the probability: absent below `low`, present from `high` on, unknown between."""

    low: float
    high: float

    def present(self, probability: float) -> bool | None:
        """True, False, or None in the grey zone; an undefined probability is unknown as well."""
        if probability >= self.high:
            return True
        return False if probability < self.low else None
