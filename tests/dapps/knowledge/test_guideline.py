"""Tests dapps/knowledge/guideline.py and check.py: a flawed file is refused with line and cause; digests."""

from __future__ import annotations

import pytest

from dapps.knowledge import GuidelineError, lint, load
from tests.dapps.knowledge.small import changed, line_of, small

FLAWS = [
    pytest.param(("unit: mg/dL, ", ""), "unit is missing", "score: {", id="no unit"),
    pytest.param(("mg/dL", "mg per dL"), "not a UCUM unit", "score: {", id="no such unit"),
    pytest.param((", range: [0, 100]", ""), "needs `range", "score: {", id="no range"),
    pytest.param(("[0, 100]", "[100, 0]"), "needs `range", "score: {", id="range upside down"),
    pytest.param(("example: 50", "example: 500"), "`example`", "score: {", id="impossible example"),
    pytest.param((", origin: [record, user]", ""), "the source is missing", "allergy: {", id="datum without source"),
    pytest.param(
        ("cite: {from: paper, place: page 1}", ""), "the source is missing", "score_high", id="argument without source"
    ),
    pytest.param(
        ("{from: paper, place: page 1}", "{from: book}"), "book is not among", "score_high", id="no such source"
    ),
    pytest.param(
        ("{from: paper, confidence: secondary}", "{from: paper, confidence: inferred}"),
        "says `why:`",
        "score_low",
        id="inferred",
    ),
    pytest.param(
        ("if: score >= 40", "if: score >= 40 and high"), "a cycle of derived facts: high", "  high:", id="cycle of one"
    ),
    pytest.param(("after: [intake]", "after: [intake, give]"), "a cycle of tasks", "", id="cycle of tasks"),
    pytest.param(
        ("after: [intake]", "after: [nothing]"), "choose is unreachable", "decision: choose", id="after nothing"
    ),
    pytest.param(("if: allergy", "if: alergy"), "no datum or derived fact named alergy", "if: alergy", id="misspelt"),
    pytest.param(("if: allergy", "if: 9 ** 9 ** 9 > score"), "BinOp is not in the language", "9 **", id="power bomb"),
    pytest.param(("if: allergy", f"if: {'not ' * 100}allergy"), "nested deeper", "not not", id="nesting bomb"),
    pytest.param(("if: allergy", f"if: {'allergy or ' * 60}allergy"), "longer than", "allergy or", id="long bomb"),
    pytest.param(("'treat'", "'treet'"), "result(choose) is never 'treet'", "'treet'", id="no such result"),
    pytest.param(
        ("result(choose) == 'treat'", "result(other) == 'treat'"),
        "no decision named other",
        "result(other)",
        id="no such decision",
    ),
    pytest.param(
        ("requires: [score, scan]", "requires: [score, skan]"),
        "no datum named skan",
        "enquiry: intake",
        id="no such datum",
    ),
    pytest.param(('{wait: "++"}', '{weight: "++"}'), "no candidate named weight", "score_low", id="no such candidate"),
    pytest.param(
        ("id: allergic", "id: score_high"), "two arguments are named score_high", "if: allergy", id="argument twice"
    ),
    pytest.param(("name: wait", "name: treat"), "two candidates are named treat", "candidates", id="candidate twice"),
    pytest.param(("action: call", "action: give"), "two tasks are named give", "", id="task twice"),
    pytest.param(("action: call", "activity: call"), "a task begins with one of", "activity", id="no such kind"),
    pytest.param(('{treat: "+"}', '{treat: "+++"}'), "treat: input should be", '"+++"', id="no such support"),
    pytest.param(("reviewed_by: null\n", ""), "reviewed_by: field required", "", id="review not said"),
    pytest.param(("version: 1.0.0", "version: first"), "version: string should match", "version", id="version"),
    pytest.param(("title: A small", "titel: A small"), "titel: extra inputs", "titel", id="unknown key"),
    pytest.param(
        ("allergy, type: boolean,", "allergy, type: boolean, unit: mg,"),
        "only numbers",
        "allergy: {",
        id="truth with unit",
    ),
    pytest.param(("if: unknown(scan)", "if: not unknown(scan)"), "without `not`", "not unknown", id="negated unknown"),
    pytest.param(
        ("if: score >= 40", "if: unknown(score)"),
        "in the condition of an argument alone",
        "unknown(score)",
        id="derived unknown",
    ),
    pytest.param(
        ('{treat: "-", ask: "+"}', '{treat: "+", ask: "+"}'),
        "may not speak for treat",
        "scan_unknown",
        id="unknown as a reason",
    ),
    pytest.param(
        ("    if: score >= 40", "    true_if: score >= 40"), "either `if`, or `true_if`", "  high:", id="half a pair"
    ),
]


