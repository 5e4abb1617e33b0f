"""Reads axial slices from DICOM bytes: values, spacing and place of each, or a refusal.

The caller's `SliceRules` name the modality, the region of the body and the smallest side; the reader knows no organ
and no model. `dapps/intake/header.py` reads the header; every bound is checked against it before a pixel is decoded, so
that a small file cannot claim much memory, and only transfer syntaxes whose decoded size the header gives are
accepted. No message, log or exception chain carries a value of the file.
"""

from __future__ import annotations

import logging
import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import generate_frames
from pydicom.pixels.utils import pixel_array
from pydicom.uid import UID

from dapps.api import Array, IntakeRefused
from dapps.intake.exclusions import Exclusion
from dapps.intake.header import BIG_ENDIAN, EXPLICIT, IMPLICIT, Fields, Header, NoImage, read_header, refuse_count

MAX_BYTES = 64 * 1024 * 1024
MAX_SIDE = 2048
"""No CT scanner exceeds it; decoding one such slice takes about 150 MB."""
MAX_PIXELS = 80 * 1024 * 1024
"""Of all frames of a file together; each frame is decoded alone."""
MAX_FRAMES = 400
MIN_TILE_SIDE = 64
AIR_HU, MAX_HU = -1024.0, 3071.0
MIN_SPACING_MM, MAX_SPACING_MM = 0.05, 5.0
PLAIN = frozenset({IMPLICIT, EXPLICIT, BIG_ENDIAN})
JPEG_2000 = frozenset({"1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"})
CODESTREAM = b"\xff\x4f\xff\x51"
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
SHARED, PER_FRAME = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"
GROUPS = (
    "PixelMeasuresSequence",
    "PixelValueTransformationSequence",
    "PlanePositionSequence",
    "PlaneOrientationSequence",
)
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
_decoder_lock = threading.Lock()
"""`warnings.catch_warnings` swaps process-wide state: two threads inside at once could leave warnings off for good.

Held while one frame of checked size is decoded, never while a header is read: a long series delays another caller by
one frame, and the memory that decoding takes is needed once per process however many calls run.
"""


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


@dataclass(frozen=True, slots=True)
class _Frame:
    """The geometry of one frame, from the header itself or from the functional groups of a multi-frame file."""

    spacing_mm: tuple[float, float]
    rescale: tuple[float, float]
    position_mm: float | None


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


@contextmanager
def _silence() -> Iterator[None]:
    """Suppresses pydicom's warnings and log, which quote values of the file."""
    log = logging.getLogger("pydicom")
    with _decoder_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before, log.disabled = log.disabled, True
        try:
            yield
        finally:
            log.disabled = before


def _slices(data: bytes, rules: SliceRules, max_frames: int, tick: Callable[[], None]) -> Iterator[Slice]:
    header, frames = _header(data, rules, max_frames, tick)
    series = header.text("SeriesInstanceUID")
    image = _image(header, len(frames))
    for index, frame in enumerate(frames):
        tick()
        with _silence():
            piece = _decoded(image, index, frame, series, rules)
        yield piece


def _header(data: bytes, rules: SliceRules, max_frames: int, tick: Callable[[], None]) -> tuple[Header, list[_Frame]]:
    names = NAMES.union(*(exclusion.fields for exclusion in rules.exclusions))
    header = read_header(data, names, tick)
    _refuse_content(header, rules)
    _refuse_size(header, rules.min_side)
    count = header.whole("NumberOfFrames", 1)
    if not 1 <= count <= max_frames:
        raise IntakeRefused("multi_frame", f"the file holds more than {max_frames} frames: send fewer in one file")
    if count * header.whole("Rows") * header.whole("Columns") > MAX_PIXELS:
        raise IntakeRefused("too_large", "the frames are too many for their size")
    frames = [_frame(header, index, rules) for index in range(count)]
    _refuse_encoding(header, count)
    return header, frames


def _frame(header: Header, index: int, rules: SliceRules) -> _Frame:
    """The geometry of one frame, from its own group, the shared group or the header, whichever has it first."""
    places: list[Fields] = [header]
    for name, place in ((SHARED, 0), (PER_FRAME, index)):
        groups = header.sequences.get(name, [])
        if place < len(groups):
            parts = [groups[place].sequences.get(part, []) for part in GROUPS]
            places = [part[0] for part in parts if part] + places
    spacing_mm, rescale = _spacing(places), _rescale(places, rules)
    return _Frame(spacing_mm, rescale, _position(places, _refuse_orientation(places)))


def _first(places: list[Fields], name: str) -> list[float]:
    return next((numbers for place in places if (numbers := place.numbers(name))), [])


def _image(header: Header, count: int) -> Dataset:
    """What the decoder needs of the file, and nothing else: no name can come into a warning."""
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = UID(header.syntax)
    for name in ("Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation"):
        setattr(image, name, header.whole(name))
    image.HighBit, image.NumberOfFrames = image.BitsStored - 1, count
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.add_new("PixelData", header.pixels_vr, header.pixels)
    return image


