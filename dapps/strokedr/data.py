"""Reads CT-ICH: framed slices in the order of each head, with their labels and patients.

The pictures stay outside the repository. Training and service frame them by the same function, so both see the same.
The service never imports this module.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dapps.evaluation import labels
from dapps.strokedr.framing import NoHead, frame
from dapps.strokedr.net import TARGETS

SPACING_MM = 250.0 / 650.0
"""The exports carry no spacing; a head field of view of 250 mm across 650 pixels is assumed."""

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class Slices:
    """Framed slices uint8 [n,1,S,S] in the order of each head, targets float32 [n,len(TARGETS)], patients.

    `left_out` counts rows whose picture is missing or holds no head.
    """

    grey: torch.Tensor
    target: torch.Tensor
    patient: Array
    left_out: int

    def rows_of(self, names: frozenset[str]) -> Array:
        """Row numbers of these patients."""
        return np.flatnonzero(np.isin(self.patient, sorted(names)))

    def truth(self, rows: Array) -> Array:
        """1 where there is any haemorrhage."""
        return self.target[rows, 0].numpy().astype(int)

    def heads(self, rows: Array) -> list[Array]:
        """The rows of each patient among these, in their order."""
        return [rows[self.patient[rows] == name] for name in dict.fromkeys(self.patient[rows].tolist())]


def read(folder: Path, progress: Callable[[str, int, int], None] | None = None) -> Slices:
    """All labelled slices under `DIR/ct_ich`.

    Raises:
        FileNotFoundError: if there is no `labels.csv`, or none of its pictures is there.
        Unusable: if `labels.csv` lacks a column that is needed.
    """
    table = folder / "ct_ich" / "labels.csv"
    lines = enumerate(labels.read(table, ("file", "patient", "ich")), 1)
    rows = sorted(lines, key=lambda line: line[1]["file"])
    images, targets, patients = [], [], []
    for number, (line, row) in enumerate(rows):
        bleeds = [labels.number(row, name, line, table) for name in ("ich", *TARGETS[1:])]
        if bleeds[0] not in (0, 1):
            raise labels.Unusable(f"ct_ich/labels.csv, row {line}: ich is neither 0 nor 1")
        if progress and number % 50 == 0:
            progress("reading slices", number, len(rows))
        path = _find(folder / "ct_ich", row["file"])
        if path is None:
            continue
        try:
            with Image.open(path) as picture:
                images.append(frame(np.asarray(picture.convert("L")), (SPACING_MM, SPACING_MM)).image)
        except (NoHead, OSError):
            continue
        targets.append([value or 0.0 for value in bleeds])
        patients.append(row["patient"])
    if not images:
        raise FileNotFoundError("the pictures of ct_ich/labels.csv")
    grey = torch.from_numpy(np.stack(images))[:, None]
    return Slices(grey, torch.tensor(targets), np.array(patients), len(rows) - len(images))


def _find(folder: Path, name: str) -> Path | None:
    places = (folder / name, folder / "img" / Path(name).name, folder / Path(name).name)
    return next((place for place in places if place.is_file()), None)
