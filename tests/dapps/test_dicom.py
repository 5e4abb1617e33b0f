"""Tests dapps/intake/dicom.py: a slice in its unit, or a refusal that quotes nothing."""

import io
import logging
import struct
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels.utils import pixel_array
from pydicom.uid import DeflatedExplicitVRLittleEndian, RLELossless

from dapps.api.types import IntakeRefused
from dapps.intake.dicom import MAX_BYTES, Slice, SliceRules, read_slices
from dapps.intake.exclusions import CONTRAST, MAX_LOSSY_RATIO
from dapps.intake.pixels import AIR_HU, CODESTREAM, MAX_HU
from dapps.intake.series import read_series
from dapps.strokedr.case import HEAD_CT
from tests.dapps.drawn import dicom, skull
from tests.examples import examples

HEAD, BODY = "J2K_pixelrep_mismatch.dcm", "CT_small.dcm"
SECRET = "SURNAME^GIVEN"
CT = SliceRules(modality="CT")


def read_slice(data: bytes) -> Slice:
    return read_slices(data, lambda piece: piece, CT, max_frames=1)[0]


@cache
def shipped(name: str) -> bytes:
    path = get_testdata_file(name, download=False)
    assert path is not None
    return Path(str(path)).read_bytes()


def edited(name: str, edit: Callable[[Any], None]) -> bytes:
    """A shipped file with its header changed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = pydicom.dcmread(io.BytesIO(shipped(name)))
        edit(file)
        out = io.BytesIO()
        file.save_as(out)
    return out.getvalue()


def assign(**values: Any) -> Callable[[Any], None]:
    def edit(file: Any) -> None:
        for name, value in values.items():
            setattr(file, name, value)

    return edit


def spaced(value: bytes) -> bytes:
    """A shipped file with this for PixelSpacing."""
    old = b"\x28\x00\x30\x00DS\x12\x000.661468\\0.661468 "
    return edited_bytes(old, old[:6] + struct.pack("<H", len(value)) + value)


def edited_bytes(old: bytes, new: bytes) -> bytes:
    """A shipped file with other bytes than pydicom would write."""
    assert old in shipped(BODY)
    return shipped(BODY).replace(old, new)


def drop(*names: str) -> Callable[[Any], None]:
    def edit(file: Any) -> None:
        for name in names:
            delattr(file, name)

    return edit


def syntax(uid: str) -> Callable[[Any], None]:
    def edit(file: Any) -> None:
        file.file_meta.TransferSyntaxUID = uid

    return edit


def codestream(place: int, value: bytes) -> Callable[[Any], None]:
    """Overwrites bytes of the JPEG 2000 codestream, whose own header the decoder believes."""

    def edit(file: Any) -> None:
        frame = next(generate_frames(file.PixelData, number_of_frames=1))
        assert frame[:4] == CODESTREAM
        file.PixelData = encapsulate([frame[:place] + value + frame[place + len(value) :]])

    return edit


def compressed_text(file: Any) -> None:
    file.PixelData = encapsulate([b"no picture at all, only text " * 4])


def test_the_real_head_is_in_hounsfield_units() -> None:
    piece = read_slice(shipped(HEAD))
    assert piece.values.dtype == np.float32 and piece.values.shape == (512, 512)
    assert piece.spacing_mm == (0.431, 0.431)
    assert piece.values.min() >= AIR_HU and piece.values.max() <= MAX_HU
    air = piece.values[100:400, 8:30]
    assert abs(np.median(air) + 1000) < 15
    brain = piece.values[300:380, 180:330]
    assert 15 < np.median(brain) < 50 and np.mean((brain > 0) & (brain < 80)) > 0.9


@pytest.mark.parametrize("declared", [0, 1], ids=["unsigned", "signed"])
def test_either_declared_sign_gives_the_same_head(declared: int) -> None:
    """The file's PixelRepresentation and its codestream disagree: the numbers decide, not the label."""
    piece = read_slice(edited(HEAD, assign(PixelRepresentation=declared)))
    assert np.array_equal(piece.values, read_slice(shipped(HEAD)).values)


