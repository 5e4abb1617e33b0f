"""Mirror of dapps/card.py: what is served and what the card says are one thing."""

import json
from pathlib import Path

import numpy as np
import pytest

from dapps import card


def test_the_grey_zone_lies_between_the_cutoffs() -> None:
    at = card.Cutoffs(0.2, 0.6)
    assert [at.present(value) for value in (0.1, 0.2, 0.59, 0.6, 0.9)] == [False, None, None, True, True]


def test_chosen_cutoffs_are_in_order_whatever_the_scores() -> None:
    random = np.random.default_rng(0)
    truth = np.tile([0, 0, 1], 50)
    for gain in (0.0, 0.5, 5.0):
        at = card.choose(random.random(150) + gain * truth, truth)
        assert at.low <= at.high


def test_a_card_is_written_for_programs_and_for_people(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    truth = np.tile([0, 1], 40)
    probabilities = np.clip(truth * 0.4 + random.random(80) * 0.6, 0, 1)
    told = card.measured(probabilities, truth, [str(index // 2) for index in range(80)], card.Cutoffs(0.3, 0.5))
    card.write(tmp_path, {"name": "Thing", "version": "1", "limits": ["few"], "split": "by patient", "test": told})
    assert json.loads((tmp_path / "card.json").read_text("utf-8"))["test"]["AUC"] == told["AUC"]
    text = (tmp_path / "CARD.md").read_text("utf-8")
    assert text.startswith("# Model card: Thing 1\n") and "- few" in text and "95 % CI" in text
    assert told["patients"] == 40 and told["prevalence"] == 0.5


@pytest.mark.parametrize("package", ["dapps.chdr", "dapps.strokedr"])
def test_the_shipped_cards_hold_what_a_card_must(package: str) -> None:
    from importlib.resources import files

    text = files(package).joinpath("CARD.md").read_text("utf-8")
    for word in ("citation", "licence", "by patient", "prevalence", "AUC", "ECE", "Limits", "command", "sha256"):
        assert word in text, word
    shipped = json.loads(files(package).joinpath("card.json").read_text("utf-8"))
    assert card.markdown(shipped) == text
