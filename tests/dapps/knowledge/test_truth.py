"""Tests dapps/knowledge/truth.py: Kleene's tables, row by row."""

from __future__ import annotations

import itertools

import pytest

from dapps.knowledge.truth import Truth, both, either, negate, word

ORDER = {False: 0, None: 1, True: 2}


@pytest.mark.parametrize(("one", "other"), list(itertools.product([True, False, None], repeat=2)))
def test_and_is_the_least_and_or_the_greatest(one: Truth, other: Truth) -> None:
    assert both([one, other]) is min(one, other, key=ORDER.__getitem__)
    assert either([one, other]) is max(one, other, key=ORDER.__getitem__)
    assert negate(both([one, other])) is either([negate(one), negate(other)])


def test_what_is_unknown_stays_unknown() -> None:
    assert [negate(truth) for truth in (True, False, None)] == [False, True, None]
    assert [word(truth) for truth in (True, False, None)] == ["true", "false", "unknown"]
    assert both([]) is True and either([]) is False
