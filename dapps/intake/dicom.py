"""DICOM bytes -> axial CT slices in Hounsfield units, with spacing and place, or a refusal.

Header first: every bound is checked before a pixel is decoded, so a small file cannot ask for much memory. Only
transfer syntaxes whose decoded size is known beforehand are taken. No message, log or exception chain carries a value
of the file. Knows no organ and no model: whether it is a head is for `dapps/strokedr/gate.py`.
"""

from __future__ import annotations

import logging
import math
import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import pydicom
from pydicom.encaps import generate_frames
from pydicom.pixels.utils import pixel_array

from dapps.api import IntakeRefused
from dapps.intake.bounded_reader import BoundedReader

MAX_BYTES = 64 * 1024 * 1024
MAX_SIDE = 2048
"""No CT scanner gives more; decoding one such slice needs some 150 MB for a moment."""
MAX_PIXELS = 80 * 1024 * 1024
"""Of all frames of a file together; each is decoded alone."""
MIN_SIDE = 64
AIR_HU, MAX_HU = -1024.0, 3071.0
MIN_MM, MAX_MM = 0.05, 5.0
MAX_FRAMES = 400
HEAD_PARTS = frozenset({"", "HEAD", "BRAIN", "SKULL", "HEADNECK", "HEAD_NECK", "HEAD NECK", "NEURO"})
PLAIN = frozenset({"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"})
JPEG_2000 = frozenset({"1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"})
DEFLATED = b"1.2.840.10008.1.2.1.99"
CODESTREAM = b"\xff\x4f\xff\x51"

Array = np.ndarray[Any, np.dtype[Any]]
T = TypeVar("T")
_quiet = threading.Lock()
"""Silence swaps process-wide tables: two threads inside at once could leave it on for good.

Held for a header or one frame and then given up, so that a long series delays others by a frame, and that no two
frames are decoded at once: the memory of decoding is needed once, however many calls there are."""


@dataclass(frozen=True, slots=True)
class Slice:
    """One axial CT slice: float32 HU [H,W], air clipped to -1024, and (row, column) spacing in millimetres.

    `position_mm` is its place along the normal of the slice, None if the file does not tell. `series` is equal for
    slices of one series and says nothing else; it is compared and dropped.
    """

    hu: np.ndarray[Any, np.dtype[np.float32]]
    spacing_mm: tuple[float, float]
    position_mm: float | None = None
    series: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class _Frame:
    """Where one frame's facts stand: in the header itself, or in the functional groups of a multi-frame file."""

    spacing_mm: tuple[float, float]
    rescale: tuple[float, float]
    position_mm: float | None


def read_slice(data: bytes) -> Slice:
    """The single CT slice in a DICOM file.

    Raises:
        IntakeRefused: as `read_slices`; `multi_frame` if there are several.
    """
    return read_slices(data, lambda piece: piece, most=1)[0]


def read_slices(data: bytes, take: Callable[[Slice], T], most: int = MAX_FRAMES) -> list[T]:
    """What `take` makes of each CT slice in a DICOM file of one or several frames, at most `most`.

    Only one slice is in memory at a time: a file of hundreds of frames would fill it.

    Raises:
        IntakeRefused: `too_large`, `too_small`, `unreadable`, `wrong_modality`, `wrong_region`, `not_grey`,
            `burned_in`, `multi_frame`, `no_rescale`, `no_spacing`, `wrong_orientation`, `wrong_format` or
            `undecodable`.
    """
    if len(data) > MAX_BYTES:
        raise IntakeRefused("too_large", "the file is larger than one CT slice may be")
    if DEFLATED in data:  # pydicom inflates the whole file before anything can be checked
        raise IntakeRefused("wrong_format", "deflated DICOM is not taken: send it uncompressed or as JPEG 2000")
    try:
        return [take(piece) for piece in _read(data, most)]
    except IntakeRefused:
        raise
    except Exception:  # pydicom raises dozens of types, many of which quote the file
        raise IntakeRefused("unreadable", "this is not a DICOM file that can be read") from None


@contextmanager
def _silence() -> Iterator[None]:
    """Keeps pydicom from talking: its warnings and its log quote values of the file, a patient's name among them."""
    log = logging.getLogger("pydicom")
    with _quiet, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before, log.disabled = log.disabled, True
        try:
            yield
        finally:
            log.disabled = before


