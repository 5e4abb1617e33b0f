"""Tests dapps/chdr: a recording reaches 'murmur heard, refer', and no other finding."""

import io
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dapps.api import Case, ClinicalFile, Cutoffs, Inputs, IntakeRefused, Prepared, Report
from dapps.chdr import CHDr, phantom
from dapps.chdr.windows import MAX_WINDOWS, WINDOW_SAMPLES, windows
from dapps.conformance.suite import run
from dapps.evaluation.card import cutoffs
from tests.examples import examples


@pytest.fixture(scope="module")
def chdr() -> CHDr:
    dapp = CHDr()
    dapp.load("cpu")
    return dapp


def answer(probabilities: list[float], sites: int = 1) -> Report:
    windows_each = len(probabilities) // sites
    facts = {"sites": [{"site": "mitral", "windows": windows_each, "seconds": 5.0}] * sites}
    outputs: list[Inputs] = [{"MURMUR": np.full((1, 3), value, np.float32)} for value in probabilities]
    return CHDr().conclude(Prepared(({},) * len(probabilities), facts), outputs)


def heard(dapp: CHDr, case: Case) -> Report:
    prepared = dapp.prepare(case)
    return dapp.conclude(prepared, [run(dapp, item) for item in prepared.items])


def sound(murmur: bool, seed: int = 0, part: str = "", seconds: float = 8.0) -> ClinicalFile:
    return ClinicalFile(phantom.wav(phantom.phonocardiogram(murmur, seconds, seed=seed)), part=part)


@pytest.mark.parametrize("seed", range(4))
def test_the_phantom_with_a_murmur_scores_higher(chdr: CHDr, seed: int) -> None:
    def probability(murmur: bool) -> float:
        probability = heard(chdr, Case((sound(murmur, seed),))).findings[0].probability
        assert probability is not None
        return probability

    assert probability(True) > probability(False)


def test_loudness_and_offset_say_nothing(chdr: CHDr) -> None:
    example = chdr.example()["PCG"]
    plain, loud = (run(chdr, {"PCG": wave})["MURMUR"] for wave in (example, example * np.float32(0.05) + 0.1))
    assert np.abs(plain - loud).max() < 1e-3


@pytest.mark.parametrize("items", [1, 2, 7, 32])
def test_any_batch_size_gives_probabilities(chdr: CHDr, items: int) -> None:
    wave = np.random.default_rng(items).standard_normal((items, WINDOW_SAMPLES)).astype(np.float32)
    probabilities = run(chdr, {"PCG": wave})["MURMUR"]
    assert probabilities.shape == (items, 3) and ((probabilities >= 0) & (probabilities <= 1)).all()
    assert (probabilities[:, 1] <= probabilities[:, 0]).all() and (probabilities[:, 0] <= probabilities[:, 2]).all()


def test_silence_is_a_number_not_a_crash(chdr: CHDr) -> None:
    assert np.isfinite(run(chdr, {"PCG": np.zeros((1, WINDOW_SAMPLES), np.float32)})["MURMUR"]).all()


@given(st.integers(4000, 240_000))
@settings(max_examples=examples(60))
def test_windows_are_bounded_and_reach_both_ends(samples: int) -> None:
    ramp = np.arange(samples, dtype=np.float32)
    cut = windows(ramp)
    assert cut.shape[1] == WINDOW_SAMPLES and 1 <= len(cut) <= MAX_WINDOWS
    assert cut[0, 0] == 0 and (samples < WINDOW_SAMPLES or cut[-1, -1] == samples - 1)


def test_the_report_is_yes_no_or_unknown_by_the_cards_cutoffs() -> None:
    at = cutoffs("dapps.chdr", "murmur_recording")
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


def test_a_row_that_is_no_number_spoils_no_other_row(chdr: CHDr) -> None:
    wave = np.concatenate([chdr.example()["PCG"]] * 3)
    whole = run(chdr, {"PCG": wave})["MURMUR"]
    wave[1] = np.nan
    spoilt = run(chdr, {"PCG": wave})["MURMUR"]
    assert np.allclose(spoilt[[0, 2]], whole[[0, 2]], atol=1e-5)


