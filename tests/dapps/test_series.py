"""Tests dapps/intake/archive.py and series.py, and StrokeDr.'s reading of a series: ordered, whole, bounded."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pydicom.dataset import Dataset

from dapps.api.types import Case, ClinicalFile, IntakeRefused
from dapps.intake.series import read_series
from dapps.strokedr import StrokeDr
from dapps.strokedr.case import HEAD_CT
from tests.dapps.drawn import SECRET, assign, dicom, head_series, skull, zipped


def test_slices_come_in_the_order_of_the_head_whatever_they_are_called() -> None:
    files = head_series()
    plain = StrokeDr().prepare(Case((zipped(*files),)))
    turned = StrokeDr().prepare(Case((zipped(*reversed(files), name="a/{}.bin"),)))
    apart = StrokeDr().prepare(Case(tuple(map(ClinicalFile, files[::-1]))))
    for other in (turned, apart):
        pairs = zip(plain.items, other.items, strict=True)
        assert all(np.array_equal(first["SLICE"], two["SLICE"]) for first, two in pairs)


def test_a_long_series_is_thinned_evenly_to_what_is_priced() -> None:
    prepared = StrokeDr().prepare(Case((zipped(*head_series(70, 2.0)),)))
    assert len(prepared.items) == StrokeDr.price.maximum_items - 1
    places = prepared.facts["positions_mm"]
    assert places[0] == 0 and places[-1] == 138 and max(np.diff(places)) <= 6


def undefined_lengths(data_set: Any) -> None:
    """Lets every sequence and item end with a delimiter instead of having a length."""
    for part in data_set:
        if part.VR == "SQ":
            part.is_undefined_length = True
            for item in part.value:
                item.is_undefined_length_sequence_item = True
                undefined_lengths(item)


@pytest.mark.parametrize("delimit", [undefined_lengths, lambda _: None], ids=["undefined", "defined"])
def test_an_enhanced_file_of_120_frames_is_read_whatever_its_sequences_lengths(delimit: Callable[[Any], None]) -> None:
    hu = skull(64)

    def edit(file: Any) -> None:
        file.NumberOfFrames = 120
        file.PixelData = np.rint(hu).astype("<i2").tobytes() * 120
        groups = []
        for number in range(120):
            group, content = Dataset(), Dataset()
            content.FrameComments = "as scanners write them"
            content.StackID, content.InStackPositionNumber, content.TemporalPositionIndex = "1", number + 1, 1
            place, orientation = Dataset(), Dataset()
            place.ImagePositionPatient = [0, 0, 1.25 * number]
            orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
            group.FrameContentSequence, group.PlanePositionSequence = [content], [place]
            group.PlaneOrientationSequence = [orientation]
            parts = (
                "CTAcquisitionDetailsSequence",
                "CTExposureSequence",
                "CTGeometrySequence",
                "CTXRayDetailsSequence",
            )
            for name in (
                *parts,
                "CTTableDynamicsSequence",
                "FrameAnatomySequence",
                "IrradiationEventIdentificationSequence",
            ):
                detail = Dataset()
                detail.KVP, detail.ExposureTimeInms, detail.FilterType = "120", 1000.0, "WEDGE"
                detail.DataCollectionDiameter, detail.ReconstructionDiameter = 500.0, 250.0
                setattr(group, name, [detail])
            groups.append(group)
        file.PerFrameFunctionalGroupsSequence = groups
        delimit(file)

    series = read_series([dicom(hu, edit=edit)], lambda piece: piece.values, HEAD_CT)
    assert [piece.position_mm for piece in series] == [1.25 * number for number in range(120)]
    assert all(np.array_equal(piece.content, np.rint(hu)) for piece in series)


def test_a_multi_frame_file_is_a_series() -> None:
    frames = [skull(seed=number) for number in range(9)]

    def edit(file: Any) -> None:
        file.NumberOfFrames = len(frames)
        file.PixelData = b"".join(np.rint(frame).astype("<i2").tobytes() for frame in frames)
        del file.ImagePositionPatient
        groups = []
        for number in range(len(frames)):
            place, group = Dataset(), Dataset()
            place.ImagePositionPatient = [0, 0, -5.0 * number]
            group.PlanePositionSequence = [place]
            groups.append(group)
        file.PerFrameFunctionalGroupsSequence = groups

    prepared = StrokeDr().prepare(Case((ClinicalFile(dicom(frames[0], edit=edit)),)))
    assert prepared.facts["positions_mm"] == [-5.0 * number for number in reversed(range(9))]
    alone = StrokeDr().prepare(Case((ClinicalFile(dicom(frames[8])),)))
    assert np.array_equal(prepared.items[0]["SLICE"], alone.items[0]["SLICE"])


def written(hu: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """The slice with a name burnt into its corner."""
    canvas = Image.new("L", hu.shape[::-1])
    ImageDraw.Draw(canvas).text((6, 4), "DOE JANE 1950", fill=255)
    return np.where(np.asarray(canvas) > 128, 1500.0, hu)


BROKEN_SERIES = [
    pytest.param(lambda: Case((ClinicalFile(b"PK\x03\x04 broken"),)), "unreadable", id="damaged-archive"),
    pytest.param(lambda: Case((zipped(),)), "empty", id="empty-archive"),
    pytest.param(lambda: Case((zipped(b"text"),)), "unreadable", id="text-in-the-archive"),
    pytest.param(lambda: Case((zipped(zipped(b"x").data),)), "nested_archive", id="archive-in-the-archive"),
    pytest.param(lambda: Case((zipped(bytes(8_000_000)),)), "too_large", id="zip-bomb"),
    pytest.param(lambda: Case((zipped(*[b"x"] * 700),)), "too_many", id="too-many-files"),
    pytest.param(
        lambda: Case((ClinicalFile(b"PK\x05\x06" + (b"PK\x01\x02" + bytes(42)) * 1_000_000),)),
        "too_many",
        id="a-million-empty-entries",
    ),
    pytest.param(
        lambda: Case((ClinicalFile(dicom(np.tile(skull(), (8, 8)), edit=assign(PixelSpacing=[5.0, 5.0]))),)),
        "low_quality",
        id="ten-metres-wide",
    ),
    pytest.param(
        lambda: Case((zipped(*(s for n, s in enumerate(head_series()) if n != 5)),)), "slice_gap", id="missing-slice"
    ),
    pytest.param(lambda: Case((zipped(*head_series(8, 14.0)),)), "slice_gap", id="slices-too-far-apart"),
    pytest.param(lambda: Case((zipped(*head_series(), *head_series()[:2]),)), "duplicate_slice", id="slices-twice"),
    pytest.param(
        lambda: Case((zipped(*head_series(), dicom(skull(), 90.0, assign(SeriesInstanceUID="1.2.4"))),)),
        "mixed_series",
        id="two-series",
    ),
    pytest.param(
        lambda: Case((zipped(dicom(skull()), dicom(skull(), 5.0, assign(ImagePositionPatient=None))),)),
        "no_position",
        id="slice-without-place",
    ),
    pytest.param(
        lambda: Case((ClinicalFile(dicom(skull(), edit=assign(BodyPartExamined="CHEST"))),)),
        "wrong_region",
        id="says-chest",
    ),
    pytest.param(
        lambda: Case((ClinicalFile(dicom(skull(), edit=assign(ImageType=["DERIVED", "SECONDARY", "SCREEN SAVE"]))),)),
        "burned_in",
        id="screenshot",
    ),
    pytest.param(lambda: Case((ClinicalFile(dicom(written(skull()))),)), "burned_in", id="name-in-the-pixels"),
    pytest.param(lambda: Case((ClinicalFile(dicom(skull() * 0 - 1000)),)), "low_quality", id="air"),
    pytest.param(
        lambda: Case((ClinicalFile(dicom(np.random.default_rng(0).normal(40, 300, (256, 256)))),)),
        "low_quality",
        id="noise",
    ),
    pytest.param(
        lambda: Case((zipped(*head_series(4), *(dicom(skull() * 0 - 1000, 25.0 + 5 * n) for n in range(6))),)),
        "low_quality",
        id="mostly-no-head",
    ),
    pytest.param(lambda: Case(), "empty", id="nothing"),
]


@pytest.mark.parametrize(("case", "code"), BROKEN_SERIES)
def test_a_broken_series_is_refused_by_its_cause(case: Callable[[], Case], code: str) -> None:
    with pytest.raises(IntakeRefused) as refused:
        StrokeDr().prepare(case())
    assert refused.value.code == code
    assert SECRET not in str(refused.value) and refused.value.__cause__ is None


def dose_report(file: Any) -> None:
    """As scanners write it: structured, of modality SR, without pixels."""
    file.SOPClassUID = file.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.88.67"
    file.Modality = "SR"
    del file.PixelData


COMPANIONS = [
    pytest.param(b"Please open VIEWER.EXE, Mrs " + SECRET.encode(), id="README.TXT"),
    pytest.param(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(3000), id="Thumbs.db"),
    pytest.param(b"", id="empty-VERSION"),
    pytest.param(b"\xff\xd8\xff\xe0\x00\x10JFIF" + bytes(300), id="JPEG"),
    pytest.param(dicom(skull(), 500.0, assign(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])), id="scout"),
    pytest.param(dicom(skull(), edit=dose_report), id="dose-report"),
    pytest.param(dicom(skull(), edit=assign(SOPClassUID="1.2.840.10008.5.1.4.1.1.7")), id="capture"),
]


@pytest.mark.parametrize("place", [0, 3])
@pytest.mark.parametrize("companion", COMPANIONS)
def test_what_lies_beside_the_slices_of_a_study_is_passed_over_and_counted(companion: bytes, place: int) -> None:
    files = head_series()
    plain = StrokeDr().prepare(Case((zipped(*files),)))
    beside = StrokeDr().prepare(Case((zipped(*files[:place], companion, *files[place:]),)))
    assert beside.facts == {**plain.facts, "passed_over": 1} and plain.facts["passed_over"] == 0
    pairs = zip(plain.items, beside.items, strict=True)
    assert all(np.array_equal(left["SLICE"], right["SLICE"]) for left, right in pairs)


@pytest.mark.parametrize("companion", COMPANIONS)
def test_a_case_of_companions_alone_is_refused_by_the_first_ones_cause(companion: bytes) -> None:
    with pytest.raises(IntakeRefused, match=r"^file 1: ") as refused:
        read_series([companion, b"another text"], lambda piece: None, HEAD_CT)
    assert SECRET not in str(refused.value) and type(refused.value) is IntakeRefused
    with pytest.raises(IntakeRefused) as lone:
        read_series([companion], lambda piece: None, HEAD_CT)
    assert lone.value.code == refused.value.code and "file 1" not in str(lone.value)


FAULTS = [
    pytest.param(lambda: dicom(skull(), 500.0, assign(ContrastBolusAgent="ULTRAVIST")), "contrast", id="contrast"),
    pytest.param(lambda: dicom(skull(), 500.0)[:-100], "truncated", id="truncated"),
    pytest.param(lambda: dicom(skull(), 500.0, assign(SeriesInstanceUID="1.2.4")), "mixed_series", id="bone-kernel"),
    pytest.param(lambda: dicom(skull(), 500.0, assign(ImagePositionPatient=None)), "no_position", id="no-place"),
]


@pytest.mark.parametrize(("fault", "code"), FAULTS)
@pytest.mark.parametrize("place", [1, 4])
def test_a_faulty_slice_refuses_the_case_by_its_ordinal(fault: Callable[[], bytes], code: str, place: int) -> None:
    files = head_series()
    case = Case((zipped(*files[:place], fault(), *files[place:], name=SECRET + "{}.dcm"),))
    with pytest.raises(IntakeRefused, match=f"^file {place + 1}: ") as refused:
        StrokeDr().prepare(case)
    assert refused.value.code == code and SECRET not in str(refused.value)


def test_a_faulty_first_slice_is_named_and_a_lone_one_is_not() -> None:
    fault = dicom(skull())[:-100]
    with pytest.raises(IntakeRefused, match=r"^file 1: "):
        read_series([fault, dicom(skull())], lambda piece: None, HEAD_CT)
    with pytest.raises(IntakeRefused, match=r"^the file ends"):
        read_series([fault], lambda piece: None, HEAD_CT)


def test_slices_at_the_same_place_are_named_by_their_ordinals() -> None:
    files = [dicom(skull(), place_mm) for place_mm in (0.0, 5.0, 10.0, 5.0)]
    with pytest.raises(IntakeRefused, match="files 2 and 4 lie") as refused:
        read_series(files, lambda piece: None, HEAD_CT)
    assert refused.value.code == "duplicate_slice"


def test_the_deadline_is_looked_at_within_a_header() -> None:
    times = iter((0.0, 60.0))
    element = b"\x09\x00\x10\x00CS\x00\x00"
    with pytest.raises(IntakeRefused) as refused:
        read_series([dicom(skull())[:400] + element * 2000], lambda piece: None, HEAD_CT, clock=lambda: next(times))
    assert refused.value.code == "too_slow"


def test_a_reader_that_is_slow_is_given_up() -> None:
    times = iter(range(0, 10_000, 20))
    with pytest.raises(IntakeRefused) as refused:
        read_series(head_series(), lambda piece: None, HEAD_CT, clock=lambda: float(next(times)))
    assert refused.value.code == "too_slow"