def _read(data: bytes, most: int) -> Iterator[Slice]:
    with _silence():
        header, known = _opened(data, most)
        series = str(header.get("SeriesInstanceUID", ""))
    for index, fact in enumerate(known):
        with _silence():
            piece = _decoded(header, index, fact, series)
        yield piece


def _opened(data: bytes, most: int) -> tuple[Any, list[_Frame]]:
    header = pydicom.dcmread(BoundedReader(data), force=False)
    _refuse_content(header)
    _refuse_size(header)
    frames = int(header.get("NumberOfFrames", None) or 1)
    if not 1 <= frames <= most:
        raise IntakeRefused("multi_frame", f"the file holds more than {most} frames: send fewer in one file")
    if frames * int(header.Rows) * int(header.Columns) > MAX_PIXELS:
        raise IntakeRefused("too_large", "the frames are too many for their size")
    known = [_frame(header, index) for index in range(frames)]
    _refuse_encoding(header, frames)
    return header, known


def _frame(header: Any, index: int) -> _Frame:
    """The facts of one frame, from its own group, the shared group or the header, whichever comes first."""
    places = [header]
    for name, place in (("SharedFunctionalGroupsSequence", 0), ("PerFrameFunctionalGroupsSequence", index)):
        groups = header.get(name, None) or []
        if place < len(groups):
            group = groups[place]
            names = ("PixelMeasuresSequence", "PixelValueTransformationSequence", "PlanePositionSequence")
            found = [group.get(each, None) or [] for each in (*names, "PlaneOrientationSequence")]
            places = [each[0] for each in found if each] + places
    spacing_mm, rescale = _spacing(places), _rescale(places)
    return _Frame(spacing_mm, rescale, _position(places, _refuse_orientation(places)))


def _first(places: list[Any], name: str) -> Any:
    return next((place.get(name) for place in places if place.get(name) is not None), None)


def _decoded(header: Any, index: int, fact: _Frame, series: str) -> Slice:
    try:
        stored = np.asarray(pixel_array(header, index=index))
    except Exception:
        raise IntakeRefused("undecodable", "the pixel data cannot be decoded") from None
    if stored.shape != (header.Rows, header.Columns):
        raise IntakeRefused("undecodable", "the pixel data do not have the size that the header says")
    hu = _as_signed_or_not(stored.astype(np.int64), int(header.BitsStored), *fact.rescale)
    hu = np.clip(hu, AIR_HU, MAX_HU).astype(np.float32)
    return Slice(hu, fact.spacing_mm, fact.position_mm, series)


def _refuse_content(header: Any) -> None:
    if str(header.get("Modality", "")).strip().upper() != "CT":
        raise IntakeRefused("wrong_modality", "this is not a CT image: send an axial CT slice")
    if header.get("SamplesPerPixel", 1) != 1 or header.get("PhotometricInterpretation") != "MONOCHROME2":
        raise IntakeRefused("not_grey", "this is not a plain grey CT image")
    kinds = {str(part).upper() for part in header.get("ImageType", None) or []}
    captured = kinds & {"SCREEN SAVE", "SCREENSHOT"} or header.get("ConversionType", None)
    if captured or str(header.get("BurnedInAnnotation", "NO")).strip().upper() == "YES":
        raise IntakeRefused("burned_in", "the image may have text burned into it, which may name a patient")
    if "LOCALIZER" in kinds:
        raise IntakeRefused("wrong_orientation", "this is a localizer: send an axial slice")
    if str(header.get("BodyPartExamined", None) or "").strip().upper() not in HEAD_PARTS:
        raise IntakeRefused("wrong_region", "the file says that this is another part of the body: send a head CT")


def _refuse_size(header: Any) -> None:
    """Bounds the decoded size from the header alone: a decompression bomb is refused before it unfolds."""
    rows, columns = int(header.get("Rows", 0)), int(header.get("Columns", 0))
    if rows > MAX_SIDE or columns > MAX_SIDE:
        raise IntakeRefused("too_large", f"the image is larger than {MAX_SIDE} pixels a side")
    if rows < MIN_SIDE or columns < MIN_SIDE:
        raise IntakeRefused("too_small", f"the image is smaller than {MIN_SIDE} pixels a side, or holds none")
    if header.get("BitsAllocated") not in (8, 16) or not 8 <= int(header.get("BitsStored", 0)) <= header.BitsAllocated:
        raise IntakeRefused("wrong_format", "the image does not have 8 or 16 bits a pixel")