def test_sites_and_oximetry_are_answered_together(chdr: CHDr) -> None:
    record = b'{"age": {"value": 2, "unit": "d"}, "spo2_foot": {"value": 96, "unit": "%"}}'
    files = tuple(sound(True, seed, part) for seed, part in enumerate(("MV", "pv", "elsewhere")))
    report = heard(chdr, Case(files, record))
    assert report.findings[0].code == "murmur" and report.quality["sites"] == 3
    labels = [finding.label for finding in report.findings[1:4]]
    assert labels == ["heart murmur, mitral", "heart murmur, pulmonary", "heart murmur, unnamed site"]
    for finding in report.findings[:4]:
        assert finding.interval is not None and finding.probability is not None
        assert finding.interval[0] <= finding.probability <= finding.interval[1]
        assert finding.quality == ("grey zone" if finding.present is None else "good")
    age, foot = report.findings[4:]
    assert (age.value, age.unit) == (48, "h") and (foot.value, foot.unit) == (96, "%")
    assert foot.coding is not None and foot.coding.code == "59418-4" and foot.present is None
    assert len(report.traces["murmur_by_window"]) == report.quality["windows"] <= chdr.price.maximum_items


def test_recordings_under_one_sites_name_are_one_site(chdr: CHDr) -> None:
    files = (sound(True, 0, "MV"), sound(True, 1, "pv"), sound(True, 2, "mitral"))
    prepared = chdr.prepare(Case(files))
    mitral, pulmonary = prepared.facts["sites"]
    assert (mitral["site"], pulmonary["site"]) == ("mitral", "pulmonary")
    alone = [chdr.prepare(Case((file,))) for file in files]
    assert mitral["seconds"] == alone[0].facts["sites"][0]["seconds"] + alone[2].facts["sites"][0]["seconds"]
    assert mitral["windows"] + pulmonary["windows"] == len(prepared.items)
    assert np.array_equal(prepared.items[-1]["PCG"], chdr.prepare(Case(files[1:2])).items[-1]["PCG"])
    report = heard(chdr, Case(files))
    assert report.quality["sites"] == 2 and "over 2 sites" in report.summary
    assert [finding.label for finding in report.findings[1:]] == ["heart murmur, mitral", "heart murmur, pulmonary"]
    two_sites = heard(chdr, Case((files[0], files[2])))
    assert two_sites.quality["sites"] == 1 and "window" in two_sites.summary and len(two_sites.findings) == 1
    assert heard(chdr, Case((sound(True, 0), sound(True, 1)))).quality["sites"] == 2  # nothing says they are one


def test_one_site_counts_like_another_however_long_it_is() -> None:
    facts = {"sites": [{"site": "mitral", "windows": n, "seconds": 5.0} for n in (1, 3)]}
    outputs: list[Inputs] = [{"MURMUR": np.full((1, 3), value, np.float32)} for value in (0.9, 0.1, 0.1, 0.1)]
    uneven = CHDr().conclude(Prepared(({},) * 4, facts), outputs).findings[0].probability
    assert uneven == answer([0.9, 0.1], sites=2).findings[0].probability


def sung(seed: int, tone_hz: float, tilt: float) -> "np.ndarray[Any, Any]":
    """Syllables of a voiced source with formants, as an adult speaks; no person's voice."""
    random = np.random.default_rng(seed)
    time_s = np.arange(6 * 4000) / 4000
    out, at_s = np.zeros_like(time_s), 0.0
    while at_s < 6:
        length_s, tone = random.uniform(0.1, 0.3), tone_hz * (1 + 0.1 * random.standard_normal())
        where = (time_s >= at_s) & (time_s < at_s + length_s)
        place_s = time_s[where] - at_s
        formants = (random.uniform(300, 800), random.uniform(900, 1800))
        voice = np.zeros(int(where.sum()))
        for number in range(1, int(1900 / tone)):
            gains = [1 / np.hypot(1 - (number * tone / f) ** 2, number * tone * 80 / f**2) for f in formants]
            voice += gains[0] * gains[1] / number**tilt * np.sin(2 * np.pi * number * tone * place_s)
        out[where] = voice / max(np.abs(voice).max(), 1e-9) * np.sin(np.pi * place_s / length_s)
        at_s += length_s + random.uniform(0.02, 0.3)
    return out * 0.5


