"""Tests dapps/knowledge/record.py: every value is typed and possible, or refused by its field's name."""

from __future__ import annotations

import math
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dapps.knowledge import Observation, RecordRefused, from_probability
from dapps.knowledge.record import check, parse, read, values
from tests.dapps.knowledge.small import small

REFUSED = [
    pytest.param(b'{"scoer": 5}', "scoer", "did you mean score", id="unknown field"),
    pytest.param(b'{"score": "50"}', "score", "a number in mg/dL", id="text for number"),
    pytest.param(b'{"score": true}', "score", "a number in mg/dL", id="truth for number"),
    pytest.param(b'{"score": [50]}', "score", "a number in mg/dL", id="list"),
    pytest.param(b'{"score": 101}', "score", "between 0 and 100 mg/dL", id="too high"),
    pytest.param(b'{"score": -1}', "score", "between 0 and 100 mg/dL", id="too low"),
    pytest.param(b'{"score": NaN}', "score", "a number in mg/dL", id="NaN"),
    pytest.param(b'{"score": 1e999999999}', "score", "number|between", id="huge"),
    pytest.param(b'{"score": {"value": 5, "unit": "mmol/L"}}', "score", "the unit is mg/dL", id="wrong unit"),
    pytest.param(b'{"score": {"value": 5, "units": "mg/dL"}}', "score", "write a value", id="odd object"),
    pytest.param(b'{"score": {"value": 5, "origin": "model"}}', "score", "its origin is record", id="wrong origin"),
    pytest.param(b'{"allergy": {"value": true, "unit": "mg"}}', "allergy", "it has no unit", id="unit of a truth"),
    pytest.param(b'{"allergy": 1}', "allergy", "true, false or null", id="number for truth"),
    pytest.param(b'{"allergy": "no"}', "allergy", "true, false or null", id="text for truth"),
    pytest.param(b'{"score": 5, "score": 6}', "score", "there twice", id="twice"),
    pytest.param(b'{"Jane Doe [b]": 5}', "", "no such field", id="no field name is echoed"),
    pytest.param(b"[5]", "", "one JSON object", id="list of all"),
    pytest.param(b"{'score': 5}", "", "not JSON", id="not JSON"),
    pytest.param(b'{"score": ' + b"[" * 40_000, "", "at most", id="nested"),
    pytest.param(b"\xff\xfe", "", "not JSON", id="not UTF-8"),
    pytest.param(b" " * 70_000, "", "at most", id="large"),
]


@pytest.mark.parametrize(("raw", "field", "message"), REFUSED)
def test_what_does_not_fit_is_refused_by_name(raw: bytes, field: str, message: str) -> None:
    with pytest.raises(RecordRefused, match=message) as caught:
        parse(raw, small())
    assert str(caught.value).startswith(field)
    assert "Jane" not in str(caught.value) and "101" not in str(caught.value)


def test_null_and_absent_are_the_same() -> None:
    assert parse(b'{"score": null, "allergy": {"value": null}}', small()) == parse(b"{}", small()) == {}


def test_a_value_keeps_its_digits_and_its_origin() -> None:
    record = parse(b'\xef\xbb\xbf{"score": 0.1, "allergy": {"value": true, "origin": "user"}}', small())
    assert record == {"score": Observation(Decimal("0.1")), "allergy": Observation(True, "user")}
    assert "0.1" not in repr(record)


def test_a_whole_number_may_be_asked_for() -> None:
    whole = small(("type: number", "type: integer"))
    assert read({"score": 5.0}, whole)["score"].value == 5
    with pytest.raises(RecordRefused, match="whole number"):
        read({"score": 5.5}, whole)


@given(st.floats(), st.floats(0, 1), st.floats(0, 1), st.booleans())
def test_a_probability_becomes_a_truth_only_outside_the_grey_zone(
    probability: float, first: float, second: float, usable: bool
) -> None:
    low, high = sorted((first, second))
    value = from_probability(probability, low, high, "model 1.0", usable).value
    if not usable or math.isnan(probability) or not 0 <= probability <= 1 or low <= probability < high:
        assert value is None
    else:
        assert value is (probability >= high)


def test_cut_offs_that_overlap_are_refused() -> None:
    for low, high in ((0.6, 0.5), (-0.1, 0.5), (0.5, 1.1), (math.nan, 0.5)):
        with pytest.raises(ValueError, match="overlapping"):
            from_probability(0.5, low, high, "model")


def test_a_model_may_give_only_what_may_come_from_one() -> None:
    check({"scan": from_probability(0.9, 0.1, 0.5, "model 1.0")}, small())
    with pytest.raises(RecordRefused, match="allergy: it comes from record or user, not from a model"):
        check({"allergy": Observation(True, "model")}, small())
    with pytest.raises(RecordRefused, match="between"):
        check({"score": Observation(Decimal(500))}, small())
    with pytest.raises(RecordRefused, match="no such field"):
        check({"other": Observation(True)}, small())


def test_two_cut_offs_leave_a_grey_zone() -> None:
    zone = small(("    if: score >= 40", "    true_if: score >= 60\n    false_if: score < 40"))
    for number, truth in ((60, True), (59, None), (40, None), (39, False)):
        assert values(read({"score": number}, zone), zone)["high"] is truth
    assert values({}, zone)["high"] is None
