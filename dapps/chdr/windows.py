"""Cuts a recording into the fixed-length windows of the murmur network, the same way in training and service.

At most MAX_WINDOWS windows, spread evenly. A shorter recording is repeated, so its length tells nothing.
Pure numpy, knows no file format and no torch.
"""

from __future__ import annotations

from typing import Any

import numpy as np

WINDOW_SAMPLES = 10_000
"""2.5 s at 4 kHz: at least two heart beats of an adult, three or four of a child."""
STRIDE_SAMPLES = 5_000
MAX_WINDOWS = 8

Sound = np.ndarray[Any, np.dtype[np.float32]]


def windows(sound: Sound, limit: int = MAX_WINDOWS) -> Sound:
    """Samples [N] -> windows [n, WINDOW_SAMPLES], 1 <= n <= min(MAX_WINDOWS, limit)."""
    if len(sound) < WINDOW_SAMPLES:
        sound = np.tile(sound, -(-WINDOW_SAMPLES // len(sound)))[:WINDOW_SAMPLES]
    spare = len(sound) - WINDOW_SAMPLES
    count = min(MAX_WINDOWS, limit, 1 + -(-spare // STRIDE_SAMPLES))
    starts = np.rint(np.linspace(0, spare, count)).astype(int)
    return np.stack([sound[start : start + WINDOW_SAMPLES] for start in starts])
