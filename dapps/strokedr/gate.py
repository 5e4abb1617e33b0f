"""Refuses CT slices that show no head: a cheap plausibility check, not a diagnosis.

A head has a size, a ring of bone with brain-like tissue inside, and the fine grain of every CT. Anything else is
refused, because the network answers any picture with a number.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from dapps.api import IntakeRefused
from dapps.intake.dicom import Slice
from dapps.strokedr.framing import CELL_MM, Framed, Grey, Mask, NoHead, cells, frame, largest_piece, window

MIN_MM, MAX_MM = 72.0, 290.0
MAX_VIEW_MM = 800.0
BONE_HU = 180.0
BRAIN_HU = (0.0, 100.0)
MIN_BRAIN_CM2 = 12.0
MAX_BORDER_SHARE = 0.35
MIN_GRAIN_HU = 0.5
FEWEST_LETTERS = 6
LETTER_PIXELS = (4, 400)
LETTER_HU = 250.0
MAX_INK = 50_000


def head(piece: Slice) -> tuple[Grey, dict[str, float]]:
    """The framed head of a CT slice, and its measurements.

    Raises:
        IntakeRefused: `low_quality` if this is no head slice with brain in it, or its grain is gone; `burned_in` if
            there is writing beside the head.
    """
    # First of all, because the search takes time in the square of the field of view.
    if max(side * mm for side, mm in zip(piece.values.shape, piece.spacing_mm, strict=True)) > MAX_VIEW_MM:
        raise IntakeRefused("low_quality", "what is in this slice does not have the size of a head")
    try:
        framed = frame(window(piece.values), piece.spacing_mm)
    except NoHead:
        raise IntakeRefused("low_quality", "there is no head in this slice") from None
    _refuse_extent(framed)
    if letters(piece) >= FEWEST_LETTERS:
        raise IntakeRefused("burned_in", "there seems to be writing in the image, which may name a patient")
    brain_cm2 = enclosed_brain_cm2(piece)
    if brain_cm2 < MIN_BRAIN_CM2:
        raise IntakeRefused("low_quality", "there is no brain inside a ring of bone: send a slice through the skull")
    grain_hu = brain_grain_hu(piece)
    if grain_hu < MIN_GRAIN_HU:
        raise IntakeRefused("low_quality", "the tissue has lost its grain to compression: send the original slice")
    return framed.image, {"brain_cm2": brain_cm2, "grain_hu": grain_hu}


def enclosed_brain_cm2(piece: Slice) -> float:
    """Area of brain-like tissue with bone on all four sides: a gap after surgery spoils little of it."""
    bone = cells(piece.values > BONE_HU, piece.spacing_mm, 0.3)
    brain = cells((piece.values > BRAIN_HU[0]) & (piece.values < BRAIN_HU[1]), piece.spacing_mm, 0.6)
    sides = [_bone_above(bone), _bone_above(bone[::-1])[::-1], _bone_above(bone.T).T, _bone_above(bone.T[::-1])[::-1].T]
    return float((brain & np.logical_and.reduce(sides)).sum() * CELL_MM**2 / 100)


def brain_grain_hu(piece: Slice) -> float:
    """Median over brain-like pixels of the difference to the next pixel, in HU; nan-free, 0 where there is none."""
    inside = (piece.values > BRAIN_HU[0]) & (piece.values < BRAIN_HU[1])
    both = inside[:, 1:] & inside[:, :-1]
    steps: np.ndarray[Any, Any] = np.abs(np.diff(piece.values, axis=1))[both]
    return float(np.median(steps)) if len(steps) else 0.0


def letters(piece: Slice) -> int:
    """The number of small spots of one single bright value outside the head: anatomy and metal are never so even.

    Letters are drawn in a single value; a spot of several values is a lead, a tube or part of the table.
    """
    bright = piece.values > LETTER_HU
    bright &= ~_near_head(piece)
    if not 0 < bright.sum() <= MAX_INK:  # more than that is not writing
        return 0
    values, counts = np.unique(piece.values[bright], return_counts=True)
    ink = bright & (piece.values == values[counts.argmax()])
    spots, _ = ndimage.label(ink)
    sizes = np.bincount(spots.ravel())[1:]
    return int(np.sum((sizes >= LETTER_PIXELS[0]) & (sizes <= LETTER_PIXELS[1])))


def _near_head(piece: Slice) -> Mask:
    """A box around the head, in pixels."""
    head = largest_piece(cells(piece.values > BRAIN_HU[0] - 150, piece.spacing_mm, 0.5))
    box = np.zeros_like(head)
    rows, columns = np.flatnonzero(head.any(1)), np.flatnonzero(head.any(0))
    box[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    size = (piece.values.shape[1], piece.values.shape[0])
    wide = Image.fromarray(box.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
    return np.asarray(wide, bool)


def _bone_above(bone: Mask) -> Mask:
    """Whether there is bone above each cell, or in it."""
    return np.asarray(np.logical_or.accumulate(bone, axis=0))


def _refuse_extent(framed: Framed) -> None:
    longest, shortest = max(framed.height_mm, framed.width_mm), min(framed.height_mm, framed.width_mm)
    if longest > MAX_MM or shortest < MIN_MM:
        raise IntakeRefused("low_quality", "what is in this slice does not have the size of a head")
    if framed.border_share > MAX_BORDER_SHARE:
        raise IntakeRefused("low_quality", "the slice is cut off at its border: send the whole head")
