"""Mirror of dapps/strokedr: a real head CT goes all the way to a report; what is no head goes nowhere."""

import contextlib
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from dapps.card import cutoffs
from dapps.intake.dicom import Slice, read_slice
from dapps.intake.series import read_series
from dapps.strokedr import StrokeDr, gate
from dapps.strokedr.framing import SIZE, NoHead, frame, largest_piece, window
from dapps.testing import run
from dapps.types import Case, ClinicalFile, IntakeRefused, Prepared, Report

SECRET = "Doe^Jane"


@pytest.fixture(scope="module")
def strokedr() -> StrokeDr:
    dapp = StrokeDr()
    dapp.load("cpu")
    return dapp


def shipped(name: str) -> ClinicalFile:
    path = get_testdata_file(name, download=False)
    assert path is not None
    return ClinicalFile(Path(str(path)).read_bytes(), name)


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


def answer(probabilities: list[float]) -> Report:
    outputs = [{"HAEMORRHAGE": np.full((1, 3), value, np.float32)} for value in probabilities]
    return StrokeDr().conclude(Prepared(({},) * len(probabilities)), outputs)


def diagnosed(dapp: StrokeDr, case: Case) -> tuple[Prepared, list[Any], Report]:
    prepared = dapp.prepare(case)
    outputs = [run(dapp, item) for item in prepared.items]
    return prepared, outputs, dapp.conclude(prepared, outputs)


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


def test_a_real_head_goes_through(strokedr: StrokeDr) -> None:
    prepared, outputs, report = diagnosed(strokedr, Case((shipped("J2K_pixelrep_mismatch.dcm"),)))
    (item,) = prepared.items
    assert item["SLICE"].shape == (1, 1, SIZE, SIZE) and item["SLICE"].dtype == np.uint8
    assert set(outputs[0]) == {"HAEMORRHAGE", "SALIENCY"}
    probability = report.findings[0].probability
    assert report.findings[0].label == "intracranial haemorrhage"
    assert probability is not None and 0 < probability < 1
    assert "Research use only" in report.notice


@pytest.mark.parametrize(
    ("name", "code"),
    [
        pytest.param("CT_small.dcm", "low_quality", id="spine"),
        pytest.param("693_J2KI.dcm", "low_quality", id="head-without-grain"),
        pytest.param("examples_rgb_color.dcm", "wrong_modality", id="ultrasound-rgb"),
        pytest.param("examples_palette.dcm", "wrong_modality", id="ultrasound-palette"),
        pytest.param("examples_ybr_color.dcm", "wrong_modality", id="echo-cine"),
        pytest.param("MR_small.dcm", "wrong_modality", id="mr"),
    ],
)
def test_what_is_no_head_ct_is_refused(strokedr: StrokeDr, name: str, code: str) -> None:
    with pytest.raises(IntakeRefused) as refused:
        strokedr.prepare(Case((shipped(name),)))
    assert refused.value.code == code


def test_a_drawn_head_passes_the_gate() -> None:
    image, quality = gate.head(Slice(skull(), (1.0, 1.0)))
    assert image.shape == (SIZE, SIZE)
    assert quality["brain_cm2"] > 100 and quality["grain_hu"] > 1


@pytest.mark.parametrize(
    ("hu", "code"),
    [
        pytest.param(np.full((256, 256), -1000, np.float32), "low_quality", id="air"),
        pytest.param(np.full((400, 400), 40, np.float32), "low_quality", id="filled-with-tissue"),
        pytest.param(skull(half_mm=(30, 25)), "low_quality", id="limb-sized"),
        pytest.param(skull(400, half_mm=(180, 150)), "low_quality", id="trunk-sized"),
        pytest.param(np.minimum(skull(), 60), "low_quality", id="no-bone"),
        pytest.param(np.where(skull() > 500, skull(), -1000), "low_quality", id="no-brain"),
        pytest.param(np.where(np.abs(skull() - 34) < 40, 34, skull()), "low_quality", id="no-grain"),
    ],
)
def test_the_gate_refuses(hu: "np.ndarray[Any, Any]", code: str) -> None:
    with pytest.raises(IntakeRefused) as refused:
        gate.head(Slice(hu.astype(np.float32), (1.0, 1.0)))
    assert refused.value.code == code


