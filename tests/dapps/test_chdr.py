"""Mirror of dapps/chdr: a recording goes all the way to "murmur heard, refer", and no further."""

import hashlib
import json
from importlib.resources import files
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dapps.card import Cutoffs, cutoffs
from dapps.chdr import CHDr, phantom
from dapps.chdr.windows import MAXIMUM, WINDOW_SAMPLES, windows
from dapps.testing import run
from dapps.types import ClinicalFile, IntakeRefused


@pytest.fixture(scope="module")
def chdr() -> CHDr:
    dapp = CHDr()
    dapp.load("cpu")
    return dapp


def answer(probabilities: list[float]) -> Any:
    return CHDr().report({"MURMUR": np.array(probabilities, np.float32)[:, None]})


@pytest.mark.parametrize("seed", range(4))
def test_the_phantom_with_a_murmur_scores_higher(chdr: CHDr, seed: int) -> None:
    def probability(murmur: bool) -> float:
        sound = phantom.phonocardiogram(murmur, seed=seed)
        found = chdr.report(run(chdr, chdr.intake(ClinicalFile(phantom.wav(sound))))).findings[0].probability
        assert found is not None
        return found

    assert probability(True) > probability(False)


def test_loudness_and_offset_say_nothing(chdr: CHDr) -> None:
    example = chdr.example()["PCG"]
    plain, loud = (run(chdr, {"PCG": wave})["MURMUR"] for wave in (example, example * np.float32(0.05) + 0.1))
    assert np.abs(plain - loud).max() < 1e-3


@pytest.mark.parametrize("items", [1, 2, 7, 32])
def test_any_batch_size_gives_probabilities(chdr: CHDr, items: int) -> None:
    wave = np.random.default_rng(items).standard_normal((items, WINDOW_SAMPLES)).astype(np.float32)
    found = run(chdr, {"PCG": wave})["MURMUR"]
    assert found.shape == (items, 1) and ((found >= 0) & (found <= 1)).all()


def test_silence_is_a_number_not_a_crash(chdr: CHDr) -> None:
    assert np.isfinite(run(chdr, {"PCG": np.zeros((1, WINDOW_SAMPLES), np.float32)})["MURMUR"]).all()


@given(st.integers(4000, 240_000))
@settings(max_examples=60, deadline=None)
def test_windows_are_bounded_and_reach_both_ends(samples: int) -> None:
    sound = np.arange(samples, dtype=np.float32)
    cut = windows(sound)
    assert cut.shape[1] == WINDOW_SAMPLES and 1 <= len(cut) <= MAXIMUM
    assert cut[0, 0] == 0 and (samples < WINDOW_SAMPLES or cut[-1, -1] == samples - 1)


def test_the_report_is_yes_no_or_unknown_by_the_cards_cutoffs() -> None:
    at = cutoffs("dapps.chdr")
    assert 0 < at.low < at.high < 1
    middle = (at.low + at.high) / 2
    for probability, present in ((at.low / 2, False), (middle, None), ((1 + at.high) / 2, True)):
        report = answer([probability, probability])
        assert report.findings[0].present is present
        assert report.findings[0].probability == pytest.approx(probability, abs=1e-3)
    assert "echocardiography" in answer([0.999]).recommendation
    assert "Repeat the recording" in answer([middle]).recommendation


def test_the_report_never_names_a_disease() -> None:
    for probability in (0.001, 0.2, 0.999):
        report = answer([probability])
        assert report.findings[0].label == "heart murmur"
        assert "congenital" not in report.summary.lower() and "CHD" not in report.summary


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_answer_that_is_no_number_is_no_report(value: float) -> None:
    with pytest.raises(IntakeRefused, match="no usable answer"):
        answer([0.5, value])


def test_an_undefined_probability_is_unknown_never_no() -> None:
    assert Cutoffs(0.2, 0.6).present(float("nan")) is None


def test_the_phantom_is_fixed_by_its_seed() -> None:
    first, again, other = (phantom.phonocardiogram(True, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert first.dtype == np.float32 and np.abs(first).max() <= 1


def test_the_card_belongs_to_the_weights() -> None:
    folder = files("dapps.chdr")
    card = json.loads(folder.joinpath("card.json").read_text("utf-8"))
    weights = folder.joinpath("weights.safetensors").read_bytes()
    assert card["weights"]["sha256"] == hashlib.sha256(weights).hexdigest()
    assert len(weights) < 2_000_000
    assert card["version"] == CHDr.version
    assert "--data DIR" in folder.joinpath("CARD.md").read_text("utf-8")


def test_a_row_that_is_no_number_spoils_no_other_row(chdr: CHDr) -> None:
    wave = np.concatenate([chdr.example()["PCG"]] * 3)
    whole = run(chdr, {"PCG": wave})["MURMUR"]
    wave[1] = np.nan
    spoilt = run(chdr, {"PCG": wave})["MURMUR"]
    assert np.allclose(spoilt[[0, 2]], whole[[0, 2]], atol=1e-5)
