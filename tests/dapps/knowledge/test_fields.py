"""Tests dapps/knowledge/fields.py, the record language of guidelines and of the intake of DApps."""

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dapps.knowledge.fields import Choice, Field, Flag, Quantity, RecordRefused, parse, read

PRESSURE = Quantity("pressure", {"mm[Hg]": 1, "kPa": 7.5}, 50, 300)
SCORE = Quantity("score", {"{score}": 1}, Decimal(0), Decimal(42), whole=True, bare=True, origins=("record", "user"))
SEX, SEEN, KNOWN = Choice("sex", ("female", "male")), Choice("seen"), Flag("known", origins=("user",))


@pytest.mark.parametrize(
    ("field", "value", "result", "origin"),
    [
        pytest.param(PRESSURE, {"value": Decimal(160), "unit": "mm[Hg]"}, Decimal(160), "", id="first-unit"),
        pytest.param(PRESSURE, {"value": 20, "unit": "kPa"}, Decimal(150), "", id="converted"),
        pytest.param(PRESSURE, {"value": 160.1, "unit": "mm[Hg]"}, Decimal("160.1"), "", id="digits-are-kept"),
        pytest.param(PRESSURE, None, None, "", id="null"),
        pytest.param(PRESSURE, {"value": None, "unit": "kPa"}, None, "", id="null-with-a-unit"),
        pytest.param(SCORE, 5, Decimal(5), "record", id="bare"),
        pytest.param(SCORE, {"value": 5, "origin": "user"}, Decimal(5), "user", id="origin"),
        pytest.param(SEX, "male", "male", "", id="word"),
        pytest.param(SEEN, True, "yes", "", id="truth-for-yes"),
        pytest.param(KNOWN, {"value": False}, False, "user", id="flag"),
    ],
)
def test_a_value_is_read_in_its_unit(field: Field, value: Any, result: Any, origin: str) -> None:
    assert read(field, value) == (result, origin)


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        pytest.param(PRESSURE, 160, "missing_unit", id="bare"),
        pytest.param(PRESSURE, {"value": 160}, "wrong_type", id="no-unit"),
        pytest.param(PRESSURE, {"value": 160, "unit": "kPa", "origin": "user"}, "wrong_type", id="origin-undeclared"),
        pytest.param(PRESSURE, {"value": None, "unit": "bar"}, "wrong_unit", id="null-in-another-unit"),
        pytest.param(PRESSURE, {"value": 10**400, "unit": "kPa"}, "not_finite", id="beyond-floats"),
        pytest.param(PRESSURE, {"value": 41, "unit": "kPa"}, "out_of_range", id="too-high-when-converted"),
        pytest.param(SCORE, 5.5, "wrong_type", id="not-whole"),
        pytest.param(SCORE, True, "wrong_type", id="truth-for-a-number"),
        pytest.param(SCORE, {"value": 5, "origin": None}, "wrong_origin", id="origin-null"),
        pytest.param(SCORE, {"value": 5, "origin": "model"}, "wrong_origin", id="another-origin"),
        pytest.param(SEX, True, "wrong_type", id="truth-for-a-word"),
        pytest.param(SEX, {"value": "male"}, "wrong_type", id="object-for-a-word"),
        pytest.param(SEX, "man", "unknown_word", id="another-word"),
        pytest.param(KNOWN, "yes", "wrong_type", id="word-for-a-flag"),
        pytest.param(KNOWN, {"value": True, "unit": "1"}, "wrong_unit", id="unit-of-a-flag"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_cause(field: Field, value: Any, code: str) -> None:
    with pytest.raises(RecordRefused) as refused:
        read(field, value)
    assert (refused.value.code, refused.value.field) == (code, field.name)
    assert str(refused.value).startswith(f"{field.name}: ")


@given(st.decimals(50, 300, allow_nan=False, places=3))
def test_a_number_in_its_own_unit_keeps_every_digit(number: Decimal) -> None:
    raw = parse(f'{{"pressure": {{"value": {number}, "unit": "mm[Hg]"}}}}'.encode())
    assert str(read(PRESSURE, raw["pressure"])[0]) == str(number)