def _rescale(places: list[Any]) -> tuple[float, float]:
    slope, intercept = _first(places, "RescaleSlope"), _first(places, "RescaleIntercept")
    if slope is None or intercept is None:
        raise IntakeRefused("no_rescale", "the image has no rescale to Hounsfield units")
    if not (0 < float(slope) <= 100 and abs(float(intercept)) <= 32_768):
        raise IntakeRefused("no_rescale", "the rescale to Hounsfield units is not plausible")
    return float(slope), float(intercept)


def _spacing(places: list[Any]) -> tuple[float, float]:
    spacing = [float(value) for value in _first(places, "PixelSpacing") or []]
    if len(spacing) != 2 or not all(MIN_MM <= value <= MAX_MM for value in spacing):
        raise IntakeRefused("no_spacing", "the image has no plausible pixel spacing")
    return spacing[0], spacing[1]


def _refuse_orientation(places: list[Any]) -> list[float]:
    """Refuses coronal, sagittal and turned slices; a tilted gantry is fine. An absent orientation is taken as axial."""
    cosines = [float(value) for value in _first(places, "ImageOrientationPatient") or []]
    if len(cosines) != 6:
        return []
    if not (cosines[0] > 0.8 and cosines[4] > 0.7 and all(map(math.isfinite, cosines))):
        raise IntakeRefused("wrong_orientation", "this is not an axial slice with the patient's front at the top")
    return cosines


def _position(places: list[Any], cosines: list[float]) -> float | None:
    """Place along the normal of the slice, in millimetres; None if the file does not tell."""
    place = [float(value) for value in _first(places, "ImagePositionPatient") or []]
    if len(place) != 3 or not cosines or not all(map(math.isfinite, place)):
        return None
    return float(np.dot(np.cross(cosines[:3], cosines[3:]), place))


def _refuse_encoding(header: Any, frames: int) -> None:
    syntax = str(header.file_meta.TransferSyntaxUID)
    if syntax not in PLAIN | JPEG_2000:
        raise IntakeRefused("wrong_format", "this compression is not taken: send it uncompressed or as JPEG 2000")
    if "PixelData" not in header:
        raise IntakeRefused("undecodable", "the file holds no pixel data")
    if syntax in JPEG_2000:
        found = 0
        for frame in generate_frames(header.PixelData, number_of_frames=frames):
            _refuse_codestream(frame, header)
            found += 1
        if found != frames:
            raise IntakeRefused("undecodable", "the pixel data do not have as many frames as the header says")


def _refuse_codestream(frame: bytes, header: Any) -> None:
    """Holds the codestream's own size against the header's: the decoder believes only the former."""
    if frame[:4] != CODESTREAM or len(frame) < 60:
        raise IntakeRefused("undecodable", "the pixel data are not a JPEG 2000 codestream")
    right, bottom, left, top, tile_width, tile_height = struct.unpack(">6I", frame[8:32])
    (components,) = struct.unpack(">H", frame[40:42])
    if (right - left, bottom - top, components) != (header.Columns, header.Rows, 1):
        raise IntakeRefused("undecodable", "the pixel data do not have the size that the header says")
    if tile_width < MIN_SIDE or tile_height < MIN_SIDE:
        raise IntakeRefused("undecodable", "the pixel data are cut into too many tiles")


def _as_signed_or_not(stored: Array, bits: int, slope: float, intercept: float) -> Array:
    """HU under the declared sign of the stored values, or under the other where only that gives CT numbers.

    PixelRepresentation is wrong in real archives: read with the wrong sign, air turns into something denser than metal.
    """
    wrapped = np.where(
        stored < 0, stored + (1 << bits), np.where(stored >= 1 << (bits - 1), stored - (1 << bits), stored)
    )
    readings = [values * slope + intercept for values in (stored, wrapped)]
    plausible = [float(np.mean((hu > -1100) & (hu <= MAX_HU))) for hu in readings]
    return readings[1] if plausible[1] > plausible[0] else readings[0]