def test_a_gap_after_surgery_is_no_reason_to_refuse() -> None:
    hu = skull()
    hu[40:110, 50:90] = np.minimum(hu[40:110, 50:90], 40)
    gate.head(Slice(hu, (1.0, 1.0)))


@pytest.mark.parametrize("spacing_mm", [0.5, 0.8, 1.3])
def test_framing_does_not_depend_on_the_scanners_pixels(spacing_mm: float) -> None:
    plain = frame(window(skull()), (1.0, 1.0)).image.astype(int)
    other = frame(window(skull(round(256 / spacing_mm), spacing_mm)), (spacing_mm, spacing_mm)).image.astype(int)
    middle = slice(SIZE // 4, -SIZE // 4)
    assert abs(plain[middle, middle].mean() - other[middle, middle].mean()) < 3
    assert np.mean(np.abs(plain - other) > 60) < 0.06


def test_framing_follows_the_head_and_drops_the_table() -> None:
    centred = frame(window(skull()), (1.0, 1.0)).image.astype(int)
    moved = frame(window(np.roll(skull(), (8, 28), (0, 1))), (1.0, 1.0)).image.astype(int)
    assert np.mean(np.abs(centred - moved) > 60) < 0.02
    assert centred[-3:].max() < 24


def test_unequal_spacing_is_made_square() -> None:
    plain = frame(window(skull()), (1.0, 1.0)).image.astype(int)
    squeezed = frame(window(skull()[::2]), (2.0, 1.0)).image.astype(int)
    assert np.mean(np.abs(plain - squeezed) > 60) < 0.04


def test_no_tissue_is_no_head() -> None:
    with pytest.raises(NoHead):
        frame(np.zeros((128, 128), np.uint8), (1.0, 1.0))


def test_the_largest_piece_is_by_four_neighbours() -> None:
    mask = np.array([[1, 1, 0, 1], [0, 1, 0, 0], [0, 0, 1, 1]], bool)
    assert largest_piece(mask).tolist() == [[True, True, False, False], [False, True, False, False], [False] * 4]


def test_the_window_is_that_of_the_training_images() -> None:
    assert window(np.array([-500.0, -20.0, 40.0, 100.0, 3000.0])).tolist() == [0, 0, 128, 255, 255]


def test_a_large_drawn_bleed_in_the_real_head_raises_the_probability(strokedr: StrokeDr) -> None:
    piece = read_slice(shipped("J2K_pixelrep_mismatch.dcm").data)
    row, column = np.indices(piece.hu.shape)
    bleed = ((row - 340) ** 2 + (column - 200) ** 2 < 45**2) & (piece.hu > 0) & (piece.hu < 80)
    grain = np.random.default_rng(0).normal(65, 4, piece.hu.shape)
    drawn = Slice(np.where(bleed, grain, piece.hu).astype(np.float32), piece.spacing_mm)
    slices = np.stack([gate.head(one)[0][None] for one in (piece, drawn)])
    outputs = run(strokedr, {"SLICE": slices})
    plain, bleeding = outputs["HAEMORRHAGE"][:, 0]
    assert bleeding > plain + 0.2
    gained = outputs["SALIENCY"][1] - outputs["SALIENCY"][0]
    assert gained.max() > 0 and gained.sum() > 0


@pytest.mark.parametrize("items", [1, 2, 7, 32])
def test_any_batch_size_gives_probabilities(strokedr: StrokeDr, items: int) -> None:
    grey = np.random.default_rng(items).integers(0, 256, (items, 1, SIZE, SIZE), np.uint8)
    found = run(strokedr, {"SLICE": grey})["HAEMORRHAGE"]
    assert found.shape == (items, 3) and ((found >= 0) & (found <= 1)).all()


def test_the_report_is_yes_no_or_unknown_by_the_cards_cutoffs() -> None:
    at = cutoffs("dapps.strokedr", "haemorrhage_slice")
    assert 0 < at.low < at.high < 1
    middle = (at.low + at.high) / 2
    for probability, present in ((at.low / 2, False), (middle, None), ((1 + at.high) / 2, True)):
        assert answer([0.0, probability]).findings[0].present is present
    assert "radiologist" in answer([0.999]).recommendation


def test_the_report_never_says_stroke() -> None:
    for probability in (0.001, 0.12, 0.999):
        report = answer([probability])
        assert "stroke" not in (report.summary + report.recommendation + report.findings[0].label).lower()


def test_an_answer_that_is_no_number_is_no_report() -> None:
    with pytest.raises(IntakeRefused, match="no usable answer"):
        answer([0.5, float("nan")])


def test_the_gate_reads_what_the_reader_gives() -> None:
    _, quality = gate.head(read_slice(shipped("J2K_pixelrep_mismatch.dcm").data))
    assert quality["brain_cm2"] > 50


def test_the_saliency_adds_up_to_the_logit(strokedr: StrokeDr) -> None:
    grey = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 1, SIZE, SIZE), np.uint8))
    member = strokedr._haemorrhage.members[0]
    with torch.inference_mode():
        places, logits = member.saliency(member.features(grey)), member(grey)[:, 0]
    assert torch.allclose(places.sum((1, 2)) + member.head.bias[0], logits, atol=1e-4)


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