@pytest.mark.parametrize(("swap", "cause", "where"), FLAWS)
def test_a_flawed_file_is_refused_with_line_and_cause(swap: tuple[str, str], cause: str, where: str) -> None:
    raw = changed(swap)
    with pytest.raises(GuidelineError) as caught:
        load(raw)
    flaws = [flaw for flaw in caught.value.flaws if cause in flaw.cause]
    assert flaws, caught.value.flaws
    if where:
        assert abs(flaws[0].line - line_of(where, raw)) <= 1, (flaws, line_of(where, raw))


def test_a_wrong_check_digit_is_seen() -> None:
    right = ("example: 50,", "example: 50, code: {system: loinc, code: 2339-0},")
    small(right)
    with pytest.raises(GuidelineError, match="2338-0 is not a loinc code"):
        small((right[0], right[1].replace("2339-0", "2338-0")))


@pytest.mark.parametrize(
    "swap",
    [
        pytest.param(("if: score >= 40", "if: (score  >=  40.0)"), id="notation"),
        pytest.param(("id: small", "# a comment\nid: small"), id="comment"),
        pytest.param(("title: A small guideline", "title: >-\n  A small\n  guideline"), id="folded"),
        pytest.param(("example: 50", "example: 50.0"), id="trailing zero"),
        pytest.param(("{text: an allergy, type: boolean,", "{type: boolean, text: an allergy,"), id="order of keys"),
        pytest.param(
            ("        when_unknown: open\n", "        weight: 1\n        when_unknown: open\n"),
            id="a default written out",
        ),
    ],
)
def test_formatting_does_not_change_the_digest(swap: tuple[str, str]) -> None:
    assert small(swap).digest == small().digest


@pytest.mark.parametrize(
    "swap",
    [
        pytest.param(("if: score >= 40", "if: score >= 41"), id="threshold"),
        pytest.param(("if: score >= 40", "if: score > 40"), id="operator"),
        pytest.param(("range: [0, 100]", "range: [0, 101]"), id="range"),
        pytest.param(('supports: {treat: "+"}', 'supports: {treat: "++"}'), id="support"),
        pytest.param(("when_unknown: open", "when_unknown: blocks"), id="unknown"),
        pytest.param(("reviewed_by: null", "reviewed_by: Dr. A. Reviewer"), id="review"),
        pytest.param(("5 mg/kg", "6 mg/kg"), id="dose"),
        pytest.param(("version: 1.0.0", "version: 1.0.1"), id="version"),
        pytest.param(("place: page 1", "place: page 2"), id="place"),
    ],
)
def test_whatever_it_means_is_in_the_digest(swap: tuple[str, str]) -> None:
    assert small(swap).digest != small().digest


def test_a_ladder_of_facts_is_climbed_once() -> None:
    """Each fact reads both of the step before: 2^40 ways to the ground, and one answer."""
    rungs = ["  a0: {text: t, if: score >= 40}", "  b0: {text: t, if: score >= 40}"]
    for step in range(1, 40):
        rungs += [f"  {side}{step}: {{text: t, if: a{step - 1} and b{step - 1}}}" for side in "ab"]
    ladder = changed(
        ("tasks:\n  - enquiry", "\n".join([*rungs, "tasks:\n  - enquiry"])), ("if: high", "if: high and a39 and b39")
    )
    guideline = load(ladder)
    assert guideline.leaves(frozenset({"a39"})) == ("score",)
    assert lint(ladder) == []


def test_a_file_too_large_to_try_is_refused() -> None:
    many = "\n".join(
        f"  d{number}: {{text: t, type: boolean, example: false, origin: [record]}}" for number in range(160)
    )
    with pytest.raises(GuidelineError, match="data: dictionary should have at most 150"):
        small(("  scan: {", f"{many}\n  scan: {{"))
    facts = "\n".join(f"  f{number}: {{text: t, if: score >= {number}}}" for number in range(1, 60))
    with pytest.raises(GuidelineError, match="score is compared with more than 40 numbers"):
        small(("derived:\n", f"derived:\n{facts}\n"))


def test_data_behind_derived_facts_are_found() -> None:
    guideline = small()
    assert guideline.leaves(frozenset({"high", "scan"})) == ("score", "scan")
    assert guideline.decision.name == "choose" and set(guideline.tasks) == {"intake", "choose", "give", "call"}
