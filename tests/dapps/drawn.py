"""Draws heads as DICOM files and series, and provides an admission record: nobody's data."""

import io
import json
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from dapps.api.types import ClinicalFile
from dapps.intake.dicom import Slice, read_slices
from dapps.strokedr.case import HEAD_CT

SECRET = "Doe^Jane"


def skull(
    side: int = 256, mm: float = 1.0, half_mm: tuple[float, float] = (90.0, 70.0), seed: int = 0
) -> "np.ndarray[Any, Any]":
    """HU of a drawn head: an oval of grainy brain in a ring of bone, air around it, a table under it."""
    random = np.random.default_rng(seed)
    row, column = (np.indices((side, side)) - side / 2) * mm
    reach = np.sqrt((row / half_mm[0]) ** 2 + (column / half_mm[1]) ** 2)
    hu = np.where(reach < 1, 900.0, -1000.0)
    hu[reach < 0.9] = 34
    hu[-6:-4, 20:-20] = 200
    return np.asarray(hu + random.normal(0, 4, hu.shape), np.float32)


def dicom(hu: "np.ndarray[Any, Any]", place_mm: float = 0.0, edit: Callable[[Any], None] | None = None) -> bytes:
    """A CT slice of drawn HU values as a DICOM file of series 1.2.3."""
    file = FileDataset("", {}, preamble=bytes(128))
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID = CTImageStorage
    file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID = generate_uid()
    file.Modality, file.SeriesInstanceUID, file.PatientName = "CT", "1.2.3", SECRET
    file.Rows, file.Columns = hu.shape
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, 16, 15, 1
    file.RescaleSlope, file.RescaleIntercept, file.PixelSpacing = "1", "0", [1.0, 1.0]
    file.ImageOrientationPatient, file.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, place_mm]
    file.PixelData = np.rint(hu).astype("<i2").tobytes()
    if edit:
        edit(file)
    out = io.BytesIO()
    file.save_as(out, enforce_file_format=True)
    return out.getvalue()


def read_slice(data: bytes) -> Slice:
    """The one slice of a head-CT file."""
    return read_slices(data, lambda piece: piece, HEAD_CT, max_frames=1)[0]


def assign(**values: Any) -> Callable[[Any], None]:
    def edit(file: Any) -> None:
        for name, value in values.items():
            setattr(file, name, value)

    return edit


def zipped(*files: bytes, name: str = "{}.dcm") -> ClinicalFile:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, data in enumerate(files):
            archive.writestr(name.format(number), data)
    return ClinicalFile(out.getvalue())


def head_series(count: int = 12, step_mm: float = 5.0) -> list[bytes]:
    """Slices of a drawn head; the last one lies above it."""
    slices = [dicom(skull(seed=number), number * step_mm) for number in range(count)]
    return [*slices, dicom(np.full((256, 256), -1000.0), count * step_mm)]


RECORD = {
    "age": {"value": 74, "unit": "a"},
    "systolic_pressure": {"value": 160, "unit": "mm[Hg]"},
    "delay": {"value": 90, "unit": "min"},
    "consciousness": "alert",
    "face_deficit": True,
    "arm_deficit": "yes",
    "leg_deficit": "no",
    "dysphasia": "not_assessable",
    "syndrome": "partial_anterior",
}


def record(**changes: Any) -> bytes:
    return json.dumps({name: value for name, value in {**RECORD, **changes}.items() if value != "gone"}).encode()
