"""Turns a case of acute stroke into items for the networks: framed head-CT slices and the admission record.

Every refusal comes from here, before the model runs and before anything is charged. Of a DICOM file only the framed
picture and its place remain. Read `dapps/strokedr/gate.py` next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from dapps.api import ClinicalFile, Inputs, IntakeRefused, Prepared
from dapps.intake import archive, exclusions
from dapps.intake.dicom import Slice, SliceRules
from dapps.intake.record import Values
from dapps.intake.series import Placed, read_series
from dapps.strokedr import gate
from dapps.strokedr.framing import Grey
from dapps.strokedr.prognosis.admission import encode, refuse_implausible

HEAD_CT = SliceRules(
    modality="CT",
    allowed_regions=frozenset({"", "HEAD", "BRAIN", "SKULL", "HEADNECK", "HEAD_NECK", "HEAD NECK", "NEURO"}),
    subject="a head CT",
    min_side=64,
    exclusions=(
        exclusions.SECONDARY_CAPTURE,
        exclusions.QUALITY_CONTROL,
        exclusions.ANIMAL,
        exclusions.CONTRAST,
        exclusions.NOT_HOUNSFIELD,
        exclusions.PROJECTION,
        exclusions.MAP,
        exclusions.LOSSY,
    ),
)
MAX_SLICES = 31
MAX_STEP_MM = 10.0
EXAMPLE: Values = {
    "age": 74.0,
    "delay": 6.0,
    "systolic_pressure": 160.0,
    "sex": "female",
    "consciousness": "alert",
    "atrial_fibrillation": "no",
    "face_deficit": "yes",
    "arm_deficit": "yes",
    "leg_deficit": "no",
    "dysphasia": "yes",
    "syndrome": "partial_anterior",
}


def prepare(files: Sequence[ClinicalFile], record: Values | None) -> Prepared:
    """Makes one item of each slice, and one of the record.

    Args:
        files: DICOM files, or ZIP archives of them.
        record: the values of the admission record, if there is one.

    Raises:
        IntakeRefused: with the code of the first fault.
    """
    if not files and record is None:
        raise IntakeRefused("empty", "send head-CT slices, an admission record, or both")
    items: list[Inputs] = []
    facts: dict[str, Any] = {}
    if files:
        passed_over: list[str] = []
        heads, dropped = _heads(files, passed_over.append)
        items += [{"SLICE": np.asarray(piece.content)[None, None]} for piece in heads]
        facts |= {"slices": len(heads), "dropped": dropped, "passed_over": len(passed_over)}
        facts |= {"positions_mm": [piece.position_mm for piece in heads]}
    if record is not None:
        refuse_implausible(record)
        items.append({"ADMISSION": encode(record)[None]})
        facts["record"] = record
    return Prepared(tuple(items), facts)


def _heads(files: Sequence[ClinicalFile], passed_over: Callable[[str], None]) -> tuple[list[Placed[Grey]], int]:
    """The framed slices in order, and how many slices of the series show no brain, as at its ends."""
    slices = read_series(_files(files), _framed, HEAD_CT, passed_over=passed_over)
    heads = [piece for piece in slices if not isinstance(piece.content, IntakeRefused)]
    refusals = [piece.content for piece in slices if isinstance(piece.content, IntakeRefused)]
    # A head has a few slices without brain; another part of the body has a few that look like a head.
    if len(refusals) > len(heads):
        raise refusals[0]
    return _thinned(heads), len(refusals)


def _framed(piece: Slice) -> Any:
    try:
        return gate.head(piece)[0]
    except IntakeRefused as refusal:  # a series may have slices above and below the brain
        return refusal


def _files(files: Sequence[ClinicalFile]) -> Iterator[bytes]:
    for file in files:
        if archive.is_zip(file.data):
            yield from archive.members(file.data)
        else:
            yield file.data


def _thinned(heads: list[Placed[Grey]]) -> list[Placed[Grey]]:
    """At most MAX_SLICES, evenly spread over the series."""
    if len(heads) <= MAX_SLICES:
        return heads
    chosen = [heads[index] for index in np.rint(np.linspace(0, len(heads) - 1, MAX_SLICES)).astype(int)]
    places = [piece.position_mm or 0.0 for piece in chosen]
    if max(np.diff(places)) > MAX_STEP_MM:
        raise IntakeRefused("too_many", f"the series is too long: send the head alone, at most {MAX_SLICES} slices")
    return chosen
