"""Reads the geometry of one frame of a DICOM file: spacing, rescale and place, or refuses it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dapps.api import IntakeRefused
from dapps.intake.header import Fields, Header, refuse_count

MIN_SPACING_MM, MAX_SPACING_MM = 0.05, 5.0
SHARED, PER_FRAME = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"
GROUPS = (
    "PixelMeasuresSequence",
    "PixelValueTransformationSequence",
    "PlanePositionSequence",
    "PlaneOrientationSequence",
)


@dataclass(frozen=True, slots=True)
class Frame:
    """The geometry of one frame.

    Args:
        spacing_mm: distance of rows and of columns.
        rescale: slope and intercept, from stored values to the file's unit.
        position_mm: place along the normal of the slice; None if the file does not give it.
    """

    spacing_mm: tuple[float, float]
    rescale: tuple[float, float]
    position_mm: float | None


def read_frame(header: Header, index: int, modality: str) -> Frame:
    """Reads each field from the frame's own group, the shared group or the header, whichever has it first.

    Raises:
        IntakeRefused: `no_spacing`, `no_rescale` (CT alone must carry one), `wrong_orientation` or `bad_count`.
    """
    places: list[Fields] = [header]
    for name, place in ((SHARED, 0), (PER_FRAME, index)):
        groups = header.sequences.get(name, [])
        if place < len(groups):
            parts = [groups[place].sequences.get(part, []) for part in GROUPS]
            places = [part[0] for part in parts if part] + places
    spacing_mm, rescale = _spacing(places), _rescale(places, modality)
    return Frame(spacing_mm, rescale, _position(places, _refuse_orientation(places)))


def _first(places: list[Fields], name: str) -> list[float]:
    return next((numbers for place in places if (numbers := place.numbers(name))), [])


def _rescale(places: list[Fields], modality: str) -> tuple[float, float]:
    slope, intercept = _first(places, "RescaleSlope"), _first(places, "RescaleIntercept")
    if modality != "CT" and not slope and not intercept:
        return 1.0, 0.0
    if not slope or not intercept:
        raise IntakeRefused("no_rescale", "the image has no rescale to Hounsfield units")
    refuse_count("RescaleSlope", slope, 1)
    refuse_count("RescaleIntercept", intercept, 1)
    if not (0 < slope[0] <= 100 and abs(intercept[0]) <= 32_768):
        raise IntakeRefused("no_rescale", "the rescale to Hounsfield units is not plausible")
    return slope[0], intercept[0]


def _spacing(places: list[Fields]) -> tuple[float, float]:
    spacing = _first(places, "PixelSpacing")
    refuse_count("PixelSpacing", spacing, 2)
    if not spacing or not all(MIN_SPACING_MM <= value <= MAX_SPACING_MM for value in spacing):
        raise IntakeRefused("no_spacing", "the image has no plausible pixel spacing")
    return spacing[0], spacing[1]


def _refuse_orientation(places: list[Fields]) -> list[float]:
    """Refuses coronal, sagittal and turned slices; accepts a tilted gantry. A file without orientation is axial."""
    cosines = _first(places, "ImageOrientationPatient")
    if len(cosines) != 6:
        return []
    if not (cosines[0] > 0.8 and cosines[4] > 0.7):
        raise IntakeRefused("wrong_orientation", "this is not an axial slice with the patient's front at the top")
    return cosines


def _position(places: list[Fields], cosines: list[float]) -> float | None:
    place = _first(places, "ImagePositionPatient")
    if len(place) != 3 or not cosines:
        return None
    return float(np.dot(np.cross(cosines[:3], cosines[3:]), place))