@pytest.mark.parametrize("declared", [0, 1], ids=["unsigned", "signed"])
def test_the_sign_is_found_without_compression_as_well(declared: int) -> None:
    def edit(file: Any) -> None:
        stored = file.pixel_array
        file.decompress()
        file.PixelRepresentation = declared
        file.BitsStored, file.HighBit = 16, 15
        file.PixelData = stored.astype("<i2").tobytes()

    assert np.array_equal(read_slice(edited(HEAD, edit)).values, read_slice(shipped(HEAD)).values)


def test_an_uncompressed_slice_is_read() -> None:
    piece = read_slice(shipped(BODY))
    assert piece.values.shape == (128, 128) and -1000 < piece.values.min() < -800


@pytest.mark.parametrize(
    ("data", "code"),
    [
        pytest.param(lambda: b"", "unreadable", id="no-bytes"),
        pytest.param(lambda: f"patient {SECRET}".encode(), "unreadable", id="text-named-dcm"),
        pytest.param(lambda: bytes(128) + b"DICM", "no_transfer_syntax", id="preamble-alone"),
        pytest.param(lambda: shipped(HEAD)[:3000], "truncated", id="cut-in-the-header"),
        pytest.param(lambda: shipped(BODY)[:-9000], "truncated", id="cut-in-the-pixels"),
        pytest.param(lambda: shipped("examples_rgb_color.dcm"), "wrong_modality", id="ultrasound-rgb"),
        pytest.param(lambda: shipped("examples_palette.dcm"), "wrong_modality", id="ultrasound-palette"),
        pytest.param(lambda: shipped("examples_ybr_color.dcm"), "wrong_modality", id="echo-cine"),
        pytest.param(lambda: shipped("MR_small.dcm"), "wrong_modality", id="mr"),
        pytest.param(
            lambda: edited("examples_rgb_color.dcm", assign(Modality="CT")), "not_grey", id="colour-that-says-ct"
        ),
        pytest.param(
            lambda: edited("examples_palette.dcm", assign(Modality="CT")), "not_grey", id="palette-that-says-ct"
        ),
        pytest.param(
            lambda: edited(HEAD, assign(PhotometricInterpretation="MONOCHROME1")), "not_grey", id="inverted-grey"
        ),
        pytest.param(lambda: edited(HEAD, assign(BurnedInAnnotation="YES")), "burned_in", id="burned-in"),
        pytest.param(lambda: edited(HEAD, assign(NumberOfFrames=2)), "multi_frame", id="two-frames"),
        pytest.param(lambda: edited(HEAD, assign(NumberOfFrames=10**9)), "multi_frame", id="a-billion-frames"),
        pytest.param(lambda: edited(HEAD, drop("RescaleSlope")), "no_rescale", id="no-slope"),
        pytest.param(lambda: edited(HEAD, drop("RescaleIntercept")), "no_rescale", id="no-intercept"),
        pytest.param(lambda: edited(HEAD, assign(RescaleSlope="0")), "no_rescale", id="slope-zero"),
        pytest.param(lambda: edited(HEAD, drop("PixelSpacing")), "no_spacing", id="no-spacing"),
        pytest.param(lambda: spaced(b"1,0\\1,0 "), "bad_number", id="decimal-commas"),
        pytest.param(lambda: spaced(b"0.661468"), "bad_count", id="one-spacing"),
        pytest.param(lambda: edited(BODY, assign(RescaleSlope=[1, 1])), "bad_count", id="two-slopes"),
        pytest.param(lambda: edited(BODY, assign(BitsStored=12)), "wrong_bits", id="12-bits-with-high-bit-15"),
        pytest.param(lambda: edited(BODY, drop("PixelRepresentation")), "missing_field", id="no-sign"),
        pytest.param(lambda: edited_bytes(b"1.2.840.10008.1.2.1\0", bytes(20)), "no_transfer_syntax", id="no-syntax"),
        pytest.param(lambda: edited(HEAD, assign(PixelSpacing=[0.4, 900])), "no_spacing", id="spacing-of-900-mm"),
        pytest.param(lambda: edited(HEAD, assign(Rows=60000)), "too_large", id="bomb-by-rows"),
        pytest.param(lambda: edited(HEAD, assign(Rows=0)), "too_small", id="no-rows"),
        pytest.param(lambda: edited(HEAD, assign(Rows=300)), "undecodable", id="rows-unlike-codestream"),
        pytest.param(lambda: edited(BODY, assign(Rows=2000)), "undecodable", id="rows-beyond-the-pixels"),
        pytest.param(lambda: edited(HEAD, assign(BitsAllocated=32)), "wrong_format", id="32-bits"),
        pytest.param(
            lambda: edited(HEAD, codestream(8, struct.pack(">I", 50_000))), "undecodable", id="bomb-in-codestream"
        ),
        pytest.param(
            lambda: edited(HEAD, codestream(24, struct.pack(">II", 1, 1))), "undecodable", id="tiles-of-one-pixel"
        ),
        pytest.param(lambda: edited(HEAD, compressed_text), "undecodable", id="text-for-pixels"),
        pytest.param(lambda: edited(HEAD, drop("PixelData")), "undecodable", id="no-pixels"),
        pytest.param(
            lambda: edited(HEAD, assign(ImageOrientationPatient=[1, 0, 0, 0, 0, -1])), "wrong_orientation", id="coronal"
        ),
        pytest.param(
            lambda: edited(HEAD, assign(ImageOrientationPatient=[-1, 0, 0, 0, 1, 0])), "wrong_orientation", id="mirror"
        ),
        pytest.param(
            lambda: edited(HEAD, assign(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])),
            "wrong_orientation",
            id="localizer",
        ),
        pytest.param(lambda: edited(HEAD, syntax(RLELossless)), "wrong_format", id="run-length"),
        pytest.param(lambda: edited(BODY, syntax(DeflatedExplicitVRLittleEndian)), "wrong_format", id="deflated"),
        pytest.param(lambda: bytes(MAX_BYTES + 1), "too_large", id="file-beyond-the-bound"),
    ],
)
def test_a_bad_file_is_refused_by_its_cause(data: Callable[[], bytes], code: str) -> None:
    with pytest.raises(IntakeRefused) as refused:
        read_slice(data())
    assert refused.value.code == code
    assert refused.value.__cause__ is None and SECRET not in str(refused.value)


