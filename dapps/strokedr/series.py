"""Combines the logits of a head's slices: smooths over neighbours, then takes the mean of the highest.

Training, evaluation and report use the same functions. Pure numpy.
"""

from __future__ import annotations

from typing import Any

import numpy as np

KERNEL = (0.25, 0.5, 0.25)
SHARE = 0.1
"""A series is judged by the mean of this share of its slices, those with the highest logits, at least one."""
MIN_SLICES = 8
"""Fewer slices than this are judged one by one."""

Array = np.ndarray[Any, np.dtype[np.float64]]


def smooth(logits: Array) -> Array:
    """Logits [n] in the order of the head, each with a quarter of both neighbours; ends count themselves twice."""
    return np.asarray(np.convolve(np.pad(logits, 1, mode="edge"), KERNEL, "valid"))


def together(smoothed: Array) -> float:
    """One logit for the whole series."""
    count = max(1, round(len(smoothed) * SHARE))
    return float(np.sort(smoothed)[-count:].mean())