def _decoded(image: Dataset, index: int, frame: _Frame, series: str, rules: SliceRules) -> Slice:
    try:
        stored = np.asarray(pixel_array(image, index=index))
    except Exception:
        raise IntakeRefused("undecodable", "the pixel data cannot be decoded") from None
    if stored.shape != (image.Rows, image.Columns):
        raise IntakeRefused("undecodable", "the pixel data do not have the size that the header says")
    slope, intercept = frame.rescale
    if rules.modality == "CT":
        values = _hounsfield(stored.astype(np.int64), int(image.BitsStored), slope, intercept)
    else:
        values = stored * slope + intercept
    return Slice(values.astype(np.float32), frame.spacing_mm, frame.position_mm, series)


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


def _refuse_size(header: Header, min_side: int) -> None:
    """Bounds the decoded size from the header alone: a decompression bomb is refused before it unfolds."""
    rows, columns = header.whole("Rows"), header.whole("Columns")
    if rows > MAX_SIDE or columns > MAX_SIDE:
        raise IntakeRefused("too_large", f"the image is larger than {MAX_SIDE} pixels a side")
    if rows < max(min_side, 1) or columns < max(min_side, 1):
        raise IntakeRefused("too_small", f"the image is smaller than {min_side} pixels a side, or holds none")
    allocated = header.whole("BitsAllocated")
    if allocated not in (8, 16) or not 8 <= header.whole("BitsStored") <= allocated:
        raise IntakeRefused("wrong_format", "the image does not have 8 or 16 bits a pixel")


def _rescale(places: list[Fields], rules: SliceRules) -> tuple[float, float]:
    slope, intercept = _first(places, "RescaleSlope"), _first(places, "RescaleIntercept")
    if rules.modality != "CT" and not slope and not intercept:
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


def _refuse_encoding(header: Header, count: int) -> None:
    if header.syntax not in PLAIN | JPEG_2000:
        raise IntakeRefused("wrong_format", "this compression is not taken: send it uncompressed or as JPEG 2000")
    if header.pixels is None:
        raise IntakeRefused("undecodable", "the file holds no pixel data")
    if not header.numbers("PixelRepresentation"):
        raise IntakeRefused("missing_field", "the file lacks PixelRepresentation: export the image again")
    if header.syntax in JPEG_2000:
        if sum(1 for _ in _codestreams(header, count)) != count:
            raise IntakeRefused("undecodable", "the pixel data do not have as many frames as the header says")
    elif header.whole("HighBit", header.whole("BitsStored") - 1) != header.whole("BitsStored") - 1:
        raise IntakeRefused("wrong_bits", "HighBit must be BitsStored less one: export the image again")


def _codestreams(header: Header, count: int) -> Iterator[None]:
    try:
        for codestream in generate_frames(header.pixels or b"", number_of_frames=count):
            _refuse_codestream(codestream, header)
            yield
    except IntakeRefused:
        raise
    except Exception:  # what a damaged encapsulation raises has no one type
        raise IntakeRefused("undecodable", "the pixel data are damaged: send the whole file") from None


def _refuse_codestream(codestream: bytes, header: Header) -> None:
    """Compares the codestream's own size with the header's: the decoder reads only the former."""
    rows, columns = header.whole("Rows"), header.whole("Columns")
    if codestream[:4] != CODESTREAM or len(codestream) < 60:
        raise IntakeRefused("undecodable", "the pixel data are not a JPEG 2000 codestream")
    right, bottom, left, top, tile_width, tile_height = struct.unpack(">6I", codestream[8:32])
    (components,) = struct.unpack(">H", codestream[40:42])
    if (right - left, bottom - top, components) != (columns, rows, 1):
        raise IntakeRefused("undecodable", "the pixel data do not have the size that the header says")
    if tile_width < min(MIN_TILE_SIDE, columns) or tile_height < min(MIN_TILE_SIDE, rows):
        raise IntakeRefused("undecodable", "the pixel data are cut into too many tiles")


def _hounsfield(stored: Array, bits: int, slope: float, intercept: float) -> Array:
    """Hounsfield units under the declared sign of the stored values, or under the other if only that is plausible.

    PixelRepresentation is wrong in real archives: read with the wrong sign, air becomes denser than metal.
    """
    half, whole = 1 << (bits - 1), 1 << bits
    wrapped = np.where(stored < 0, stored + whole, np.where(stored >= half, stored - whole, stored))
    declared, other = (values * slope + intercept for values in (stored, wrapped))
    plausible = [float(np.mean((hu > -1100) & (hu <= MAX_HU))) for hu in (declared, other)]
    return np.clip(other if plausible[1] > plausible[0] else declared, AIR_HU, MAX_HU)
