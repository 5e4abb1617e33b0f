"""Reads axial slices from DICOM bytes: values, spacing and place of each, or a refusal.

The caller's `SliceRules` name the modality, the region of the body and the smallest side; the reader knows no organ
and no model. `dapps/intake/header.py` reads the header; every bound is checked against it before `pixels.py` decodes a
pixel. No message, log or exception chain carries a value of the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from dapps.api import IntakeRefused
from dapps.intake.exclusions import Exclusion
from dapps.intake.frame import GROUPS, PER_FRAME, SHARED, Frame, read_frame
from dapps.intake.header import Header, NoImage, read_header
from dapps.intake.pixels import decode, image_of, refuse_encoding, refuse_size

MAX_BYTES = 64 * 1024 * 1024
MAX_PIXELS = 80 * 1024 * 1024
"""Of all frames of a file together; each frame is decoded alone."""
MAX_FRAMES = 400
REGIONS = frozenset(
    {
        *("", "ABDOMEN", "ABDOMENPELVIS", "ANKLE", "ARM", "BRAIN", "BREAST", "CALF", "CARDIAC", "CAROTID"),
        *("CEREBELLUM", "CHEST", "CHESTABDOMEN", "CHESTABDPELVIS", "CLAVICLE", "COCCYX", "CSPINE", "CTSPINE", "EAR"),
        *("ELBOW", "EXTREMITY", "EYE", "FACE", "FEMUR", "FINGER", "FOOT", "FOREARM", "HAND", "HEAD", "HEADNECK"),
        *("HEART", "HIP", "HUMERUS", "JAW", "KIDNEY", "KNEE", "LEG", "LIVER", "LOWERLEG", "LSPINE", "LSSPINE", "LUNG"),
        *("MANDIBLE", "MAXILLA", "MEDIASTINUM", "NECK", "NECKCHEST", "NECKCHESTABDOMEN", "NECKCHESTABDPELV", "NOSE"),
        *("ORBIT", "PANCREAS", "PAROTID", "PELVIS", "PROSTATE", "RIB", "SCAPULA", "SHOULDER", "SINUS", "SKULL"),
        *("SPINE", "SPLEEN", "SSPINE", "STERNUM", "THIGH", "THORAX", "THUMB", "TLSPINE", "TMJ", "TOE", "TSPINE"),
        *("UTERUS", "WHOLEBODY", "WRIST", "ZYGOMA"),
    }
)
"""Words for BodyPartExamined by which another part is known; any other word is a person's own and decides nothing."""
NAMES = frozenset(
    {
        *("SeriesInstanceUID", "Modality", "SamplesPerPixel", "PhotometricInterpretation", "ImageType"),
        *("ConversionType", "BurnedInAnnotation", "BodyPartExamined", "Rows", "Columns", "NumberOfFrames"),
        *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "RescaleSlope", "RescaleIntercept"),
        *("PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient", SHARED, PER_FRAME, *GROUPS),
        *("CTImageFrameTypeSequence", "FrameType"),
    }
)
"""All that is read of a header."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceRules:
    """What a DApp accepts of a DICOM file.

    Args:
        modality: the DICOM modality, e.g. ``"CT"``. Only CT must carry a rescale, which gives Hounsfield units.
        allowed_regions: values of BodyPartExamined, in capitals; ``""`` accepts a file that names none. None: any. A
            word that is not among the standard's refuses no file: the DApp judges the picture.
        subject: what a refusal asks the caller to send, e.g. ``"a chest CT"``.
        min_side: fewest rows and columns, in pixels.
        exclusions: images that are refused by other fields, see `dapps/intake/exclusions.py`.
    """

    modality: str
    allowed_regions: frozenset[str] | None = None
    subject: str = "the right part of the body"
    min_side: int = 64
    exclusions: tuple[Exclusion, ...] = ()


@dataclass(frozen=True, slots=True)
class Slice:
    """One axial slice and its place.

    Args:
        values: float32 [H,W]. CT: Hounsfield units, clipped to -1024 (air) and 3071. Else the file's rescaled values.
        spacing_mm: distance of rows and of columns.
        position_mm: place along the normal of the slice; None if the file does not give it.
        series: equal for slices of one series; compared and dropped.
    """

    values: np.ndarray[Any, np.dtype[np.float32]]
    spacing_mm: tuple[float, float]
    position_mm: float | None = None
    series: str = field(default="", repr=False)


def read_slices(
    data: bytes,
    take: Callable[[Slice], T],
    rules: SliceRules,
    *,
    max_frames: int = MAX_FRAMES,
    tick: Callable[[], None] = lambda: None,
) -> list[T]:
    """Applies `take` to each slice in a DICOM file of one or several frames, at most `max_frames`.

    Only one slice is in memory at a time: a file of hundreds of frames would fill it.

    Args:
        data: the file.
        take: receives each slice.
        rules: what the DApp accepts.
        max_frames: most frames in the file.
        tick: called again and again while the header is read, and before each frame; raises to stop the reading.

    Raises:
        NoImage: the file may lie beside images of a study: no DICOM, another modality without pixels, a capture, scout.
        IntakeRefused: a code of `read_header` or of the rules' exclusions; `too_large`, `too_small`, `wrong_modality`,
            `wrong_region`, `not_grey`, `burned_in`, `multi_frame`, `no_rescale`, `no_spacing`, `wrong_orientation`,
            `bad_number`, `bad_count`, `missing_field`, `wrong_bits`, `wrong_format`, `undecodable` or `unreadable`.
    """
    if len(data) > MAX_BYTES:
        raise IntakeRefused("too_large", f"the file is larger than one {rules.modality} slice may be")
    try:
        return [take(piece) for piece in _slices(data, rules, max_frames, tick)]
    except IntakeRefused:
        raise
    except Exception:  # pydicom raises dozens of types, many of which quote the file
        raise IntakeRefused("unreadable", "this is not a DICOM file that can be read") from None


def _slices(data: bytes, rules: SliceRules, max_frames: int, tick: Callable[[], None]) -> Iterator[Slice]:
    header, frames = _header(data, rules, max_frames, tick)
    series = header.text("SeriesInstanceUID")
    image = image_of(header, len(frames))
    for index, frame in enumerate(frames):
        tick()
        values = decode(image, index, rules.modality, frame.rescale)
        yield Slice(values, frame.spacing_mm, frame.position_mm, series)


def _header(data: bytes, rules: SliceRules, max_frames: int, tick: Callable[[], None]) -> tuple[Header, list[Frame]]:
    names = NAMES.union(*(exclusion.fields for exclusion in rules.exclusions))
    header = read_header(data, names, tick)
    _refuse_content(header, rules)
    refuse_size(header, rules.min_side)
    count = header.whole("NumberOfFrames", 1)
    if not 1 <= count <= max_frames:
        raise IntakeRefused("multi_frame", f"the file holds more than {max_frames} frames: send fewer in one file")
    if count * header.whole("Rows") * header.whole("Columns") > MAX_PIXELS:
        raise IntakeRefused("too_large", "the frames are too many for their size")
    frames = [read_frame(header, index, rules.modality) for index in range(count)]
    refuse_encoding(header, count)
    return header, frames


def _refuse_content(header: Header, rules: SliceRules) -> None:
    modality, article = rules.modality, "an" if rules.modality[:1] in "AEFHILMNORSX" else "a"
    if header.text("Modality") != modality:
        refusal = IntakeRefused if header.pixels else NoImage  # another scan, or a dose report
        raise refusal("wrong_modality", f"this is not {article} {modality} image: send an axial {modality} slice")
    for exclusion in rules.exclusions:
        exclusion.refuse(header)
    if header.whole("SamplesPerPixel", 1) != 1 or header.text("PhotometricInterpretation") != "MONOCHROME2":
        raise IntakeRefused("not_grey", f"this is not a plain grey {modality} image")
    kinds = {text.upper() for text in header.texts("ImageType")}
    captured = kinds & {"SCREEN SAVE", "SCREENSHOT"} or header.text("ConversionType")
    if captured or header.text("BurnedInAnnotation") == "YES":
        refusal = NoImage if captured else IntakeRefused
        raise refusal("burned_in", "the image may have text burned into it, which may name a patient")
    if "LOCALIZER" in kinds:
        raise NoImage("wrong_orientation", "this is a localizer: send an axial slice")
    region = header.text("BodyPartExamined")
    if rules.allowed_regions is not None and region in REGIONS - rules.allowed_regions:
        message = f"the file says that this is another part of the body: send {rules.subject}"
        raise IntakeRefused("wrong_region", message)
