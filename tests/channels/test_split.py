"""Splits charges exactly, by largest remainder, with one order of ties."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channels.evm.owners import CARRIER_NUMBERS
from channels.receipts import CARRIERS, split_charge
from channels.receipts.split import WHOLE


@st.composite
def shares(draw):
    cuts = sorted(draw(st.lists(st.integers(0, WHOLE), max_size=7)))
    points = [high - low for low, high in zip([0, *cuts], [*cuts, WHOLE], strict=True)]
    return [(f"c{place}", f"o{place}", part) for place, part in enumerate(points)]


@given(st.integers(0, 2**60), shares())
def test_sums_exactly_and_stays_within_one_unit(amount, parts):
    result = split_charge(amount, parts)
    assert sum(share.amount for share in result) == amount
    for share, (carrier, owner, points) in zip(result, parts, strict=True):
        assert (share.carrier, share.owner) == (carrier, owner)
        assert abs(share.amount * WHOLE - amount * points) < WHOLE


@given(st.integers(0, 2**60), shares())
def test_a_larger_remainder_never_loses_and_ties_go_to_the_first_named(amount, parts):
    extras = [
        share.amount - amount * points // WHOLE
        for share, (_, _, points) in zip(split_charge(amount, parts), parts, strict=True)
    ]
    rests = [amount * points % WHOLE for _, _, points in parts]
    for first in range(len(parts)):
        for second in range(first + 1, len(parts)):
            if rests[first] >= rests[second]:
                assert extras[first] >= extras[second]
            else:
                assert extras[first] <= extras[second]


def test_nothing_splits_into_nothings():
    assert [share.amount for share in split_charge(0, [("a", "x", 5_000), ("b", "y", 5_000)])] == [0, 0]


@pytest.mark.parametrize(
    ("amount", "parts"),
    [
        pytest.param(-1, [("a", "x", WHOLE)], id="negative-amount"),
        pytest.param(1, [("a", "x", WHOLE - 1)], id="less-than-whole"),
        pytest.param(1, [("a", "x", WHOLE + 1), ("b", "y", -1)], id="negative-share"),
        pytest.param(1, [], id="nobody"),
    ],
)
def test_refuses_what_is_no_split(amount, parts):
    with pytest.raises(ValueError, match=r"split|shares"):
        split_charge(amount, parts)


def test_every_carrier_has_a_number_in_the_contract():
    assert sorted(CARRIER_NUMBERS) == sorted(CARRIERS) and len(set(CARRIERS)) == len(CARRIERS)