def test_a_file_that_mentions_the_deflated_syntax_without_being_deflated_is_read() -> None:
    mention = assign(AvailableTransferSyntaxUID=DeflatedExplicitVRLittleEndian)
    assert np.array_equal(read_slice(edited(BODY, mention)).values, read_slice(shipped(BODY)).values)


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (lambda: spaced(b"1,0\\1,0 "), "PixelSpacing"),
        (lambda: edited(BODY, assign(RescaleSlope=[1, 1])), "RescaleSlope"),
        (lambda: edited(BODY, assign(BitsStored=12)), "HighBit"),
        (lambda: edited(BODY, drop("PixelRepresentation")), "PixelRepresentation"),
    ],
)
def test_the_refusal_of_a_field_names_it(data: Callable[[], bytes], field: str) -> None:
    with pytest.raises(IntakeRefused, match=field):
        read_slice(data())


def test_a_slice_without_preamble_is_read() -> None:
    assert np.array_equal(read_slice(shipped(BODY)[132:]).values, read_slice(shipped(BODY)).values)


def test_nothing_of_the_file_is_in_a_warning_or_a_log(caplog: pytest.LogCaptureFixture) -> None:
    """pydicom warns of and logs values that it finds odd, in full."""
    odd = shipped(BODY).replace(b"ISO_IR 100", b"GIVEN_NAME")
    with caplog.at_level("DEBUG"):
        assert np.array_equal(read_slice(odd).values, read_slice(shipped(BODY)).values)
    assert "GIVEN_NAME" not in caplog.text


