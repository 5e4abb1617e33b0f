"""Tests dapps/evaluation/card.py: served answers and cards agree."""

import hashlib
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from dapps.api import Cutoffs, Scored
from dapps.evaluation import card
from dapps.evaluation.measure import measured

CARDS = [
    ("dapps.chdr", "patient", ("murmur_recording", "murmur_patient")),
    (
        "dapps.strokedr",
        "patient",
        ("haemorrhage_slice", "haemorrhage_slice_in_series", "haemorrhage_series"),
    ),
    ("dapps.strokedr.prognosis", "hospital", ("poor_outcome_6_months", "death_14_days")),
]
BARS = [(package, model, 0.75) for package, _, models in CARDS for model in models]


def test_the_grey_zone_lies_between_the_cutoffs() -> None:
    at = Cutoffs(0.2, 0.6)
    assert [at.present(value) for value in (0.1, 0.2, 0.59, 0.6, 0.9)] == [False, None, None, True, True]


def test_chosen_cutoffs_are_in_order_whatever_the_scores() -> None:
    random = np.random.default_rng(0)
    truth = np.tile([0, 0, 1], 50)
    for gain in (0.0, 0.5, 5.0):
        at = card.choose(random.random(150) + gain * truth, truth)
        assert at.low <= at.high


def scored(count: int = 80) -> Scored:
    random = np.random.default_rng(0)
    truth = np.tile([0, 1], count // 2)
    probability = np.clip(truth * 0.4 + random.random(count) * 0.6, 0, 1)
    patients = [str(index // 2) for index in range(count)]
    groups = {"half: first": np.arange(count) < count // 2, "half: none": np.zeros(count, bool)}
    return Scored("thing", "slice", probability, truth, patients, Cutoffs(0.3, 0.5), groups, {"left_out": 3})


def test_a_card_is_written_for_programs_and_for_people(tmp_path: Path) -> None:
    facts = measured(scored())
    results = {"development": {"thing": facts}, "held_out": {"thing": facts}}
    ablations = [{"idea": "more", "measured": "AUC 0.9", "kept": "no"}]
    card.write(
        tmp_path, {"name": "Thing", "version": "1", "limits": ["few"], "results": results, "ablations": ablations}
    )
    assert yaml.safe_load((tmp_path / "CARD.yaml").read_text("utf-8"))["results"] == results
    text = (tmp_path / "CARD.md").read_text("utf-8")
    assert text.startswith("# Model card: Thing 1\n") and "- few" in text and "| more | AUC 0.9 | no |" in text
    assert facts["patients"] == 40 and facts["prevalence"] == 0.5 and facts["notes"] == {"left_out": 3}
    assert list(facts["subgroups"]) == ["half: first"]
    assert facts["auc"][1] < facts["auc"][0] < facts["auc"][2]


def test_what_is_undefined_is_none_and_still_written(tmp_path: Path) -> None:
    positives = replace(scored(), truth=np.ones(80, int))
    facts = measured(positives)
    assert facts["auc"] == [None, None, None] and facts["specificity_at_low"][0] is None
    card.write(tmp_path, {"name": "T", "version": "1", "results": {part: {"thing": facts} for part in card.RESULTS}})
    assert ".nan" not in (tmp_path / "CARD.yaml").read_text("utf-8")


@pytest.mark.parametrize("wrong", [{"patients": ["a"]}, {"probability": np.zeros(3)}])
def test_answers_that_do_not_fit_the_truth_are_not_measured(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="differ in number"):
        replace(scored(), **wrong)


@pytest.mark.parametrize(("package", "unit"), [(name, unit) for name, unit, _ in CARDS], ids=[c[0] for c in CARDS])
def test_the_shipped_cards_hold_what_a_card_must(package: str, unit: str) -> None:
    folder = files(package)
    text, facts = folder.joinpath("CARD.md").read_text("utf-8"), card.read(package)
    assert card.markdown(facts) == text
    assert facts["intended_use"] == "research" and facts["split"]["unit"] == unit and len(card.held_out(package)) > 10
    assert (
        facts["data"]["citation"]
        and facts["data"]["licence as stated"]
        and facts["limits"]
        and len(facts["ablations"]) > 3
    )
    assert "--data DIR" in facts["training"]["command"]
    weights = folder.joinpath("weights.safetensors").read_bytes()
    assert facts["weights"]["sha256"] == hashlib.sha256(weights).hexdigest() and len(weights) < 2_500_000


@pytest.mark.parametrize(("package", "model", "least"), BARS, ids=[bar[1] for bar in BARS])
def test_the_shipped_numbers_are_whole(package: str, model: str, least: float) -> None:
    at = card.cutoffs(package, model)
    assert 0 < at.low <= at.high < 1
    for part in card.RESULTS:
        row = card.read(package)["results"][part][model]
        assert row["n"] >= row["positive"] > 0 and row["auc"][0] >= least
        assert sum(bin_["n"] for bin_ in row["reliability"]) == row["n"]
        assert row["ece"] is not None and row["sensitivity_at_low"][0] >= row["sensitivity_at_high"][0]


@pytest.mark.parametrize(
    ("package", "models"), [(name, models) for name, _, models in CARDS], ids=[c[0] for c in CARDS]
)
def test_the_page_on_models_says_what_the_cards_say(package: str, models: tuple[str, ...]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text("utf-8")
    facts = card.read(package)
    for model in models:
        for part in card.RESULTS:
            auc, low, high = facts["results"][part][model]["auc"]
            assert f"{auc:.3f} ({low:.3f} to {high:.3f})" in page, model
        assert f"{facts['results']['held_out'][model]['ece']:.3f}" in page
        assert f"models/{model}.png" in page
    for name, numbers in facts.get("spread", {}).items():
        for auc, low, high in numbers.values() if name != "how" else ():
            assert f"{auc:.3f} ({low:.3f} to {high:.3f})" in page
    for row in facts["ablations"]:
        assert f"| {row['idea']} | {row['measured']} | {row['kept']} |" in page
