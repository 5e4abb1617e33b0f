"""Frames a head-CT slice, the same way in training and service: window, cut out the head, drop the table, scale.

Because one function makes the training images and the served input, the two cannot differ in scanner table, field of
view or position. Input is an 8-bit brain window or HU; knows no DICOM and no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

SIZE = 128
"""Height and width of the framed slice, in pixels."""
WINDOW_CENTRE_HU = 40.0
WINDOW_WIDTH_HU = 120.0
"""The window the training images were exported with: -20 HU is 0, 100 HU is 255."""
CELL_MM = 4.0
MIN_SIDE_MM = 130.0
MARGIN = 1.06
TISSUE_GREY = 24

Grey = np.ndarray[Any, np.dtype[np.uint8]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]
Spacing = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Framed:
    """A framed slice: grey uint8 [SIZE, SIZE], the head's extent, and its share of the picture's border."""

    image: Grey
    height_mm: float
    width_mm: float
    border_share: float


class NoHead(ValueError):
    """No connected piece of tissue is large enough to frame."""


def window(hu: np.ndarray[Any, np.dtype[Any]]) -> Grey:
    """Brain window of HU values as 8-bit grey."""
    low = WINDOW_CENTRE_HU - WINDOW_WIDTH_HU / 2
    return np.asarray(np.rint(np.clip((hu - low) / WINDOW_WIDTH_HU, 0, 1) * 255), np.uint8)


def frame(grey: Grey, spacing_mm: Spacing) -> Framed:
    """Cuts the head out of a windowed slice [H,W] and scales it to a square of SIZE.

    The square is centred on the head and never smaller than MIN_SIDE_MM, so that a vertex slice stays small.

    Raises:
        NoHead: if nothing in the picture could be a head.
    """
    head = largest_piece(cells(grey >= TISSUE_GREY, spacing_mm, 0.5))
    rows, columns = np.flatnonzero(head.any(1)), np.flatnonzero(head.any(0))
    if head.sum() < 40:
        raise NoHead("no piece of tissue is as large as a head slice")
    height_mm, width_mm = (rows[-1] - rows[0] + 1) * CELL_MM, (columns[-1] - columns[0] + 1) * CELL_MM
    side_mm = max(height_mm * MARGIN, width_mm * MARGIN, MIN_SIDE_MM)
    middle_mm = ((rows[0] + rows[-1] + 1) / 2 * CELL_MM, (columns[0] + columns[-1] + 1) / 2 * CELL_MM)
    image = _cut(_without_table(grey, head), middle_mm, side_mm, spacing_mm)
    border = np.concatenate([head[0], head[-1], head[:, 0], head[:, -1]])
    return Framed(image, float(height_mm), float(width_mm), float(border.mean()))


def cells(mask: Mask, spacing_mm: Spacing, share: float) -> Mask:
    """Cells of CELL_MM in which at least this share of pixels is set: thin things such as the table fall out."""
    rows = max(1, round(mask.shape[0] * spacing_mm[0] / CELL_MM))
    columns = max(1, round(mask.shape[1] * spacing_mm[1] / CELL_MM))
    grid = Image.fromarray(mask.astype(np.uint8) * 255).resize((columns, rows), Image.Resampling.BOX)
    return np.asarray(np.asarray(grid) >= share * 255)


def largest_piece(mask: Mask) -> Mask:
    """The largest 4-connected piece of a mask; all False if it is empty."""
    pieces, count = ndimage.label(mask)
    if not count:
        return np.zeros_like(mask)
    return np.asarray(pieces == 1 + np.bincount(pieces.ravel())[1:].argmax())


def _without_table(grey: Grey, head: Mask) -> Grey:
    wide = np.pad(head, 1)
    wide = wide[1:-1, 1:-1] | wide[:-2, 1:-1] | wide[2:, 1:-1] | wide[1:-1, :-2] | wide[1:-1, 2:]
    size = (grey.shape[1], grey.shape[0])
    near = Image.fromarray(wide.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
    return np.asarray(grey * np.asarray(near), np.uint8)


def _cut(grey: Grey, middle_mm: tuple[float, float], side_mm: float, spacing_mm: Spacing) -> Grey:
    half = [side_mm / 2 / spacing for spacing in spacing_mm]
    middle = [place / spacing for place, spacing in zip(middle_mm, spacing_mm, strict=True)]
    pad = int(max(half)) + 2
    padded = Image.fromarray(np.pad(grey, pad))
    top, left = middle[0] - half[0] + pad, middle[1] - half[1] + pad
    box = (left, top, left + 2 * half[1], top + 2 * half[0])
    return np.array(padded.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=box), np.uint8)