def test_sequences_nested_beyond_the_stack_are_refused() -> None:
    item = b"\x08\x00\x40\x11SQ\x00\x00\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    start = shipped(BODY).index(b"\x08\x00\x60\x00CS")
    with pytest.raises(IntakeRefused) as refused:
        read_slice(shipped(BODY)[:start] + item * 5000)
    assert refused.value.code == "truncated"  # nobody named the sequence: it is stepped over without recursion


@pytest.mark.parametrize(
    "opening", [b"", b"\x08\x00\x40\x11SQ\x00\x00\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"]
)
def test_millions_of_tiny_elements_are_refused_early(opening: bytes) -> None:
    start = shipped(BODY).index(b"\x08\x00\x60\x00CS")
    element = b"\x09\x00\x10\x00CS\x00\x00"
    with pytest.raises(IntakeRefused) as refused:
        read_slice(shipped(BODY)[:start] + opening + element * 4_000_000)
    assert refused.value.code == "too_large"


def test_a_long_file_lets_others_read_between_its_frames() -> None:
    """Else one caller's file of hundreds of frames would keep every other caller waiting."""
    with ThreadPoolExecutor(1) as pool:
        read = read_slices(shipped(BODY), lambda _: pool.submit(read_slice, shipped(BODY)).result(timeout=60), CT)
    assert np.array_equal(read[0].values, read_slice(shipped(BODY)).values)


def test_a_header_is_read_while_another_call_decodes_a_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a header that takes long would keep every other payer's frames waiting."""
    foreign = edited(BODY, assign(Modality="OT"))
    refusals: list[str] = []

    def decode(*arguments: Any, **options: Any) -> Any:
        with ThreadPoolExecutor(1) as pool, pytest.raises(IntakeRefused) as refused:
            pool.submit(read_slice, foreign).result(timeout=60)
        refusals.append(refused.value.code)
        return pixel_array(*arguments, **options)

    monkeypatch.setattr("dapps.intake.pixels.pixel_array", decode)
    read_slice(shipped(BODY))
    assert refusals == ["wrong_modality"]


@pytest.mark.parametrize("encoding", ["implicit", "bigendian"])
def test_every_plain_encoding_gives_the_same_slice(encoding: str) -> None:
    plain, other = (
        read_slices(shipped(f"MR_small{end}.dcm"), lambda piece: piece, MR)[0] for end in ("", f"_{encoding}")
    )
    assert np.array_equal(plain.values, other.values) and plain.spacing_mm == other.spacing_mm


def test_threads_that_read_at_once_leave_warnings_and_logging_as_they_were() -> None:
    before = (list(warnings.filters), logging.getLogger("pydicom").disabled)
    with ThreadPoolExecutor(8) as pool:
        pieces = list(pool.map(read_slice, [shipped(BODY)] * 32))
    assert all(np.array_equal(piece.values, pieces[0].values) for piece in pieces)
    assert (list(warnings.filters), logging.getLogger("pydicom").disabled) == before


@given(st.binary(max_size=300))
@settings(max_examples=examples(100))
def test_random_bytes_are_refused(data: bytes) -> None:
    for file in (data, bytes(128) + b"DICM" + data):
        with pytest.raises(IntakeRefused):
            read_slice(file)


@given(st.integers(0, 39_000), st.integers(132, 6000), st.binary(min_size=1, max_size=6))
@settings(max_examples=examples(150))
def test_a_damaged_file_is_read_or_refused_but_never_fails_otherwise(length: int, place: int, junk: bytes) -> None:
    whole = shipped(BODY)
    for data in (whole[:length], whole[:place] + junk + whole[place + len(junk) :]):
        try:
            piece = read_slice(data)
        except IntakeRefused as refused:
            assert refused.__cause__ is None
            continue
        assert np.isfinite(piece.values).all() and min(piece.values.shape) >= 64


