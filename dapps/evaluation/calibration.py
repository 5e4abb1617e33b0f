"""Applies a calibration on the logit scale, which a training script fits out of fold and writes into its card."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dapps.evaluation import card

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, slots=True)
class Calibration:
    """Slope and offset on the logit scale."""

    slope: float
    offset: float

    def probability(self, logits: Array | float) -> Any:
        """Calibrated probabilities."""
        return 1 / (1 + np.exp(-(self.slope * np.asarray(logits) + self.offset)))


def calibration(package: str, model: str) -> Calibration:
    """The calibration of one model in a package's card."""
    numbers = card.read(package)["calibration"][model]
    return Calibration(float(numbers["slope"]), float(numbers["offset"]))


def logit(probability: Any) -> Array:
    """Log odds, kept finite."""
    inside = np.clip(np.asarray(probability, np.float64), 1e-7, 1 - 1e-7)
    return np.asarray(np.log(inside / (1 - inside)))
