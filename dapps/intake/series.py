"""Reads the slices of one series from DICOM files, in the order of the body, or refuses them.

A study comes with files that are no images: texts, thumbnails, scouts, dose reports, secondary captures. They are
passed over and counted where the case has slices too. Any other faulty file refuses the case, by its ordinal.

`take` receives each slice as soon as it is read, and the slice is dropped, so a series needs no more memory than one
slice and what `take` returns. Read `dapps/intake/dicom.py` first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Generic, TypeVar

from dapps.api import IntakeRefused
from dapps.intake.dicom import Slice, SliceRules, read_slices
from dapps.intake.header import NoImage
from dapps.intake.ordinals import numbered

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
    passed_over: Callable[[str], None] = lambda code: None,
    clock: Callable[[], float] = time.monotonic,
) -> list[Placed[T]]:
    """All slices of the files, from feet to head.

    Args:
        files: DICOM files, and what may lie beside them in a study.
        take: receives each slice; what it returns is kept.
        rules: what the DApp accepts.
        passed_over: receives the code of each file that is no image of the kind, if others are.
        clock: seconds.

    Raises:
        IntakeRefused: as `read_slices`, with the ordinal of the file at fault where there are several; `too_many`,
            `too_slow`, `mixed_series`, `no_position`, `duplicate_slice` or `slice_gap`.
    """
    deadline_s = clock() + MAX_S
    slices: list[tuple[int, Placed[T]]] = []
    companions: list[tuple[int, NoImage]] = []
    series: set[tuple[str, tuple[int, ...]]] = set()

    def refuse_slow() -> None:
        if clock() > deadline_s:
            raise IntakeRefused("too_slow", "the series takes too long to read: send thicker slices")

    def place(piece: Slice) -> Placed[T]:
        refuse_slow()
        series.add((piece.series, piece.values.shape))
        if len(series) > 1:
            raise IntakeRefused("mixed_series", "this slice is of another series than those before: send one alone")
        return Placed(take(piece), piece.position_mm)

    ordinal = 0
    waiting = iter(files)
    for ordinal, file in enumerate(waiting, 1):
        try:
            slices += [(ordinal, piece) for piece in read_slices(file, place, rules, tick=refuse_slow)]
        except NoImage as refused:
            refuse_slow()
            companions.append((ordinal, refused))
        except IntakeRefused as refused:
            raise numbered(refused, ordinal, ordinal > 1 or _another(waiting)) from None
        if len(slices) > MAX_SLICES:
            raise IntakeRefused("too_many", f"the series has more than {MAX_SLICES} slices: send thicker ones")
    if not slices and companions:
        first, cause = companions[0]
        raise numbered(cause, first, ordinal > 1)
    for _, cause in companions:
        passed_over(cause.code)
    return _in_order(slices, ordinal > 1)


def _another(files: Iterator[bytes]) -> bool:
    try:
        return next(files, None) is not None
    except IntakeRefused:  # of the next file
        return True


def _in_order(slices: list[tuple[int, Placed[T]]], several: bool) -> list[Placed[T]]:
    if len(slices) < 2:
        return [piece for _, piece in slices]
    for ordinal, piece in slices:
        if piece.position_mm is None:
            message = "the slice does not tell its place: send it with ImagePositionPatient"
            raise numbered(IntakeRefused("no_position", message), ordinal, several)
    ordered = sorted(slices, key=lambda slice_of: slice_of[1].position_mm or 0.0)
    for (first, before), (other, after) in pairwise(ordered):
        if (after.position_mm or 0.0) - (before.position_mm or 0.0) < SAME_MM:
            which = f"files {min(first, other)} and {max(first, other)}" if several else "two slices"
            raise IntakeRefused("duplicate_slice", f"{which} lie at the same place: send one series alone")
    _refuse_gaps([piece.position_mm or 0.0 for _, piece in ordered])
    return [piece for _, piece in ordered]


def _refuse_gaps(places_mm: list[float]) -> None:
    """Refuses a step that is much longer than both its neighbours; a protocol may change its step once."""
    steps = [after - before for before, after in pairwise(places_mm)]
    for index, step in enumerate(steps):
        beside = steps[max(0, index - 1) : index] + steps[index + 1 : index + 2]
        if step > MAX_GAP_MM or (beside and step > GAP_FACTOR * max(beside)):
            raise IntakeRefused("slice_gap", "slices are missing: send the whole series")
