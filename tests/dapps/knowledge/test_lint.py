"""Tests dapps/knowledge/lint.py: dead candidates, unreachable tasks and overlaps, with line and cause."""

from __future__ import annotations

import pytest

from dapps.knowledge import lint, names
from dapps.knowledge.library import raw
from tests.dapps.knowledge.small import changed, line_of

WAIT_ON_SCAN = '{treat: "--", wait: "++"}'
FLAWS = [
    pytest.param(
        [('{wait: "++"}', '{treat: "-"}'), (WAIT_ON_SCAN, '{treat: "--"}')],
        "dead candidate: nothing speaks for wait",
        "name: wait",
        id="nothing for it",
    ),
    pytest.param(
        [('supports: {treat: "+"}', 'supports: {treat: "+", ask: "-"}\n        weight: 0.5')],
        "dead candidate: treat is not recommended in any case",
        "name: treat",
        id="never enough",
    ),
    pytest.param(
        [("if: score < 40", "if: score < 40 and score > 60"), (WAIT_ON_SCAN, '{treat: "--"}')],
        "score_low: this condition never holds",
        "score < 40 and",
        id="contradiction",
    ),
    pytest.param(
        [("if: score < 40", "if: score < 40 and score > 60"), (WAIT_ON_SCAN, '{treat: "--"}')],
        "dead candidate: wait is not recommended",
        "name: wait",
        id="dead by contradiction",
    ),
    pytest.param(
        [("if: score >= 40", "if: score >= 101")], "high: this condition never holds", "  high:", id="beyond range"
    ),
    pytest.param(
        [('supports: {treat: "+"}', 'supports: {treat: "++"}'), ("if: score < 40", "if: score <= 40")],
        "overlapping thresholds: treat and wait are both confirmed at score=40",
        "candidates:",
        id="overlap",
    ),
    pytest.param(
        [("    if: score >= 40", "    true_if: score >= 40\n    false_if: score < 60")],
        "overlapping thresholds: high is true and false at score=",
        "  high:",
        id="overlapping cut-offs",
    ),
    pytest.param(
        [("when: result(choose) == 'treat'", "when: result(choose) == 'treat' and score > 60 and score < 50")],
        "give is unreachable: its condition never holds",
        "action: give",
        id="unreachable",
    ),
    pytest.param(
        [
            ("when: result(choose) == 'treat'", "when: score > 60 and score < 50"),
            (
                "    after: [choose]\n    when: result(choose) == 'ask'",
                "    after: [give]\n    when: result(choose) == 'ask'",
            ),
        ],
        "call is unreachable: what it comes after is unreachable",
        "action: call",
        id="after the unreachable",
    ),
]


@pytest.mark.parametrize(("swaps", "cause", "where"), FLAWS)
def test_a_flaw_is_named_with_its_line(swaps: list[tuple[str, str]], cause: str, where: str) -> None:
    text = changed(*swaps)
    flaws = [flaw for flaw in lint(text) if cause in flaw.cause]
    assert flaws, lint(text)
    assert flaws[0].line == line_of(where, text) and flaws[0].severity == "error"


def test_what_a_file_cannot_be_loaded_with_is_linted_too() -> None:
    flaws = lint(changed(("unit: mg/dL, ", ""), ("if: allergy", "if: alergy")))
    assert [flaw.cause.split(":")[0] for flaw in flaws] == ["score", "there is no datum or derived fact named alergy"]


def test_what_is_never_used_is_a_warning() -> None:
    extra = ("  scan: {", "  spare: {text: t, type: boolean, example: false, origin: [record]}\n  scan: {")
    (flaw,) = lint(changed(extra))
    assert flaw.severity == "warning" and "spare is asked for and never used" in flaw.cause


def test_a_sound_file_has_no_flaw() -> None:
    assert lint(changed()) == []


@pytest.mark.parametrize(
    "name", ["stroke-ivt-2026", "stroke-ivt-2018", "cchd-aap-2025", "cchd-aap-2011", "cchd-joint-2025"]
)
def test_the_built_in_guidelines_are_sound(name: str) -> None:
    assert name in names()
    assert lint(raw(name)) == []
