"""Provides sample cases: sounds of `phantom.py`, and an invented oximetry record."""

from __future__ import annotations

import json
from typing import Any

from dapps.api import Case, ClinicalFile
from dapps.chdr import phantom

OXIMETRY: dict[str, Any] = {
    "pre_ductal_spo2_percent": 97,
    "post_ductal_spo2_percent": 96,
    "screen_number": 1,
    "age_h": 25,
}


def cases() -> dict[str, Case]:
    """A murmur with oximetry, a normal sound, and a record alone."""
    record = json.dumps(OXIMETRY).encode()
    return {
        "murmur, with oximetry": Case((_sound(murmur=True, seed=0),), record),
        "normal heart sound": Case((_sound(murmur=False, seed=1),)),
        "oximetry alone": Case((), record),
    }


def _sound(murmur: bool, seed: int) -> ClinicalFile:
    return ClinicalFile(phantom.wav(phantom.phonocardiogram(murmur=murmur, seed=seed)), "phantom.wav")
