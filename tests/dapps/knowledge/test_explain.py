"""Tests dapps/knowledge/explain.py, changes.py, wording.py, render.py and terminal.py on one tree."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from rich.console import Console

from dapps.knowledge import explain, find, from_probability, what_if
from dapps.knowledge.record import read
from dapps.knowledge.render import markdown, patient
from dapps.knowledge.terminal import view
from tests.dapps.knowledge.small import small

GOOD = {"score": 50, "scan": False, "allergy": False}


def tree(**record: Any) -> dict[str, Any]:
    return explain(small(), read(record, small()))


def argument(explained: dict[str, Any], option: str, name: str) -> dict[str, Any]:
    (shown,) = [row for row in explained["options"] if row["name"] == option]
    (reason,) = [reason for reason in shown["arguments"] if reason["id"] == name]
    return dict(reason)


def test_every_argument_has_its_truth_the_value_it_used_and_its_source() -> None:
    explained = tree(**GOOD)
    reason = argument(explained, "treat", "score_high")
    assert reason["truth"] == "true" and reason["support"] == "+" and reason["derived"] == {"high": "true"}
    assert reason["values"] == [{"field": "score", "value": 50, "unit": "mg/dL", "source": "record", "code": None}]
    assert reason["cite"]["from"] == "paper" and reason["cite"]["place"] == "page 1"
    assert argument(explained, "wait", "score_low")["cite"]["confidence"] == "secondary"
    assert [row["name"] for row in explained["options"]] == ["treat", "wait", "ask"]
    assert explained["recommended"] == "treat" and explained["unknown"] == explained["needed"] == []


def test_a_model_is_named_as_the_source_of_its_value() -> None:
    record = read({"score": 50, "allergy": False}, small())
    bad = explain(small(), {**record, "scan": from_probability(0.9, 0.1, 0.5, "model 1.0")})
    assert argument(bad, "treat", "scan_bad")["values"][0]["source"] == (
        "model: model 1.0, probability 0.900, cut-offs 0.100 and 0.500"
    )
    grey = explain(small(), {**record, "scan": from_probability(0.3, 0.1, 0.5, "model 1.0")})
    assert grey["recommended"] == "ask" and grey["unknown"] == grey["needed"] == ["scan"]
    assert "0.300" in argument(grey, "ask", "scan_unknown")["values"][0]["source"]
    poor = explain(small(), {**record, "scan": from_probability(0.01, 0.1, 0.5, "model 1.0", usable=False)})
    assert poor["recommended"] == "ask"
    assert "quality too low" in argument(poor, "ask", "scan_unknown")["values"][0]["source"]


def test_what_is_unknown_is_named_and_what_stands_in_the_way_too() -> None:
    explained = tree(score=50)
    assert explained["unknown"] == ["allergy", "scan"] and explained["needed"] == ["scan"]
    assert "there is no scan" in explained["reason"]
    nobody = small(
        (", defers: true", ""),
        ('{treat: "-", ask: "+"}', '{treat: "-"}'),
        ('        supports: {ask: "+"}', '        supports: {treat: "-"}'),
    )
    assert explain(nobody, read({"score": 50}, nobody))["reason"].endswith("while this is unknown: scan.")


def test_provisional_answers_say_so() -> None:
    explained = tree(score=50, scan=False)
    assert explained["recommended"] == "treat" and explained["provisional"] and explained["open"] == ["allergic"]
    assert "Provisional" in explained["reason"] and any("Provisional" in notice for notice in explained["notices"])


def test_what_would_change_it() -> None:
    changes = {(change["field"], change["value"]): change["recommended"] for change in tree(**GOOD)["would_change"]}
    assert changes == {("score", 39): "wait", ("allergy", True): "ask", ("scan", True): "wait"}
    tried = what_if(small(), read(GOOD, small()), read({"score": 39}, small()))
    assert tried == {"if": {"score": 39}, "recommended": "wait", "provisional": False, "changes": True}
    unknown = what_if(small(), read(GOOD, small()), read({"scan": None}, small(), nulls=True))
    assert unknown["recommended"] == "ask" and unknown["if"] == {"scan": None}


def test_a_conflict_is_said() -> None:
    both = small(('supports: {treat: "+"}', 'supports: {treat: "++"}'))
    explained = explain(both, read(GOOD | {"allergy": True}, both))
    assert explained["options"][0]["conflict"] and explained["options"][0]["support"] == "--"
    assert any(notice.startswith("Conflict: treat") for notice in explained["notices"])


def test_review_uncertainty_and_supersession_are_said() -> None:
    explained = tree(score=30, scan=False)
    assert "Not reviewed by a clinician." in explained["notices"]
    assert explained["uncertain"] == [{"argument": "score_low", "confidence": "secondary", "why": None}]
    assert any("Uncertain facts" in notice and "score_low" in notice for notice in explained["notices"])
    signed = small(("reviewed_by: null", "reviewed_by: Dr. A. Reviewer"))
    assert "Reviewed by Dr. A. Reviewer." in explain(signed, {})["notices"]
    old = explain(find("cchd-aap-2011"), {})
    assert any("Superseded by cchd-aap-2025" in notice for notice in old["notices"])


def test_the_tree_is_plain_json() -> None:
    for name in ("stroke-ivt-2026", "stroke-ivt-2018", "cchd-aap-2025", "cchd-aap-2011", "cchd-joint-2025"):
        explained = explain(find(name), {})
        assert json.loads(json.dumps(explained, allow_nan=False)) == explained


def test_the_markdown_table_has_pros_and_cons_with_values_and_sources() -> None:
    text = markdown(tree(**GOOD | {"allergy": True}))
    (row,) = [line for line in text.splitlines() if line.startswith("| treat |")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1] == "`--`" and cells[2].startswith("`+` the score is high (score=50 mg/dL [record]; paper, page 1)")
    assert cells[3].startswith("`--` an allergy (allergy=true [record]; paper)") and cells[4] == "-"
    assert "Not reviewed by a clinician" in text and small().digest in text and "to treat if allergy were false" in text


def test_a_bar_in_a_text_does_not_break_the_table() -> None:
    barred = small(("text: the score is high", "text: the score | is high"))
    text = markdown(explain(barred, read(GOOD, barred)))
    (row,) = [line for line in text.splitlines() if line.startswith("| treat |")]
    assert len(re.findall(r"(?<!\\)\|", row)) == 6


def test_the_dose_is_for_professionals_alone() -> None:
    assert "5 mg/kg" in markdown(tree(**GOOD)) and "Stop if score < 10." in markdown(tree(**GOOD))
    page = patient(tree(**GOOD))
    assert (
        "mg" not in page and "It is given." in page and "A treatment may help." in page and "A value is high." in page
    )


STROKE = [
    {},
    {"haemorrhage": True},
    {"hours_since_last_known_well": 2, "disabling_deficit": True, "haemorrhage": False, "glucose_mg_dl": 100,
     "coagulopathy_suspected": False},
]  # fmt: skip


@pytest.mark.parametrize("record", STROKE)
def test_patients_of_the_built_in_guidelines_read_no_dose_and_no_drug(record: dict[str, Any]) -> None:
    guideline = find("stroke-ivt-2026")
    page = patient(explain(guideline, read(record, guideline)))
    assert not re.search(r"\d|mg|plase|bolus", page), page
    assert "no clinician has reviewed" in page and "not medical advice" in page


@pytest.mark.parametrize("record", [GOOD, {}, {"score": 50}, GOOD | {"allergy": True}])
def test_the_terminal_shows_the_same_recommendation_and_reasons(record: dict[str, Any]) -> None:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115 - rich needs somewhere to print
    explained = tree(**record)
    console.print(view(explained))
    shown = console.export_text()
    console.file.close()
    assert explained["recommended"] in shown and "Not reviewed by a clinician." in shown
    for option in explained["options"]:
        held = [reason["text"] for reason in option["arguments"] if reason["truth"] == "true"]
        assert option["name"] in shown and all(text in shown for text in held)


def test_a_text_that_looks_like_markup_is_shown_as_it_is() -> None:
    marked = small(("text: the score is high", "text: the score [bold]is high[/bold]"))
    console = Console(width=200)
    with console.capture() as shown:
        console.print(view(explain(marked, read(GOOD, marked))))
    assert "[bold]is high[/bold]" in shown.get()
