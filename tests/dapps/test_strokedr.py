"""Tests dapps/strokedr: a real head CT reaches a report; a picture without a head is refused."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch
from PIL import Image
from pydicom.data import get_testdata_file

from dapps.api.types import Case, ClinicalFile, IntakeRefused, Prepared, Report
from dapps.conformance.suite import run
from dapps.evaluation.card import cutoffs
from dapps.intake.dicom import Slice
from dapps.strokedr import StrokeDr, gate
from dapps.strokedr.framing import SIZE, NoHead, frame, largest_piece, window
from tests.dapps.drawn import SECRET, head_series, read_slice, record, skull, zipped


@pytest.fixture(scope="module")
def strokedr() -> StrokeDr:
    dapp = StrokeDr()
    dapp.load("cpu")
    return dapp


def shipped(name: str) -> ClinicalFile:
    path = get_testdata_file(name, download=False)
    assert path is not None
    return ClinicalFile(Path(str(path)).read_bytes(), name)


def answer(probabilities: list[float]) -> Report:
    outputs = [{"HAEMORRHAGE": np.full((1, 3), value, np.float32)} for value in probabilities]
    return StrokeDr().conclude(Prepared(({},) * len(probabilities)), outputs)


def diagnosed(dapp: StrokeDr, case: Case) -> tuple[Prepared, list[Any], Report]:
    prepared = dapp.prepare(case)
    outputs = [run(dapp, item) for item in prepared.items]
    return prepared, outputs, dapp.conclude(prepared, outputs)


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
        pytest.param("CT_small.dcm", "contrast", id="spine-with-contrast"),
        pytest.param("693_J2KI.dcm", "lossy", id="head-without-grain"),
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


@pytest.mark.parametrize(
    ("name", "field"),
    [
        pytest.param("CT_small.dcm", "ContrastBolusAgent", id="spine"),
        pytest.param("693_J2KI.dcm", "LossyImageCompressionRatio", id="head-without-grain"),
    ],
)
def test_the_picture_is_judged_where_the_header_is_silent(strokedr: StrokeDr, name: str, field: str) -> None:
    file = pydicom.dcmread(io.BytesIO(shipped(name).data))
    delattr(file, field)
    out = io.BytesIO()
    file.save_as(out)
    with pytest.raises(IntakeRefused) as refused:
        strokedr.prepare(Case((ClinicalFile(out.getvalue()),)))
    assert refused.value.code == "low_quality"


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
    row, column = np.indices(piece.values.shape)
    bleed = ((row - 340) ** 2 + (column - 200) ** 2 < 45**2) & (piece.values > 0) & (piece.values < 80)
    grain = np.random.default_rng(0).normal(65, 4, piece.values.shape)
    drawn = Slice(np.where(bleed, grain, piece.values).astype(np.float32), piece.spacing_mm)
    slices = np.stack([gate.head(slice_)[0][None] for slice_ in (piece, drawn)])
    outputs = run(strokedr, {"SLICE": slices})
    plain, bleeding = outputs["HAEMORRHAGE"][:, 0]
    assert bleeding > plain + 0.2
    gained = outputs["SALIENCY"][1] - outputs["SALIENCY"][0]
    assert gained.max() > 0 and gained.sum() > 0


@pytest.mark.parametrize("items", [1, 2, 7, 32])
def test_any_batch_size_gives_probabilities(strokedr: StrokeDr, items: int) -> None:
    grey = np.random.default_rng(items).integers(0, 256, (items, 1, SIZE, SIZE), np.uint8)
    probabilities = run(strokedr, {"SLICE": grey})["HAEMORRHAGE"]
    assert probabilities.shape == (items, 3) and ((probabilities >= 0) & (probabilities <= 1)).all()


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
    member = strokedr.haemorrhage_net.members[0]
    with torch.inference_mode():
        places, logits = member.saliency(member.features(grey)), member(grey)[:, 0]
    assert torch.allclose(places.sum((1, 2)) + member.head.bias[0], logits, atol=1e-4)


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


@pytest.mark.parametrize("what", ["slice", "series", "record", "both"])
def test_the_picture_is_a_png_of_what_was_seen(strokedr: StrokeDr, what: str) -> None:
    files = {"slice": (shipped("J2K_pixelrep_mismatch.dcm"),), "record": ()}.get(what, (zipped(*head_series()),))
    case = Case(files, record() if what in ("record", "both") else None)
    prepared, outputs, report = diagnosed(strokedr, case)
    with Image.open(io.BytesIO(strokedr.picture(prepared, outputs, report))) as picture:
        assert picture.format == "PNG" and np.asarray(picture).std() > 10


def test_what_is_unknown_is_not_no(strokedr: StrokeDr) -> None:
    """Leaving a field out moves the answer between those for yes and for no, or keeps it near them."""

    def poor(**changes: Any) -> float:
        return float(diagnosed(strokedr, Case((), record(**changes)))[1][0]["OUTCOME"][0, 0, 0])

    no, unknown, yes = (poor(arm_deficit=word) for word in ("no", "gone", "yes"))
    assert no < yes and no < unknown
    assert poor(consciousness="unconscious") > poor(consciousness="drowsy") > poor()
    assert poor(age={"value": 88, "unit": "a"}) > poor(age={"value": 50, "unit": "a"})