@given(st.integers(132, 180_000), st.binary(min_size=1, max_size=6))
@settings(max_examples=examples(40))
def test_a_damaged_codestream_is_read_or_refused_but_never_fails_otherwise(place: int, junk: bytes) -> None:
    whole = shipped(HEAD)
    place = min(place, len(whole) - 1)
    try:
        piece = read_slice(whole[:place] + junk + whole[place + len(junk) :])
    except IntakeRefused:
        return
    assert np.isfinite(piece.values).all()


CHEST_CT = SliceRules(modality="CT", allowed_regions=frozenset({"CHEST", "THORAX"}), subject="a chest CT", min_side=200)
MR = SliceRules(modality="MR", min_side=32)


@pytest.mark.parametrize(
    ("rules", "changes", "side", "code", "text"),
    [
        pytest.param(CHEST_CT, {"BodyPartExamined": "HEAD"}, 256, "wrong_region", "send a chest CT", id="head"),
        pytest.param(CHEST_CT, {}, 256, "wrong_region", "send a chest CT", id="no-region-named"),
        pytest.param(CHEST_CT, {"BodyPartExamined": "CHEST"}, 199, "too_small", "200 pixels", id="small"),
        pytest.param(CHEST_CT, {"Modality": "MR"}, 256, "wrong_modality", "send an axial CT slice", id="mr-for-ct"),
        pytest.param(MR, {}, 256, "wrong_modality", "not an MR image: send an axial MR slice", id="ct-for-mr"),
        pytest.param(MR, {"Modality": "MR"}, 31, "too_small", "32 pixels", id="small-mr"),
    ],
)
def test_the_rules_of_a_dapp_decide_what_is_refused(
    rules: SliceRules, changes: dict[str, Any], side: int, code: str, text: str
) -> None:
    with pytest.raises(IntakeRefused, match=text) as refused:
        read_slices(dicom(skull(side), edit=assign(**changes)), lambda piece: piece, rules)
    assert refused.value.code == code


def test_a_chest_series_is_read_by_the_rules_of_its_dapp() -> None:
    files = [dicom(skull(seed=at), 5.0 * at, assign(BodyPartExamined="CHEST")) for at in (2, 0, 1)]
    series = read_series(files, lambda piece: piece.values, CHEST_CT)
    assert [piece.position_mm for piece in series] == [0.0, 5.0, 10.0]
    assert all(np.array_equal(piece.content, np.rint(skull(seed=at))) for at, piece in enumerate(series))


@pytest.mark.parametrize("names", [(), ("RescaleSlope", "RescaleIntercept")], ids=["rescaled", "without-rescale"])
def test_a_small_mr_slice_keeps_its_values_unclipped_and_needs_no_rescale(names: tuple[str, ...]) -> None:
    def edit(file: Any) -> None:
        file.Modality = "MR"
        drop(*names)(file)

    values = np.linspace(0, 9000, 48 * 48).reshape(48, 48)
    (piece,) = read_slices(dicom(values, edit=edit), lambda piece: piece, MR)
    assert np.array_equal(piece.values, np.rint(values).astype(np.float32))


def test_any_region_is_read_where_the_rules_name_none() -> None:
    anywhere = SliceRules(modality="CT")
    for region in ("", "FOOT", "HEAD"):
        file = dicom(skull(), edit=assign(BodyPartExamined=region))
        assert read_slices(file, lambda piece: piece.values.shape, anywhere) == [(256, 256)]


