"""Decodes the pixels of one frame, after their declared size and encoding are bounded from the header.

Only transfer syntaxes whose decoded size the header gives are accepted, so that a small file cannot claim much memory.
"""

from __future__ import annotations

import logging
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import generate_frames
from pydicom.pixels.utils import pixel_array
from pydicom.uid import UID

from dapps.api import Array, IntakeRefused
from dapps.intake.header import BIG_ENDIAN, EXPLICIT, IMPLICIT, Header

MAX_SIDE = 2048
"""No CT scanner exceeds it; decoding one such slice takes about 150 MB."""
MIN_TILE_SIDE = 64
AIR_HU, MAX_HU = -1024.0, 3071.0
PLAIN = frozenset({IMPLICIT, EXPLICIT, BIG_ENDIAN})
JPEG_2000 = frozenset({"1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"})
CODESTREAM = b"\xff\x4f\xff\x51"
_decoder_lock = threading.Lock()
"""`warnings.catch_warnings` swaps process-wide state: two threads inside at once could leave warnings off for good.

Held while one frame of checked size is decoded, never while a header is read: a long series delays another caller by
one frame, and the memory that decoding takes is needed once per process however many calls run.
"""


def refuse_size(header: Header, min_side: int) -> None:
    """Bounds the decoded size from the header alone: a decompression bomb is refused before it unfolds."""
    rows, columns = header.whole("Rows"), header.whole("Columns")
    if rows > MAX_SIDE or columns > MAX_SIDE:
        raise IntakeRefused("too_large", f"the image is larger than {MAX_SIDE} pixels a side")
    if rows < max(min_side, 1) or columns < max(min_side, 1):
        raise IntakeRefused("too_small", f"the image is smaller than {min_side} pixels a side, or holds none")
    allocated = header.whole("BitsAllocated")
    if allocated not in (8, 16) or not 8 <= header.whole("BitsStored") <= allocated:
        raise IntakeRefused("wrong_format", "the image does not have 8 or 16 bits a pixel")


def refuse_encoding(header: Header, count: int) -> None:
    """Refuses pixel data of `count` frames that cannot be decoded, or that do not have the header's size."""
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


def image_of(header: Header, count: int) -> Dataset:
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


def decode(
    image: Dataset, index: int, modality: str, rescale: tuple[float, float]
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The values of one frame.

    Args:
        image: of `image_of`.
        index: of the frame, from 0.
        modality: "CT" clips to -1024 (air) and 3071 HU.
        rescale: slope and intercept.

    Returns:
        float32 [H,W], in the file's unit (CT: Hounsfield units).

    Raises:
        IntakeRefused: `undecodable`.
    """
    try:
        with _silence():
            stored = np.asarray(pixel_array(image, index=index))
    except Exception:
        raise IntakeRefused("undecodable", "the pixel data cannot be decoded") from None
    if stored.shape != (image.Rows, image.Columns):
        raise IntakeRefused("undecodable", "the pixel data do not have the size that the header says")
    slope, intercept = rescale
    if modality == "CT":
        return _hounsfield(stored.astype(np.int64), int(image.BitsStored), slope, intercept).astype(np.float32)
    return (stored * slope + intercept).astype(np.float32)


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
