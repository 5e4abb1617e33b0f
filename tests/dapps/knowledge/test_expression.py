"""Tests dapps/knowledge/expression.py and grammar.py: one exact meaning; everything else is refused."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dapps.knowledge.expression import parse
from dapps.knowledge.grammar import ExpressionError

TYPES = {"x": "number", "y": "number", "a": "boolean", "b": "boolean", "kind": "text"}
VALUES = {"x": Decimal("98.3"), "y": Decimal("95.3"), "a": True, "b": False, "kind": "left"}


@pytest.mark.parametrize(
    ("text", "truth"),
    [
        ("x - y <= 3", True),  # as floats the difference is above 3
        ("abs(y - x) > 3", False),
        ("90 <= y < 95.3", False),
        ("-x < -y", True),
        ("min(x, y) == 95.3 and max(x, y, 99) == 99", True),
        ("x * 2 + 1 >= 197.6", True),
        ("a and not b", True),
        ("b or kind == 'left'", True),
        ("kind != 'left'", False),
        ("unknown(x)", False),
    ],
)
def test_conditions_are_exact(text: str, truth: bool) -> None:
    assert parse(text, TYPES).truth(VALUES) is truth


@pytest.mark.parametrize(
    ("text", "truth"),
    [
        ("x < 90", None),
        ("x < 90 or a", True),
        ("x < 90 and b", False),
        ("not (x < 90)", None),
        ("abs(x - y) <= 3", None),
        ("unknown(x)", True),
        ("unknown(x) and unknown(y)", False),
        ("x == x", None),
    ],
)
def test_unknown_is_never_no(text: str, truth: bool | None) -> None:
    assert parse(text, TYPES).truth({**VALUES, "x": None}) is truth
    assert parse(text, TYPES).truth({name: value for name, value in VALUES.items() if name != "x"}) is truth


REFUSED = [
    pytest.param("__import__('os').system('id')", "functions are", id="import"),
    pytest.param("x.__class__ == y", "Attribute", id="attribute"),
    pytest.param("[1, 2][0] == x", "Subscript", id="subscript"),
    pytest.param("9 ** 9 ** 9 > x", "Pow|BinOp", id="power"),
    pytest.param("x / y > 1", "BinOp", id="division"),
    pytest.param("(lambda: a)()", "functions are", id="lambda"),
    pytest.param("a if b else a", "IfExp", id="if"),
    pytest.param("[a for _ in kind]", "ListComp", id="comprehension"),
    pytest.param("f'{x}' == kind", "JoinedStr", id="f-string"),
    pytest.param("(x := 5) > 3", "NamedExpr", id="walrus"),
    pytest.param("x", "a number or a text", id="no condition"),
    pytest.param("x and a", "join conditions", id="number as truth"),
    pytest.param("x < kind", "between numbers", id="mixed"),
    pytest.param("a == b", "between numbers", id="truths compared"),
    pytest.param("a == True", "a constant is", id="true"),
    pytest.param("kind < 'left'", "does not compare", id="texts ordered"),
    pytest.param("x in y", "does not compare", id="in"),
    pytest.param("z > 1", "no datum or derived fact named z", id="no such name"),
    pytest.param("unknown(x > 1)", "functions are", id="unknown of a condition"),
    pytest.param("abs(x, y) > 1", "one number", id="abs of two"),
    pytest.param("min(x) > 1", "two numbers", id="min of one"),
    pytest.param("max(*kind) > 1", "plain arguments", id="star"),
    pytest.param("x > 1e400", "beyond", id="infinite"),
    pytest.param("x > 1j", "constant", id="complex"),
    pytest.param("a and " * 90 + "a", "longer than", id="too long"),
    pytest.param(f"max({', '.join('x' * 130)}) > 1", "more than 120 parts", id="too many parts"),
    pytest.param("not " * 100 + "a", "deeper", id="too deep"),
    pytest.param("(" * 240 + "a" + ")" * 240, "cannot be read", id="brackets"),
    pytest.param("x >", "cannot be read", id="broken"),
    pytest.param("a\0", "cannot be read", id="null byte"),
    pytest.param("", "cannot be read", id="empty"),
]


@pytest.mark.parametrize(("text", "cause"), REFUSED)
def test_everything_else_is_refused_with_a_cause(text: str, cause: str) -> None:
    with pytest.raises(ExpressionError, match=cause):
        parse(text, TYPES)


@given(st.text(max_size=200) | st.text("xyab<>=()+-*. 019'norutadkwi,", max_size=200))
def test_no_text_does_anything_but_parse_or_be_refused(text: str) -> None:
    try:
        expression = parse(text, TYPES)
    except ExpressionError:
        return
    assert expression.truth(VALUES) in (True, False, None)
    assert expression.truth({}) in (True, False, None)
    assert parse(expression.canonical, TYPES).canonical == expression.canonical


@pytest.mark.parametrize("text", ["x<=4.5", "x  <=  4.50", "(x <= 4.5)", "((x)<=(4.500))"])
def test_notation_does_not_change_the_canonical_text(text: str) -> None:
    assert parse(text, TYPES).canonical == "x <= 4.5"


def test_what_a_condition_reads_is_known() -> None:
    expression = parse("x >= 95 and 3 > y and result(screen) == 'pass' and unknown(a)", TYPES)
    assert expression.names == {"x", "y", "a"} and expression.decisions == {"screen"} and expression.asks_unknown
    assert set(expression.thresholds) == {("x", ">=", Decimal(95)), ("y", "<", Decimal(3))}
    assert expression.texts == (("result(screen)", "pass"),)
    assert parse("not unknown(a)", TYPES).negates_unknown
    assert parse("x > -2", TYPES).thresholds == (("x", ">", Decimal(-2)),)


@pytest.mark.parametrize(
    "text",
    [
        "a or b or x > 1 or y > 2",
        "(a or b) and not (a and b)",
        "x - (y - 1) > 2 and (x - y) * 2 < -3",
        "abs(x - y) <= 3 and kind == 'it\\'s'",
        "90 <= x < 95.5 and min(x, -y) > 0",
        "not not a",
    ],
)
def test_the_canonical_text_means_the_same(text: str) -> None:
    expression = parse(text, TYPES)
    again = parse(expression.canonical, TYPES)
    assert again.canonical == expression.canonical
    for values in (VALUES, {}, {**VALUES, "x": Decimal(2), "a": False, "b": True}, {"a": True}, {"y": Decimal(-4)}):
        assert again.truth(values) is expression.truth(values)
    for part in ("((", "  "):
        assert part not in expression.canonical
