"""Reads the slices of one series from DICOM files, in the order of the body, or refuses them.

`take` receives each slice as soon as it is read, and the slice is dropped, so a series needs no more memory than one
slice and what `take` returns. Read `dapps/intake/dicom.py` first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Generic, TypeVar

from dapps.api import IntakeRefused
from dapps.intake.dicom import Slice, SliceRules, read_slices

MAX_SLICES = 400
MAX_S = 45.0
"""Reading stops after this many seconds: nobody occupies a core for the price of one call."""
MAX_GAP_MM = 12.0
GAP_FACTOR = 1.5
SAME_MM = 0.01
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Placed(Generic[T]):
    """What `take` returned for one slice, and the slice's place along the body in mm; None for a lone slice."""

    content: T
    position_mm: float | None


def read_series(
    files: Iterable[bytes],
    take: Callable[[Slice], T],
    rules: SliceRules,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> list[Placed[T]]:
    """All slices of the files, from feet to head.

    Raises:
        IntakeRefused: as `read_slices`; `too_many`, `too_slow`, `mixed_series`, `no_position`, `duplicate_slice` or
            `slice_gap`.
    """
    deadline_s = clock() + MAX_S
    slices: list[Placed[T]] = []
    series: set[tuple[str, tuple[int, ...]]] = set()

    def refuse_slow() -> None:
        if clock() > deadline_s:
            raise IntakeRefused("too_slow", "the series takes too long to read: send thicker slices")

    def place(piece: Slice) -> Placed[T]:
        refuse_slow()
        series.add((piece.series, piece.values.shape))
        return Placed(take(piece), piece.position_mm)

    for file in files:
        slices += read_slices(file, place, rules, tick=refuse_slow)
        if len(slices) > MAX_SLICES:
            raise IntakeRefused("too_many", f"the series has more than {MAX_SLICES} slices: send thicker ones")
        if len(series) > 1:
            raise IntakeRefused("mixed_series", "the slices are not of one series: send one series alone")
    return _in_order(slices)


def _in_order(slices: list[Placed[T]]) -> list[Placed[T]]:
    if len(slices) < 2:
        return slices
    if any(piece.position_mm is None for piece in slices):
        raise IntakeRefused("no_position", "the slices do not tell their place: send them with ImagePositionPatient")
    ordered = sorted(slices, key=lambda piece: piece.position_mm or 0.0)
    _refuse_gaps([piece.position_mm or 0.0 for piece in ordered])
    return ordered


def _refuse_gaps(places_mm: list[float]) -> None:
    """Refuses a step that is much longer than both its neighbours; a protocol may change its step once."""
    steps = [after - before for before, after in pairwise(places_mm)]
    if min(steps) < SAME_MM:
        raise IntakeRefused("duplicate_slice", "two slices lie at the same place: send one series alone")
    for index, step in enumerate(steps):
        beside = steps[max(0, index - 1) : index] + steps[index + 1 : index + 2]
        if step > MAX_GAP_MM or (beside and step > GAP_FACTOR * max(beside)):
            raise IntakeRefused("slice_gap", "slices are missing: send the whole series")