def test_a_series_and_a_record_are_answered_together(strokedr: StrokeDr) -> None:
    prepared, outputs, report = diagnosed(strokedr, Case((zipped(*head_series()),), record()))
    assert len(prepared.items) == 13 and prepared.facts["slices"] == 12 and prepared.facts["dropped"] == 1
    assert [set(item) for item in prepared.items] == [{"SLICE"}] * 12 + [{"ADMISSION"}]
    assert set(outputs[-1]) == {"OUTCOME"}
    codes = [finding.code for finding in report.findings]
    assert codes[:3] == ["intracranial_haemorrhage", "poor_outcome_6_months", "death_14_days"]
    delay = next(finding for finding in report.findings if finding.code == "delay")
    assert (delay.value, delay.unit, delay.present) == (1.5, "h", None)
    for finding in report.findings[:3]:
        assert finding.interval is not None and finding.probability is not None
        assert finding.interval[0] <= finding.probability <= finding.interval[1]
    assert len(report.traces["haemorrhage_by_slice"]) == 12 and SECRET not in repr(report)
    assert "help in daily life" in report.patient_summary


def test_slices_come_in_the_order_of_the_head_whatever_they_are_called() -> None:
    files = head_series()
    plain = StrokeDr().prepare(Case((zipped(*files),)))
    turned = StrokeDr().prepare(Case((zipped(*reversed(files), name="a/{}.bin"),)))
    apart = StrokeDr().prepare(Case(tuple(map(ClinicalFile, files[::-1]))))
    for other in (turned, apart):
        pairs = zip(plain.items, other.items, strict=True)
        assert all(np.array_equal(one["SLICE"], two["SLICE"]) for one, two in pairs)


def test_a_long_series_is_thinned_evenly_to_what_is_priced() -> None:
    prepared = StrokeDr().prepare(Case((zipped(*head_series(70, 2.0)),)))
    assert len(prepared.items) == StrokeDr.price.maximum_items - 1
    places = prepared.facts["positions_mm"]
    assert places[0] == 0 and places[-1] == 138 and max(np.diff(places)) <= 6


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
    sheet = Image.new("L", hu.shape[::-1])
    ImageDraw.Draw(sheet).text((6, 4), "DOE JANE 1950", fill=255)
    return np.where(np.asarray(sheet) > 128, 1500.0, hu)


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
    pytest.param(lambda: Case(), "empty", id="nothing"),
]


@pytest.mark.parametrize(("case", "code"), BROKEN_SERIES)
def test_a_broken_series_is_refused_by_its_cause(case: Callable[[], Case], code: str) -> None:
    with pytest.raises(IntakeRefused) as refused:
        StrokeDr().prepare(case())
    assert refused.value.code == code
    assert SECRET not in str(refused.value) and refused.value.__cause__ is None


