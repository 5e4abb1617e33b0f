"""`leben dapp evaluate` reproduces every number of a card on a folder of the same layout."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from typer.testing import CliRunner

from dapps import DApp
from dapps.evaluation import card, metrics
from dapps.packages import registry
from serving.cli.main import app
from tests.dapps.folders import head_folder, sound_folder, trial_folder, write_rows

STROKE = ("haemorrhage_slice", "haemorrhage_slice_in_series", "haemorrhage_series")
OUTCOME = ("poor_outcome_6_months", "death_14_days")


def evaluate(name: str, folder: Path, *more: str) -> Any:
    return CliRunner().invoke(app, ["dapp", "evaluate", name, "--data", str(folder), *more], env={"COLUMNS": "80"})


def numbers(name: str, folder: Path, *more: str) -> dict[str, Any]:
    done = evaluate(name, folder, "--json", str(folder / "out.json"), *more)
    assert done.exit_code == 0, done.output
    return dict(json.loads((folder / "out.json").read_text()))


def read(table: Path) -> list[dict[str, str]]:
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def rename(table: Path, column: str, names: dict[str, str]) -> None:
    rows = read(table)
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({**row, column: names.get(row[column], row[column])} for row in rows)


def test_every_model_is_measured_and_drawn(tmp_path: Path) -> None:
    head_folder(tmp_path)
    trial_folder(tmp_path)
    result = numbers("strokedr", tmp_path, "--plots", str(tmp_path / "plots"))
    assert tuple(result["models"]) == STROKE + OUTCOME and result["skipped"] == {}
    heads, series, outcome = (result["models"][name] for name in (STROKE[0], STROKE[2], OUTCOME[0]))
    assert (heads["n"], heads["positive"], heads["patients"]) == (48, 12, 24)
    assert (series["n"], series["positive"]) == (24, 12)
    assert outcome["n"] == 588 and outcome["auc"][0] > 0.7
    for row in result["models"].values():
        assert row["auc"][1] <= row["auc"][0] <= row["auc"][2] and 0 <= row["ece"] <= 1
        assert row["prevalence"] == pytest.approx(row["positive"] / row["n"], abs=1e-4)
    for name in STROKE + OUTCOME:
        drawing = ElementTree.parse(tmp_path / "plots" / f"{name}.svg").getroot()  # noqa: S314 - our own file
        classes = [element.get("class") for element in drawing.iter()]
        rows = result["models"][name]["reliability"]
        assert classes.count("mark") == len(rows) and "curve" in classes and "band" in classes
        assert f"AUC {result['models'][name]['auc'][0]:.3f}" in "".join(drawing.itertext())


def test_the_numbers_are_those_of_the_served_answers(tmp_path: Path) -> None:
    """The same folder, answered by the DApp itself, gives the same AUC and operating points."""
    from dapps.api.types import Case, ClinicalFile
    from dapps.chdr import CHDr
    from dapps.conformance.suite import run

    sound_folder(tmp_path)
    result = numbers("chdr", tmp_path)["models"]["murmur_recording"]
    dapp = CHDr()
    dapp.load("cpu")
    rows = [row for row in read(tmp_path / "pascal_b/labels.csv") if row["label"] != "extrastole"]
    probabilities, truth = [], []
    for row in rows:
        if row["file"] == "short.wav":
            continue
        prepared = dapp.prepare(Case((ClinicalFile((tmp_path / "pascal_b/wav" / row["file"]).read_bytes()),)))
        report = dapp.conclude(prepared, [run(dapp, item) for item in prepared.items])
        probabilities.append(report.findings[0].probability)
        truth.append(int(row["label"] == "murmur"))
    assert result["n"] == len(probabilities) == 23 and result["notes"]["refused_by_the_reader"] == 1
    at = card.cutoffs("dapps.chdr", "murmur_recording")
    scores, labels = np.array(probabilities, float), np.array(truth)
    assert result["auc"][0] == pytest.approx(metrics.auc(scores, labels), abs=0.01)
    assert result["sensitivity_at_low"][0] == pytest.approx(metrics.sensitivity(scores, labels, at.low), abs=1e-4)
    assert result["specificity_at_high"][0] == pytest.approx(metrics.specificity(scores, labels, at.high), abs=1e-4)


def test_held_out_measures_the_held_out_groups_of_the_card(tmp_path: Path) -> None:
    sound_folder(tmp_path)
    inside = sorted(card.held_out("dapps.chdr"))[:6]
    rename(tmp_path / "pascal_b" / "labels.csv", "patient", dict(zip("123456", inside, strict=True)))
    assert numbers("chdr", tmp_path, "--held-out")["models"]["murmur_patient"]["n"] == 6
    assert numbers("chdr", tmp_path)["models"]["murmur_patient"]["n"] == 23


def edit_rows(table: Path, edit: Callable[[list[dict[str, str]]], list[dict[str, str]]]) -> None:
    write_rows(table, [dict(row) for row in edit(read(table))])


def test_one_country_one_class_or_one_row_is_measured_as_far_as_it_can_be(tmp_path: Path) -> None:
    """What a deployer has may be small and one-sided: undefined numbers are null, the rest is there."""
    trial_folder(tmp_path)
    head_folder(tmp_path)
    table, heads = tmp_path / "ist" / "any name.csv", tmp_path / "ct_ich" / "labels.csv"
    edit_rows(table, lambda rows: [row for row in rows if row["COUNTRY"] == "ITAL"])
    edit_rows(heads, lambda rows: [row for row in rows if row["ich"] == "0"])
    plots = tmp_path / "plots"
    result = numbers("strokedr", tmp_path, "--plots", str(plots))["models"]
    assert set(result) == set(STROKE + OUTCOME) == {path.stem for path in plots.iterdir()}
    assert result[OUTCOME[0]]["auc"][0] > 0.7 and list(result[OUTCOME[0]]["subgroups"])[-1] == "country: ITAL"
    for name in STROKE:
        assert result[name]["auc"] == [None] * 3 and result[name]["sensitivity_at_low"][0] is None
        assert 0 <= result[name]["specificity_at_low"][0] <= 1 and result[name]["positive"] == 0
    edit_rows(table, lambda rows: [{**row, "ID14": ""} for row in rows if row["OCCODE"] != "9"][:1])
    edit_rows(heads, lambda rows: rows[:1])
    first = numbers("strokedr", tmp_path, "--plots", str(plots))
    assert {row["n"] for row in first["models"].values()} == {1}
    assert first["skipped"] == {OUTCOME[1]: "of no patient in the folder is this outcome known"}


def test_a_table_that_cannot_be_used_leaves_the_other_models_measured(tmp_path: Path) -> None:
    trial_folder(tmp_path)
    head_folder(tmp_path)
    edit_rows(tmp_path / "ist" / "any name.csv", lambda rows: [{**row, "AGE": "old"} for row in rows])
    result = numbers("strokedr", tmp_path)
    assert tuple(result["models"]) == STROKE
    assert set(result["skipped"].values()) == {"ist/any name.csv, row 1: AGE is not a number"}


def test_a_missing_folder_or_file_is_skipped_by_name(tmp_path: Path) -> None:
    trial_folder(tmp_path)
    result = numbers("strokedr", tmp_path)
    assert tuple(result["skipped"]) == STROKE and tuple(result["models"]) == OUTCOME
    head_folder(tmp_path)
    for picture in (tmp_path / "ct_ich" / "img").glob("00*.png"):
        picture.unlink()
    rows = numbers("strokedr", tmp_path)["models"]["haemorrhage_slice"]
    assert (rows["n"], rows["notes"]["left_out"]) == (28, 20)


@pytest.mark.parametrize(
    ("name", "files", "says"),
    [
        ("strokedr", {}, "skipped haemorrhage_slice"),
        ("chdr", {"pascal_b/labels.csv": "file,label,patient\n"}, "skipped murmur_patient"),
        ("chdr", {"pascal_b/labels.csv": "name\nx\n"}, "lacks the columns file, label, patient"),
        ("strokedr", {"ist/x.csv": "AGE,SEX,OCCODE\n70,F,1\n"}, "lacks the columns RDELAY, RSBP"),
        ("strokedr", {"ct_ich/labels.csv": "file,patient,ich\na.jpg,1,maybe\n"}, "row 1: ich is not a number"),
        ("nobody", {}, "no DApp named"),
    ],
    ids=["empty-folder", "empty-table", "other-columns", "few-columns", "no-truth", "unknown-dapp"],
)
def test_a_folder_that_cannot_be_measured_says_why(tmp_path: Path, name: str, files: dict[str, str], says: str) -> None:
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(text)
    done = evaluate(name, tmp_path, "--json", str(tmp_path / "out.json"))
    if "skipped" in says:
        result = json.loads((tmp_path / "out.json").read_text())
        assert result["models"] == {} and says.split()[1] in result["skipped"]
    assert done.exit_code == 1 and says in " ".join(f"{done.output} {done.exception}".split())
    assert evaluate(name, tmp_path / "nowhere").exit_code == 1


def test_a_dapp_without_an_evaluation_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Bare(DApp):
        version = "1"

        def load(self, device: str) -> None: ...

        def forward(self, **tensors: Any) -> dict[str, Any]:
            return tensors

        def example(self) -> dict[str, Any]:
            return {}

    monkeypatch.setattr(registry, "load", lambda name: Bare())
    done = evaluate("bare", tmp_path)
    assert done.exit_code == 1 and "bare has no evaluation" in done.stderr
