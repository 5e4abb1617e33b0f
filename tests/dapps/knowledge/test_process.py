"""Tests dapps/knowledge/process.py: PROforma's task states, and commitments that need a person's name."""

from __future__ import annotations

from typing import Any

import pytest

from dapps.knowledge import CommitRefused, Guideline, Observation, Process, RecordRefused, State
from dapps.knowledge.record import read
from tests.dapps.knowledge.small import small

DORMANT, IN_PROGRESS, COMPLETED, DISCARDED = State
GOOD = {"score": 50, "scan": False, "allergy": False}


def started(guideline: Guideline, **record: Any) -> Process:
    process = Process(guideline, clock=lambda: 1000.0)
    process.put(read(record, guideline))
    return process


def test_an_enquiry_waits_for_what_it_requires_and_a_decision_for_the_enquiry() -> None:
    process = Process(small(), clock=lambda: 1000.0)
    assert process.states == {"intake": IN_PROGRESS, "choose": DORMANT, "give": DORMANT, "call": DORMANT}
    process.put(read({"score": 50}, small()))
    assert process.waits_for("intake") == ("scan",) and process.states["choose"] is DORMANT
    process.put(read({"scan": False}, small()))
    assert process.states == {"intake": COMPLETED, "choose": IN_PROGRESS, "give": DORMANT, "call": DORMANT}


def test_a_person_commits_and_it_is_recorded() -> None:
    process = started(small(), **GOOD)
    commitment = process.commit("choose", "treat", by="  Dr. Ada   Lovelace ")
    assert process.commitments == (commitment,)
    assert (commitment.by, commitment.at_s, commitment.candidate, commitment.followed) == (
        "Dr. Ada Lovelace",
        1000.0,
        "treat",
        True,
    )
    assert (commitment.guideline, commitment.version, commitment.digest) == ("small", "1.0.0", small().digest)
    assert process.states == {"intake": COMPLETED, "choose": COMPLETED, "give": IN_PROGRESS, "call": DISCARDED}
    process.confirm("give", by="Nurse Mary")
    assert process.states["give"] is COMPLETED and process.confirmed == {"give": "Nurse Mary"}


@pytest.mark.parametrize("by", ["", "  ", "123", "x" * 201])
def test_nothing_is_committed_without_a_name(by: str) -> None:
    process = started(small(), **GOOD)
    with pytest.raises(CommitRefused, match="a person's name is needed"):
        process.commit("choose", "treat", by=by)
    assert process.commitments == () and process.states["choose"] is IN_PROGRESS


def test_the_unknown_blocks_the_commitment() -> None:
    process = started(small(), score=50)
    with pytest.raises(CommitRefused, match="choose is dormant: scan unknown"):
        process.commit("choose", "treat", by="Dr. A", reason="in a hurry")


def test_departing_from_the_recommendation_takes_a_reason() -> None:
    process = started(small(), **GOOD)
    with pytest.raises(CommitRefused, match="treat is recommended: say why it is to be wait"):
        process.commit("choose", "wait", by="Dr. A")
    commitment = process.commit("choose", "wait", by="Dr. A", reason="the family asks for it")
    assert (
        not commitment.followed and commitment.recommended == "treat" and commitment.reason == "the family asks for it"
    )


def test_what_is_open_must_be_looked_at() -> None:
    process = started(small(), score=50, scan=False)
    with pytest.raises(CommitRefused, match="not asked yet: allergic"):
        process.commit("choose", "treat", by="Dr. A")
    assert process.commit("choose", "treat", by="Dr. A", acknowledged=["allergic"]).acknowledged == ("allergic",)


@pytest.mark.parametrize(
    ("decision", "candidate", "message"),
    [("choose", "other", "no candidate"), ("other", "treat", "no decision"), ("intake", "treat", "no decision")],
)
def test_only_what_is_there_can_be_committed_to(decision: str, candidate: str, message: str) -> None:
    with pytest.raises(CommitRefused, match=message):
        started(small(), **GOOD).commit(decision, candidate, by="Dr. A", reason="because")


def test_a_decision_is_committed_once() -> None:
    process = started(small(), **GOOD)
    process.commit("choose", "treat", by="Dr. A")
    with pytest.raises(CommitRefused, match="choose is completed"):
        process.commit("choose", "wait", by="Dr. B", reason="changed")


def test_an_action_is_aborted_when_its_condition_comes_true() -> None:
    process = started(small(), **GOOD)
    process.commit("choose", "treat", by="Dr. A")
    process.put(read({"score": 5}, small()))
    assert process.states["give"] is DISCARDED
    with pytest.raises(CommitRefused, match="no action that is in progress"):
        process.confirm("give", by="Nurse Mary")


def test_bad_data_changes_nothing() -> None:
    process = started(small(), **GOOD)
    with pytest.raises(RecordRefused):
        process.put({"allergy": Observation(True), "score": Observation(True)})
    assert process.recommend("choose").recommended is not None and process.states["choose"] is IN_PROGRESS
    recommended = process.recommend("choose").recommended
    assert recommended is not None and recommended.name == "treat"


PLAN = """\
  - plan: care
    after: [choose]
    when: result(choose) == 'treat'
    abort_if: score < 20
    tasks:
      - {action: first, text: t, cite: {from: paper}}
      - {action: second, after: [first], when: allergy, text: t, cite: {from: paper}}
      - {action: third, after: [second], text: t, cite: {from: paper}}
      - {action: last, after: [first, third], text: t, cite: {from: paper}}
  - action: call
"""


def planned() -> Guideline:
    return small(("  - action: call\n", PLAN))


def test_a_plan_starts_its_tasks_and_ends_with_them() -> None:
    process = started(planned(), **GOOD)
    assert process.states["care"] is DORMANT and process.states["first"] is DORMANT
    process.commit("choose", "treat", by="Dr. A")
    assert process.states["care"] is IN_PROGRESS and process.states["first"] is IN_PROGRESS
    process.confirm("first", by="Dr. A")
    # A false condition discards; what comes after nothing but the discarded is discarded too; `last` has `first`.
    assert [process.states[name] for name in ("second", "third", "last")] == [DISCARDED, DISCARDED, IN_PROGRESS]
    process.confirm("last", by="Dr. A")
    assert process.states["care"] is COMPLETED


def test_an_unknown_condition_leaves_a_task_dormant() -> None:
    process = started(planned(), score=50, scan=False)
    process.commit("choose", "treat", by="Dr. A", acknowledged=["allergic"])
    process.confirm("first", by="Dr. A")
    assert process.states["second"] is DORMANT and process.states["care"] is IN_PROGRESS


def test_an_aborted_or_discarded_plan_takes_its_tasks_along() -> None:
    process = started(planned(), **GOOD)
    process.commit("choose", "treat", by="Dr. A")
    process.put(read({"score": 15}, planned()))
    assert {process.states[name] for name in ("care", "first", "second", "third", "last")} == {DISCARDED}
    other = started(planned(), **GOOD)
    other.commit("choose", "wait", by="Dr. A", reason="better so")
    assert {other.states[name] for name in ("care", "first", "last", "give", "call")} == {DISCARDED}
