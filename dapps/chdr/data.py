"""Reads PASCAL set B: recordings with their labels and patients.

The sound stays outside the repository. Training and service read it by the same function, so both hear the same. The
service never imports this module.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dapps.api import IntakeRefused
from dapps.evaluation import labels
from dapps.intake.wav import read_wav

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class Recordings:
    """Recordings at 4 kHz, label (1 murmur, 0 normal, -1 extrastole), patient, and whether marked noisy."""

    sounds: tuple[Array, ...]
    label: Array
    patient: Array
    noisy: Array
    refused: dict[str, int]

    def rows_of(self, names: frozenset[str]) -> Array:
        """Row numbers of these patients' murmur and normal recordings."""
        return np.flatnonzero(np.isin(self.patient, sorted(names)) & (self.label >= 0))


def read(folder: Path, progress: Callable[[str, int, int], None] | None = None) -> Recordings:
    """All labelled recordings under `DIR/pascal_b` that the intake accepts.

    Raises:
        FileNotFoundError: if there is no `labels.csv`, or none of its recordings can be read.
        Unusable: if `labels.csv` lacks a column that is needed.
    """
    rows = labels.read(folder / "pascal_b" / "labels.csv", ("file", "label", "patient"))
    sounds, readable, refused = [], [], Counter[str]()
    for number, row in enumerate(rows):
        if progress and number % 50 == 0:
            progress("reading recordings", number, len(rows))
        path = _find(folder / "pascal_b", row["file"])
        if path is None:
            refused["missing"] += 1
            continue
        try:
            sounds.append(read_wav(path.read_bytes()))
            readable.append(row)
        except IntakeRefused as error:
            refused[f"{row['label']}: {error.code}"] += 1
    if not readable:
        raise FileNotFoundError("the recordings of pascal_b/labels.csv")
    label = np.array([{"murmur": 1, "normal": 0}.get(row["label"], -1) for row in readable])
    noisy = np.array([row.get("noisy") == "1" for row in readable])
    return Recordings(tuple(sounds), label, np.array([row["patient"] for row in readable]), noisy, dict(refused))


def _find(folder: Path, name: str) -> Path | None:
    places = (folder / "wav" / name, folder / name, folder / "wav" / Path(name).name)
    return next((place for place in places if place.is_file()), None)
