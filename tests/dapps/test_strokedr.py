"""Mirror of dapps/strokedr: a real head CT goes all the way to a report; what is no head goes nowhere."""

import hashlib
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.data import get_testdata_file

from dapps.card import cutoffs
from dapps.intake.dicom import Slice, read_slice
from dapps.strokedr import StrokeDr, gate
from dapps.strokedr.framing import SIZE, NoHead, frame, largest_piece, window
from dapps.testing import run
from dapps.types import ClinicalFile, IntakeRefused


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


def answer(probabilities: list[float]) -> Any:
    return StrokeDr().report({"HAEMORRHAGE": np.array(probabilities, np.float32)[:, None]})


def test_a_real_head_goes_through(strokedr: StrokeDr) -> None:
    items = strokedr.intake(shipped("J2K_pixelrep_mismatch.dcm"))
    assert items["SLICE"].shape == (1, 1, SIZE, SIZE) and items["SLICE"].dtype == np.uint8
    report = strokedr.report(run(strokedr, items))
    probability = report.findings[0].probability
    assert report.findings[0].label == "intracranial haemorrhage"
    assert probability is not None and 0 < probability < 1
    assert "Research use only" in report.notice


@pytest.mark.parametrize(
    ("name", "code"),
    [
        pytest.param("CT_small.dcm", "wrong_region", id="spine"),
        pytest.param("693_J2KI.dcm", "low_quality", id="head-without-grain"),
        pytest.param("examples_rgb_color.dcm", "wrong_modality", id="ultrasound-rgb"),
        pytest.param("examples_palette.dcm", "wrong_modality", id="ultrasound-palette"),
        pytest.param("examples_ybr_color.dcm", "wrong_modality", id="echo-cine"),
        pytest.param("MR_small.dcm", "wrong_modality", id="mr"),
    ],
)
def test_what_is_no_head_ct_is_refused(strokedr: StrokeDr, name: str, code: str) -> None:
    with pytest.raises(IntakeRefused) as refused:
        strokedr.intake(shipped(name))
    assert refused.value.code == code


def test_a_drawn_head_passes_the_gate() -> None:
    image, quality = gate.head(Slice(skull(), (1.0, 1.0)))
    assert image.shape == (SIZE, SIZE)
    assert quality["brain_cm2"] > 100 and quality["grain_hu"] > 1


@pytest.mark.parametrize(
    ("hu", "code"),
    [
        pytest.param(np.full((256, 256), -1000, np.float32), "wrong_region", id="air"),
        pytest.param(np.full((400, 400), 40, np.float32), "wrong_region", id="filled-with-tissue"),
        pytest.param(skull(half_mm=(30, 25)), "wrong_region", id="limb-sized"),
        pytest.param(skull(400, half_mm=(180, 150)), "wrong_region", id="trunk-sized"),
        pytest.param(np.minimum(skull(), 60), "wrong_region", id="no-bone"),
        pytest.param(np.where(skull() > 500, skull(), -1000), "wrong_region", id="no-brain"),
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
    plain, bleeding = run(strokedr, {"SLICE": slices})["HAEMORRHAGE"][:, 0]
    assert bleeding > plain + 0.2


@pytest.mark.parametrize("items", [1, 2, 7, 32])
def test_any_batch_size_gives_probabilities(strokedr: StrokeDr, items: int) -> None:
    grey = np.random.default_rng(items).integers(0, 256, (items, 1, SIZE, SIZE), np.uint8)
    found = run(strokedr, {"SLICE": grey})["HAEMORRHAGE"]
    assert found.shape == (items, 1) and ((found >= 0) & (found <= 1)).all()


def test_the_report_is_yes_no_or_unknown_by_the_cards_cutoffs() -> None:
    at = cutoffs("dapps.strokedr")
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


def test_the_card_belongs_to_the_weights() -> None:
    folder = files("dapps.strokedr")
    card = json.loads(folder.joinpath("card.json").read_text("utf-8"))
    weights = folder.joinpath("weights.safetensors").read_bytes()
    assert card["weights"]["sha256"] == hashlib.sha256(weights).hexdigest()
    assert len(weights) < 2_000_000
    assert card["version"] == StrokeDr.version
    assert "--data DIR" in folder.joinpath("CARD.md").read_text("utf-8")
