"""Tests dapps/knowledge/table.py and diff.py: every combination once; the disagreements of two versions."""

from __future__ import annotations

import pytest

from dapps.knowledge import RecordRefused, find
from dapps.knowledge.cells import cells
from dapps.knowledge.diff import differences
from dapps.knowledge.record import read
from dapps.knowledge.table import fields, rows
from tests.dapps.knowledge.small import small


def test_k_truths_have_three_to_the_k_rows() -> None:
    result = list(rows(small(), ("allergy", "scan")))
    assert len(result) == 9 and len({tuple(row.values.items()) for row in result}) == 9
    outcomes = {(row.values["allergy"], row.values["scan"]): row.recommended for row in result}
    assert outcomes[False, False] == "treat" and outcomes[True, False] == "ask" and outcomes[None, None] == "ask"
    assert outcomes[None, True] == outcomes[False, True] == "wait"


def test_a_number_is_tried_on_both_sides_of_every_threshold() -> None:
    assert [int(value) for value in cells(small(), "score")] == [9, 10, 39, 40, 50]
    inner = [int(value) for value in cells(find("cchd-aap-2025"), "pre_ductal_spo2_percent")]
    assert inner == [89, 90, 94, 95, 98]


def test_other_fields_are_unremarkable_or_as_given() -> None:
    assert {row.recommended for row in rows(small(), ("allergy",))} == {"treat", "ask"}
    record = read({"score": 10}, small())
    assert {row.recommended for row in rows(small(), ("allergy",), record)} == {"wait"}


def test_the_fields_that_are_required_are_varied() -> None:
    assert fields(small()) == ("score", "scan")
    assert fields(find("cchd-aap-2025")) == ("pre_ductal_spo2_percent", "post_ductal_spo2_percent", "screen_number")
    assert len(list(rows(find("cchd-aap-2025"), fields(find("cchd-aap-2025"))))) == 6 * 6 * 3


def test_a_table_that_nobody_could_read_is_refused() -> None:
    stroke = find("stroke-ivt-2026")
    with pytest.raises(RecordRefused, match="name fewer fields"):
        list(rows(stroke, tuple(stroke.document.data)))
    with pytest.raises(RecordRefused, match="skan: small has no such field"):
        list(rows(small(), ("skan",)))


def test_two_versions_differ_in_parts_and_in_patients() -> None:
    result = differences(find("cchd-aap-2011"), find("cchd-aap-2025"))
    parts = {(part["part"], part["name"], part["change"]) for part in result["parts"]}
    assert {("derived", "criteria_met", "changed"), ("derived", "last_screen", "changed")} <= parts
    assert ("task", "record_screen", "added") in parts and not result["same"]
    names = ("pre_ductal_spo2_percent", "post_ductal_spo2_percent", "screen_number")
    outcomes = {
        tuple(case["record"][name] for name in names): (case["old"], case["new"]) for case in result["examples"]
    }
    assert outcomes[94, 95, 1] == ("pass", "repeat") and outcomes[94, 94, 2] == ("repeat", "refer")


def test_a_file_does_not_differ_from_itself() -> None:
    result = differences(small(), small())
    assert result["same"] and not result["parts"] and not result["disagreements"]


def test_one_threshold_is_one_part_and_the_patients_between() -> None:
    result = differences(small(), small(("if: score >= 40", "if: score >= 60")))
    assert [(part["part"], part["name"]) for part in result["parts"]] == [("derived", "high")]
    assert not result["same"] and result["disagreements"] >= 1
    assert {case["old"] for case in result["examples"]} == {"treat"}