def species(code: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code, "SCT", "a species"
    return item


def frame_type(*words: str) -> Callable[[Any], None]:
    """The type of a frame, where an enhanced CT has it."""

    def edit(file: Any) -> None:
        kind, group = Dataset(), Dataset()
        kind.FrameType = list(words)
        group.CTImageFrameTypeSequence = [kind]
        file.SharedFunctionalGroupsSequence = [group]

    return edit


def rescaled_as(kind: str) -> Callable[[Any], None]:
    def edit(file: Any) -> None:
        values, group = Dataset(), Dataset()
        values.RescaleSlope, values.RescaleIntercept, values.RescaleType = "1", "0", kind
        group.PixelValueTransformationSequence = [values]
        file.PerFrameFunctionalGroupsSequence = [group]

    return edit


EXCLUDED = [
    (assign(ContrastBolusAgent="ULTRAVIST 370"), "contrast"),
    (assign(ContrastBolusAgentSequence=[species("1")]), "contrast"),
    *((assign(RescaleType=kind), "not_hounsfield") for kind in ("Z_EFF", "MGML", "ED", "PCT")),
    (rescaled_as("MGML"), "not_hounsfield"),
    *((assign(ImageType=["DERIVED", "SECONDARY", kind]), "projection") for kind in ("MIP", "CT_MIP", "MIN_IP")),
    (frame_type("DERIVED", "PRIMARY", "VOLUME", "MAX_IP"), "projection"),
    *(
        (assign(ImageType=["DERIVED", "PRIMARY", "AXIAL", kind]), "computed_map")
        for kind in ("PERFUSION", "MAT_SPECIFIC")
    ),
    (frame_type("DERIVED", "PRIMARY", "VOLUME", "EFF_ATOMIC_NUM"), "computed_map"),
    (assign(QualityControlImage="YES"), "quality_control"),
    (assign(PatientSpeciesDescription="Canine"), "animal"),
    (assign(PatientSpeciesCodeSequence=[species("448771007")]), "animal"),
    (assign(SOPClassUID="1.2.840.10008.5.1.4.1.1.7"), "secondary_capture"),
    (assign(SOPClassUID="1.2.840.10008.5.1.4.1.1.7.2"), "secondary_capture"),
    (assign(LossyImageCompressionRatio="40"), "lossy"),
    (assign(LossyImageCompressionRatio=["2", "40"]), "lossy"),
]


@pytest.mark.parametrize(("edit", "code"), EXCLUDED, ids=range(len(EXCLUDED)))
def test_what_the_card_excludes_is_refused_by_a_field_of_the_header(edit: Callable[[Any], None], code: str) -> None:
    file = dicom(skull(), edit=edit)
    with pytest.raises(IntakeRefused) as refused:
        read_slices(file, lambda piece: piece, HEAD_CT)
    assert refused.value.code == code
    assert read_slices(file, lambda piece: piece.values.shape, CT) == [(256, 256)]  # another DApp has other rules


@pytest.mark.parametrize(
    "changes",
    [
        {"ContrastBolusAgent": ""},
        {"ContrastBolusAgent": "NONE"},
        {"ContrastBolusAgentSequence": []},
        {"RescaleType": "HU"},
        {"ImageType": ["DERIVED", "SECONDARY", "AXIAL", "MPR"]},
        {"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL", "CT_SOM5 SEQ"]},
        {"QualityControlImage": "NO"},
        {"PatientSpeciesDescription": "Homo sapiens"},
        {"PatientSpeciesCodeSequence": [species("337915000")]},
        {"LossyImageCompressionRatio": str(MAX_LOSSY_RATIO)},
        {"SeriesDescription": "MIP PERFUSION PHANTOM CONTRAST DOG"},
        *({"BodyPartExamined": words} for words in ("Kopf", "SCHAEDEL", "CT HEAD", "ENCEFALO", "HEAD", "")),
    ],
    ids=str,
)
def test_words_of_a_person_and_fields_that_exclude_nothing_refuse_no_head(changes: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom finds small letters in a code string odd
        file = dicom(skull(), edit=assign(**changes))
    assert read_slices(file, lambda piece: piece.values.shape, HEAD_CT) == [(256, 256)]


def test_a_dapp_excludes_what_it_lists_alone() -> None:
    with pytest.raises(IntakeRefused) as refused:
        read_slices(shipped(BODY), lambda piece: piece, SliceRules(modality="CT", exclusions=(CONTRAST,)))
    assert refused.value.code == "contrast"
