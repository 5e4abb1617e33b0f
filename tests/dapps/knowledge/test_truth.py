"""Tests dapps/knowledge/truth.py: Kleene's tables, row by row."""

from __future__ import annotations

import itertools

import pytest

from dapps.knowledge.truth import Truth, both, either, negate, word

ORDER = {False: 0, None: 1, True: 2}


@pytest.mark.parametrize(("left", "right"), list(itertools.product([True, False, None], repeat=2)))
def test_and_is_the_least_and_or_the_greatest(left: Truth, right: Truth) -> None:
    assert both([left, right]) is min(left, right, key=ORDER.__getitem__)
    assert either([left, right]) is max(left, right, key=ORDER.__getitem__)
    assert negate(both([left, right])) is either([negate(left), negate(right)])


def test_what_is_unknown_stays_unknown() -> None:
    assert [negate(truth) for truth in (True, False, None)] == [False, True, None]
    assert [word(truth) for truth in (True, False, None)] == ["true", "false", "unknown"]
    assert both([]) is True and either([]) is False
