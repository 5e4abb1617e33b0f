"""Tests the three training scripts: a folder of invented patients gives weights and a card.

The data are drawn, so the tests prove nothing about quality: the scripts run, split by patient, repeat themselves to
the bit, and write a card of their own run that names no path of the machine.
"""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import yaml

from dapps.chdr import train as chdr
from dapps.chdr.data import read as read_sound
from dapps.evaluation import card
from dapps.strokedr import train as strokedr
from dapps.strokedr.prognosis import train as prognosis
from tests.dapps.folders import head_folder, sound_folder, trial_folder


def check_written(out: Path, data: Path) -> dict[str, Any]:
    weights = (out / "weights.safetensors").read_bytes()
    facts = yaml.safe_load((out / "CARD.yaml").read_text("utf-8"))
    text = (out / "CARD.md").read_text("utf-8")
    assert facts["weights"]["sha256"] == hashlib.sha256(weights).hexdigest()
    assert card.markdown(facts) == text and str(data) not in text
    return dict(facts)


def test_the_murmur_script_runs_on_phantoms_and_repeats_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sound_folder(tmp_path)
    for out in ("first", "second"):
        chdr.main(["--data", str(tmp_path), "--out", str(tmp_path / out), "--steps", "20"])
    first, second = (check_written(tmp_path / out, tmp_path) for out in ("first", "second"))
    assert first["weights"] == second["weights"]
    assert read_sound(tmp_path).refused == {"murmur: too_short": 1}
    assert "# Model card: CHDr murmur" in capsys.readouterr().out


def test_the_haemorrhage_script_runs_on_drawn_heads(tmp_path: Path) -> None:
    head_folder(tmp_path)
    strokedr.main(["--data", str(tmp_path), "--out", str(tmp_path / "out"), "--epochs", "1", "--items", "320"])
    facts = check_written(tmp_path / "out", tmp_path)
    assert set(facts["results"]["held_out"]) == {
        "haemorrhage_slice",
        "haemorrhage_slice_in_series",
        "haemorrhage_series",
    }


def test_the_prognosis_script_runs_on_a_made_up_trial_and_repeats_itself(tmp_path: Path) -> None:
    trial_folder(tmp_path)
    prognosis.main(["--data", str(tmp_path), "--out", str(tmp_path / "first"), "--compare"])
    (tmp_path / "second").mkdir()
    for out in ("first", "second"):
        prognosis.main(["--data", str(tmp_path), "--out", str(tmp_path / out)])
    first, second = (check_written(tmp_path / out, tmp_path) for out in ("first", "second"))
    assert first["weights"] == second["weights"]
    assert len(first["ablations"]) > 5 and second["ablations"] == []
    row = first["results"]["held_out"]["poor_outcome_6_months"]
    assert row["auc"][0] > 0.7 and row["notes"]["outcome_not_known"] > 0
    assert set(first["split"]["held_out"]) < {str(number) for number in range(30)}
