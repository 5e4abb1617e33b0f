"""Holds a wallet to its limits in any order of calls, and gives back what was not charged."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channels.payer import Budget, BudgetExceeded
from channels.payer.budget import DAY_S, Spending


def test_a_day_and_a_dapp_have_limits_of_their_own() -> None:
    now = [0.0]
    spending, budget = Spending(lambda: now[0]), Budget(per_day=100, per_dapp={"chdr": 30})
    spending.reserve(budget, "a", "chdr", 30)
    with pytest.raises(BudgetExceeded) as refused:
        spending.reserve(budget, "b", "chdr", 1)
    assert refused.value.code == "budget_per_dapp" and "30 is spent on chdr today" in refused.value.message
    spending.reserve(budget, "c", "strokedr", 70)
    with pytest.raises(BudgetExceeded) as refused:
        spending.reserve(budget, "d", "strokedr", 1)
    assert refused.value.code == "budget_per_day"
    spending.settle("c", 20)
    spending.reserve(budget, "e", "strokedr", 50)
    now[0] = DAY_S
    spending.reserve(budget, "f", "chdr", 30)
    spending.settle("e", 0)
    with pytest.raises(BudgetExceeded):
        spending.reserve(budget, "g", "chdr", 1)


def test_a_repeated_call_is_counted_once() -> None:
    spending, budget = Spending(), Budget(per_day=10)
    for _ in range(5):
        spending.reserve(budget, "a", "", 10)
    with pytest.raises(BudgetExceeded):
        spending.reserve(budget, "b", "", 1)


steps = st.tuples(st.sampled_from("abcdef"), st.sampled_from(["x", "y", ""]), st.integers(0, 40), st.booleans())


@given(st.lists(steps, max_size=40), st.integers(0, 100), st.integers(0, 60))
def test_what_is_signed_for_never_passes_a_limit(calls: list[tuple[str, str, int, bool]], day: int, dapp: int) -> None:
    spending, budget = Spending(lambda: 0.0), Budget(per_day=day, per_dapp={"x": dapp})
    running: dict[str, tuple[str, int]] = {}
    spent: dict[str, int] = {"x": 0, "all": 0}
    for call, name, price, ends in calls:
        if ends and call in running:
            kind, held = running.pop(call)
            charged = min(price, held)
            spending.settle(call, charged)
            spent["all"] += charged
            spent["x"] += charged if kind == "x" else 0
        elif call not in running:
            try:
                spending.reserve(budget, call, name, price)
            except BudgetExceeded:
                continue
            running[call] = (name, price)
        assert spent["all"] + sum(held for _, held in running.values()) <= day
        assert spent["x"] + sum(held for kind, held in running.values() if kind == "x") <= dapp


@pytest.mark.parametrize(("limit", "price", "passes"), [(None, 10**9, True), (400, 400, True), (399, 400, False)])
def test_a_call_and_a_channel_have_limits(limit: int | None, price: int, passes: bool) -> None:
    for check in (Budget(per_call=limit).check_call, lambda amount: Budget(per_channel=limit).check_channel(0, amount)):
        if passes:
            check(price)
        else:
            with pytest.raises(BudgetExceeded):
                check(price)
