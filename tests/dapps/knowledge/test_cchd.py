"""Tests newborn oximetry, AAP 2011 and 2025: every boundary, and missing values."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dapps.knowledge import explain, find, weigh
from dapps.knowledge.record import read

OLD, NEW = "cchd-aap-2011", "cchd-aap-2025"


def recommended(name: str, pre: Any, post: Any, screen: Any = 1, age_h: Any = 25) -> str | None:
    guideline = find(name)
    record = {"pre_ductal_spo2_percent": pre, "post_ductal_spo2_percent": post, "screen_number": screen, "age_h": age_h}
    recommended = weigh(guideline, read(record, guideline)).recommended
    return recommended.name if recommended else None


BOUNDARIES = [
    (95, 95, "pass", "pass"),
    (95, 92, "pass", "repeat"),
    (92, 95, "pass", "repeat"),
    (99, 95, "repeat", "repeat"),
    (98, 95, "pass", "pass"),
    (94, 94, "repeat", "repeat"),
    (94, 95, "pass", "repeat"),
    (89, 99, "refer", "refer"),
    (99, 89, "refer", "refer"),
    (90, 90, "repeat", "repeat"),
    (89, 89, "refer", "refer"),
    (97, 94, "pass", "repeat"),
    (100, 96, "repeat", "repeat"),
    (98.3, 95.3, "pass", "pass"),  # exactly 3 apart, which floats would miss
    (98.4, 95.3, "repeat", "repeat"),
    (94.9, 94.9, "repeat", "repeat"),
    (89.9, 95, "refer", "refer"),
]


@pytest.mark.parametrize(("pre", "post", "old", "new"), BOUNDARIES)
def test_the_first_measurement(pre: float, post: float, old: str, new: str) -> None:
    assert (recommended(OLD, pre, post), recommended(NEW, pre, post)) == (old, new)


@pytest.mark.parametrize(
    ("screen", "old", "new"), [(1, "repeat", "repeat"), (2, "repeat", "refer"), (3, "refer", "refer")]
)
def test_how_often_it_is_repeated(screen: int, old: str, new: str) -> None:
    assert (recommended(OLD, 94, 94, screen), recommended(NEW, 94, 94, screen)) == (old, new)
    assert recommended(OLD, 97, 97, screen) == recommended(NEW, 97, 97, screen) == "pass"
    assert recommended(OLD, 85, 97, screen) == recommended(NEW, 85, 97, screen) == "refer"


@pytest.mark.parametrize(
    ("name", "pre", "post", "screen", "expected"),
    [
        pytest.param(NEW, 97, None, 1, None, id="half a measurement passes nobody"),
        pytest.param(OLD, 97, None, 1, None, id="nor in 2011"),
        pytest.param(NEW, 89, None, 1, "refer", id="one low limb is enough"),
        pytest.param(NEW, 94, None, 1, None, id="repeat or refer"),
        pytest.param(NEW, 94, None, 2, "refer", id="refer either way"),
        pytest.param(NEW, 94, 94, None, None, id="which measurement it was matters"),
        pytest.param(NEW, 97, 97, None, "pass", id="or does not"),
        pytest.param(NEW, 89, 97, None, "refer", id="nor here"),
        pytest.param(NEW, None, None, None, None, id="nothing known"),
    ],
)
def test_unknown_is_never_no(name: str, pre: Any, post: Any, screen: Any, expected: str | None) -> None:
    assert recommended(name, pre, post, screen) == expected
    assert recommended(name, pre, post, screen, age_h=None) == expected


def test_an_early_measurement_is_an_argument_and_no_verdict() -> None:
    assert recommended(NEW, 97, 97, age_h=20) == "pass"
    explanation = explain(find(NEW), read({"age_h": 20}, find(NEW)))
    assert [argument["truth"] for argument in explanation["options"][0]["arguments"] if argument["id"] == "early"] == [
        "true"
    ]
    assert explanation["unknown"] == ["pre_ductal_spo2_percent", "post_ductal_spo2_percent", "screen_number"]


PERCENT = st.one_of(st.none(), st.integers(85, 100), st.decimals(85, 100, places=1))
SCREEN = st.one_of(st.none(), st.integers(1, 4))


@given(st.sampled_from([OLD, NEW]), PERCENT, PERCENT, SCREEN, st.sets(st.integers(0, 2)))
def test_knowing_less_never_decides_otherwise(name: str, pre: Any, post: Any, screen: Any, lost: set[int]) -> None:
    full = [pre, post, screen]
    less = [None if index in lost else value for index, value in enumerate(full)]
    if recommended(name, *less) is not None:
        assert recommended(name, *full) == recommended(name, *less)


@given(st.sampled_from([OLD, NEW]), st.integers(20, 100), st.integers(20, 100), st.integers(1, 10))
def test_a_whole_measurement_always_gets_an_answer(name: str, pre: int, post: int, screen: int) -> None:
    expected = "pass"
    passed = max(pre, post) >= 95 if name == OLD else min(pre, post) >= 95
    if min(pre, post) < 90:
        expected = "refer"
    elif not passed or abs(pre - post) > 3:
        expected = "refer" if screen >= (3 if name == OLD else 2) else "repeat"
    assert recommended(name, pre, post, screen) == expected


def test_the_uncertain_difference_of_2025_is_said() -> None:
    explanation = explain(find(NEW), read({"pre_ductal_spo2_percent": 97, "post_ductal_spo2_percent": 97}, find(NEW)))
    assert "criteria_met" in [entry["argument"] for entry in explanation["uncertain"]]
    assert any("criteria_met" in notice for notice in explanation["notices"])