def noise(colour: float, seed: int = 0) -> "np.ndarray[Any, Any]":
    """Noise whose power falls with frequency to this power."""
    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal(24_000))
    signal = np.fft.irfft(spectrum / np.maximum(np.arange(len(spectrum)), 20) ** (colour / 2), 24_000)
    return np.asarray(0.5 * signal / np.abs(signal).max())


@pytest.mark.parametrize(
    "wave",
    [
        *(pytest.param(sung(seed, hz, 1.0), id=f"speech-{hz}-hz") for seed, hz in enumerate((95.0, 120.0, 210.0))),
        pytest.param(sung(7, 110.0, 2.0), id="muffled-speech"),
        pytest.param(np.tile(np.append(sung(3, 120.0, 1.5)[:1600], np.zeros(1600)), 8), id="a-word-at-75-a-minute"),
        *(pytest.param(noise(colour), id=f"noise-{colour:.0f}") for colour in (0.0, 1.0, 2.0)),
        pytest.param(0.3 * np.sin(2 * np.pi * 50 * np.arange(24_000) / 4000), id="mains-hum"),
        pytest.param(np.where(np.arange(24_000) % 2000 == 0, 0.9, 0.01) * noise(0.0), id="clicks"),
    ],
)
def test_what_is_no_heart_is_of_low_quality(wave: "np.ndarray[Any, Any]") -> None:
    with pytest.raises(IntakeRefused) as refused:
        CHDr().prepare(Case((ClinicalFile(phantom.wav(wave.astype(np.float32))),)))
    assert refused.value.code == "low_quality"


@pytest.mark.parametrize("beats", [60.0, 90.0, 120.0, 150.0])
@pytest.mark.parametrize("murmur", [True, False])
def test_a_heart_at_any_rate_passes_the_gate(beats: float, murmur: bool) -> None:
    recording = phantom.phonocardiogram(murmur, 5.0, beats, 0.03, seed=1)
    assert CHDr().prepare(Case((ClinicalFile(phantom.wav(recording)),))).items


@pytest.mark.parametrize(
    ("case", "code"),
    [
        pytest.param(Case(), "empty", id="nothing"),
        pytest.param(Case((), b"{}"), "empty", id="record-alone"),
        pytest.param(Case((sound(True),) * 2), "duplicate", id="same-twice"),
        pytest.param(Case(tuple(sound(True, n, seconds=2.0) for n in range(7))), "too_many", id="seven-sites"),
        pytest.param(Case((sound(True),), b'{"spo2": 99}'), "unknown_field", id="unknown-field"),
        pytest.param(
            Case((sound(True),), b'{"spo2_foot": {"value": 990, "unit": "%"}}'), "out_of_range", id="impossible"
        ),
    ],
)
def test_a_case_is_refused_by_its_cause(case: Case, code: str) -> None:
    with pytest.raises(IntakeRefused) as refused:
        CHDr().prepare(case)
    assert refused.value.code == code


def test_the_picture_is_a_png_of_what_was_heard(chdr: CHDr) -> None:
    prepared = chdr.prepare(Case((sound(True, part="MV"), sound(False, 1, seconds=3.0))))
    outputs = [run(chdr, item) for item in prepared.items]
    report = chdr.conclude(prepared, outputs)
    with ThreadPoolExecutor(3) as pool:
        drawn = list(pool.map(lambda _: chdr.picture(prepared, outputs, report), range(3)))
    assert drawn[0] == drawn[1] == drawn[2]
    with Image.open(io.BytesIO(drawn[0])) as picture:
        assert picture.format == "PNG" and picture.size[1] > 500
