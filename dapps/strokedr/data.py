"""Reads CT-ICH for training: framed slices, what is on them, and whose they are.

The pictures lie outside the repository and stay there. Framing is that of the service, so both see the same. Never
imported by the service. Next: `dapps/strokedr/train.py`.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dapps.strokedr.framing import frame
from dapps.strokedr.net import TARGETS

SPACING_MM = 250.0 / 650.0
"""The exports carry no spacing; a head field of view of 250 mm across 650 pixels is assumed."""

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class Slices:
    """Framed slices uint8 [n,1,S,S], targets float32 [n,len(TARGETS)] and each slice's patient."""

    grey: torch.Tensor
    target: torch.Tensor
    patient: Array

    def rows_of(self, names: frozenset[str]) -> Array:
        """Row numbers of these patients."""
        return np.flatnonzero(np.isin(self.patient, sorted(names)))

    def truth(self, rows: Array) -> Array:
        """1 where there is any haemorrhage."""
        return self.target[rows, 0].numpy().astype(int)


def read(folder: Path) -> Slices:
    """All labelled slices under `DIR/ct_ich`."""
    with (folder / "ct_ich" / "labels.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    images, targets = [], []
    for row in rows:
        with Image.open(folder / "ct_ich" / row["file"]) as picture:
            images.append(frame(np.asarray(picture.convert("L")), (SPACING_MM, SPACING_MM)).image)
        targets.append([float(row["ich"]), *(float(row[name] or 0) for name in TARGETS[1:])])
    grey = torch.from_numpy(np.stack(images))[:, None]
    return Slices(grey, torch.tensor(targets), np.array([row["patient"] for row in rows]))