BROKEN_RECORDS = [
    pytest.param(b"\xff\xfe{", "unreadable", id="not-utf-8"),
    pytest.param(b"{", "unreadable", id="cut-off"),
    pytest.param(b"[]", "not_an_object", id="list"),
    pytest.param(b"[" * 60_000, "too_large", id="nested"),
    pytest.param(b" " * 70_000 + b"{}", "too_large", id="long"),
    pytest.param(b'{"age": null, "age": null}', "duplicate_field", id="field-twice"),
    pytest.param(record(nihss=4), "unknown_field", id="unknown-field"),
    pytest.param(record(age=74), "missing_unit", id="no-unit"),
    pytest.param(record(age={"value": 74, "unit": "years"}), "wrong_unit", id="unit-not-ucum"),
    pytest.param(record(age={"value": 74, "unit": ["a"]}), "wrong_unit", id="unit-is-a-list"),
    pytest.param(record(age={"value": "74", "unit": "a"}), "wrong_type", id="number-as-text"),
    pytest.param(record(age={"value": True, "unit": "a"}), "wrong_type", id="number-as-true"),
    pytest.param(b'{"age": {"value": NaN, "unit": "a"}}', "not_finite", id="not-a-number"),
    pytest.param(record(age={"value": 10**400, "unit": "a"}), "not_finite", id="beyond-floats"),
    pytest.param(record(age={"value": 740, "unit": "a"}), "out_of_range", id="age-of-740"),
    pytest.param(record(systolic_pressure={"value": 160, "unit": "kPa"}), "out_of_range", id="pressure-in-kPa"),
    pytest.param(record(consciousness="asleep"), "unknown_word", id="unknown-word"),
    pytest.param(record(consciousness=2), "wrong_type", id="word-as-number"),
    pytest.param(record(age=None), "incomplete", id="age-unknown"),
    pytest.param(b"{}", "incomplete", id="nothing-known"),
    pytest.param(record(ct_before=False, infarct_visible=True), "low_quality", id="infarct-seen-without-ct"),
    pytest.param(record(syndrome="lacunar", hemianopia=True), "low_quality", id="lacunar-with-hemianopia"),
    pytest.param(
        record(syndrome="lacunar", dysphasia="gone", consciousness="unconscious"),
        "low_quality",
        id="lacunar-unconscious",
    ),
    pytest.param(
        record(syndrome="total_anterior", face_deficit="no", arm_deficit="no"),
        "low_quality",
        id="total-without-weakness",
    ),
]


@pytest.mark.parametrize(("data", "code"), BROKEN_RECORDS)
def test_a_broken_record_is_refused_by_its_cause(data: bytes, code: str) -> None:
    with pytest.raises(IntakeRefused) as refused:
        StrokeDr().prepare(Case((), data))
    assert refused.value.code == code
    assert refused.value.__cause__ is None and "740" not in str(refused.value)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
@settings(max_examples=100, deadline=None)
def test_any_json_is_read_or_refused(value: Any) -> None:
    for data in (json.dumps(value).encode(), json.dumps({**RECORD, "age": value}).encode()):
        with contextlib.suppress(IntakeRefused):
            assert StrokeDr().prepare(Case((), data)).items


def test_what_is_unknown_is_not_no(strokedr: StrokeDr) -> None:
    """Leaving a field out moves the answer between those for yes and for no, or keeps it near them."""

    def poor(**changes: Any) -> float:
        return float(diagnosed(strokedr, Case((), record(**changes)))[1][0]["OUTCOME"][0, 0, 0])

    no, unknown, yes = (poor(arm_deficit=word) for word in ("no", "gone", "yes"))
    assert no < yes and no < unknown
    assert poor(consciousness="unconscious") > poor(consciousness="drowsy") > poor()
    assert poor(age={"value": 88, "unit": "a"}) > poor(age={"value": 50, "unit": "a"})


def test_units_are_converted() -> None:
    plain = StrokeDr().prepare(Case((), record(systolic_pressure={"value": 150.0124, "unit": "mm[Hg]"})))
    other = StrokeDr().prepare(Case((), record(systolic_pressure={"value": 20, "unit": "kPa"})))
    assert np.allclose(plain.items[0]["ADMISSION"], other.items[0]["ADMISSION"])


def test_a_reader_that_is_slow_is_given_up() -> None:
    times = iter(range(0, 10_000, 20))
    with pytest.raises(IntakeRefused) as refused:
        read_series(head_series(), lambda piece: None, clock=lambda: float(next(times)))
    assert refused.value.code == "too_slow"


@pytest.mark.parametrize("what", ["slice", "series", "record", "both"])
def test_the_picture_is_a_png_of_what_was_seen(strokedr: StrokeDr, what: str) -> None:
    files = {"slice": (shipped("J2K_pixelrep_mismatch.dcm"),), "record": ()}.get(what, (zipped(*head_series()),))
    case = Case(files, record() if what in ("record", "both") else None)
    prepared, outputs, report = diagnosed(strokedr, case)
    with Image.open(io.BytesIO(strokedr.picture(prepared, outputs, report))) as picture:
        assert picture.format == "PNG" and np.asarray(picture).std() > 10
