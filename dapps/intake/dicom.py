"""DICOM bytes -> one CT slice in Hounsfield units with its pixel spacing, or a refusal.

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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pydicom
from pydicom.encaps import generate_frames

from dapps.intake.few_reads import FewReads
from dapps.types import IntakeRefused

HIGHEST_BYTES = 64 * 1024 * 1024
HIGHEST_SIDE = 4096
LOWEST_SIDE = 64
AIR_HU, DENSEST_HU = -1024.0, 3071.0
NARROWEST_MM, WIDEST_MM = 0.05, 5.0
PLAIN = frozenset({"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"})
JPEG_2000 = frozenset({"1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"})
DEFLATED = b"1.2.840.10008.1.2.1.99"
CODESTREAM = b"\xff\x4f\xff\x51"

Array = np.ndarray[Any, np.dtype[Any]]
_quiet = threading.Lock()
"""Silence swaps process-wide tables: two threads inside at once could leave it on for good."""


@dataclass(frozen=True, slots=True)
class Slice:
    """One axial CT slice: float32 HU [H,W], air clipped to -1024, and (row, column) spacing in millimetres."""

    hu: np.ndarray[Any, np.dtype[np.float32]]
    spacing_mm: tuple[float, float]


def read_slice(data: bytes) -> Slice:
    """The single CT slice in a DICOM file.

    Raises:
        IntakeRefused: `too_large`, `too_small`, `unreadable`, `wrong_modality`, `not_grey`, `burned_in`, `multi_frame`,
            `no_rescale`, `no_spacing`, `wrong_orientation`, `wrong_format` or `undecodable`.
    """
    if len(data) > HIGHEST_BYTES:
        raise IntakeRefused("too_large", "the file is larger than one CT slice may be")
    if DEFLATED in data:  # pydicom inflates the whole file before anything can be checked
        raise IntakeRefused("wrong_format", "deflated DICOM is not taken: send it uncompressed or as JPEG 2000")
    with _silence():
        try:
            return _read(data)
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


def _read(data: bytes) -> Slice:
    header = pydicom.dcmread(FewReads(data), force=False)
    _refuse_content(header)
    _refuse_size(header)
    slope, intercept = _rescale(header)
    spacing_mm = _spacing(header)
    _refuse_orientation(header)
    _refuse_encoding(header)
    try:
        stored = np.asarray(header.pixel_array)
    except Exception:
        raise IntakeRefused("undecodable", "the pixel data cannot be decoded") from None
    if stored.shape != (header.Rows, header.Columns):
        raise IntakeRefused("undecodable", "the pixel data do not have the size that the header says")
    hu = _as_signed_or_not(stored.astype(np.int64), int(header.BitsStored), slope, intercept)
    return Slice(np.clip(hu, AIR_HU, DENSEST_HU).astype(np.float32), spacing_mm)


def _refuse_content(header: Any) -> None:
    if str(header.get("Modality", "")).strip().upper() != "CT":
        raise IntakeRefused("wrong_modality", "this is not a CT image: send an axial CT slice")
    if header.get("SamplesPerPixel", 1) != 1 or header.get("PhotometricInterpretation") != "MONOCHROME2":
        raise IntakeRefused("not_grey", "this is not a plain grey CT image")
    if str(header.get("BurnedInAnnotation", "NO")).strip().upper() == "YES":
        raise IntakeRefused("burned_in", "the image has text burned into it, which may name a patient")
    if "LOCALIZER" in [str(part).upper() for part in header.get("ImageType", None) or []]:
        raise IntakeRefused("wrong_orientation", "this is a localizer: send an axial slice")
    if int(header.get("NumberOfFrames", None) or 1) != 1:
        raise IntakeRefused("multi_frame", "the file holds several frames: send one slice a file")


def _refuse_size(header: Any) -> None:
    """Bounds the decoded size from the header alone: a decompression bomb is refused before it unfolds."""
    rows, columns = int(header.get("Rows", 0)), int(header.get("Columns", 0))
    if rows > HIGHEST_SIDE or columns > HIGHEST_SIDE:
        raise IntakeRefused("too_large", f"the image is larger than {HIGHEST_SIDE} pixels a side")
    if rows < LOWEST_SIDE or columns < LOWEST_SIDE:
        raise IntakeRefused("too_small", f"the image is smaller than {LOWEST_SIDE} pixels a side, or holds none")
    if header.get("BitsAllocated") not in (8, 16) or not 8 <= int(header.get("BitsStored", 0)) <= header.BitsAllocated:
        raise IntakeRefused("wrong_format", "the image does not have 8 or 16 bits a pixel")


def _rescale(header: Any) -> tuple[float, float]:
    slope, intercept = header.get("RescaleSlope"), header.get("RescaleIntercept")
    if slope is None or intercept is None:
        raise IntakeRefused("no_rescale", "the image has no rescale to Hounsfield units")
    if not (0 < float(slope) <= 100 and abs(float(intercept)) <= 32_768):
        raise IntakeRefused("no_rescale", "the rescale to Hounsfield units is not plausible")
    return float(slope), float(intercept)


def _spacing(header: Any) -> tuple[float, float]:
    spacing = [float(value) for value in header.get("PixelSpacing", None) or []]
    if len(spacing) != 2 or not all(NARROWEST_MM <= value <= WIDEST_MM for value in spacing):
        raise IntakeRefused("no_spacing", "the image has no plausible pixel spacing")
    return spacing[0], spacing[1]


def _refuse_orientation(header: Any) -> None:
    """Refuses coronal, sagittal and turned slices; a tilted gantry is fine. An absent orientation is taken as axial."""
    cosines = [float(value) for value in header.get("ImageOrientationPatient", None) or []]
    if len(cosines) == 6 and not (cosines[0] > 0.8 and cosines[4] > 0.7 and all(map(math.isfinite, cosines))):
        raise IntakeRefused("wrong_orientation", "this is not an axial slice with the patient's front at the top")


def _refuse_encoding(header: Any) -> None:
    syntax = str(header.file_meta.TransferSyntaxUID)
    if syntax not in PLAIN | JPEG_2000:
        raise IntakeRefused("wrong_format", "this compression is not taken: send it uncompressed or as JPEG 2000")
    if "PixelData" not in header:
        raise IntakeRefused("undecodable", "the file holds no pixel data")
    if syntax in JPEG_2000:
        _refuse_codestream(next(generate_frames(header.PixelData, number_of_frames=1)), header)


def _refuse_codestream(frame: bytes, header: Any) -> None:
    """Holds the codestream's own size against the header's: the decoder believes only the former."""
    if frame[:4] != CODESTREAM or len(frame) < 60:
        raise IntakeRefused("undecodable", "the pixel data are not a JPEG 2000 codestream")
    right, bottom, left, top, tile_width, tile_height = struct.unpack(">6I", frame[8:32])
    (components,) = struct.unpack(">H", frame[40:42])
    if (right - left, bottom - top, components) != (header.Columns, header.Rows, 1):
        raise IntakeRefused("undecodable", "the pixel data do not have the size that the header says")
    if tile_width < LOWEST_SIDE or tile_height < LOWEST_SIDE:
        raise IntakeRefused("undecodable", "the pixel data are cut into too many tiles")


def _as_signed_or_not(stored: Array, bits: int, slope: float, intercept: float) -> Array:
    """HU under the declared sign of the stored values, or under the other where only that gives CT numbers.

    PixelRepresentation is wrong in real archives: read with the wrong sign, air turns into something denser than metal.
    """
    wrapped = np.where(
        stored < 0, stored + (1 << bits), np.where(stored >= 1 << (bits - 1), stored - (1 << bits), stored)
    )
    readings = [values * slope + intercept for values in (stored, wrapped)]
    plausible = [float(np.mean((hu > -1100) & (hu <= DENSEST_HU))) for hu in readings]
    return readings[1] if plausible[1] > plausible[0] else readings[0]
