"""Tests dapps/intake/record.py: an admission record is read in UCUM units, or refused by its cause."""

import contextlib
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dapps.api.types import Case, IntakeRefused
from dapps.strokedr import StrokeDr
from dapps.strokedr.prognosis.admission import DEFICITS
from tests.dapps.drawn import RECORD, record
from tests.examples import examples

BROKEN_RECORDS = [
    pytest.param(b"\xff\xfe{", "unreadable", id="not-utf-8"),
    pytest.param(b"{", "unreadable", id="cut-off"),
    pytest.param(b"[]", "not_an_object", id="list"),
    pytest.param(b"[" * 60_000, "too_large", id="nested"),
    pytest.param(b" " * 70_000 + b"{}", "too_large", id="long"),
    pytest.param(b'{"age": null, "age": null}', "duplicate_field", id="field-twice"),
    pytest.param(record(nihs=4), "unknown_field", id="unknown-field"),
    pytest.param(record(age=74), "missing_unit", id="no-unit"),
    pytest.param(record(age={"value": 74, "unit": "years"}), "wrong_unit", id="unit-not-ucum"),
    pytest.param(record(age={"value": 74, "unit": ["a"]}), "wrong_unit", id="unit-is-a-list"),
    pytest.param(record(age={"value": "74", "unit": "a"}), "wrong_type", id="number-as-text"),
    pytest.param(record(age={"value": True, "unit": "a"}), "wrong_type", id="number-as-true"),
    pytest.param(b'{"age": {"value": NaN, "unit": "a"}}', "not_finite", id="not-a-number"),
    pytest.param(record(age={"value": 10**400, "unit": "a"}), "not_finite", id="beyond-floats"),
    pytest.param(record(age={"value": 740, "unit": "a"}), "out_of_range", id="age-of-740"),
    pytest.param(record(systolic_pressure={"value": 160, "unit": "kPa"}), "out_of_range", id="pressure-in-kPa"),
    pytest.param(record(consciousness="asleep"), "unknown_word", id="unknown-word"),
    pytest.param(record(consciousness=2), "wrong_type", id="word-as-number"),
    pytest.param(record(age=None), "incomplete", id="age-unknown"),
    pytest.param(b"{}", "incomplete", id="nothing-known"),
    pytest.param(record(ct_before=False, infarct_visible=True), "low_quality", id="infarct-seen-without-ct"),
    pytest.param(record(syndrome="lacunar", hemianopia=True), "low_quality", id="lacunar-with-hemianopia"),
    pytest.param(
        record(syndrome="lacunar", dysphasia="gone", consciousness="unconscious"),
        "low_quality",
        id="lacunar-unconscious",
    ),
    pytest.param(
        record(syndrome="total_anterior", face_deficit="no", arm_deficit="no"),
        "low_quality",
        id="total-without-weakness",
    ),
    pytest.param(record(brainstem_signs=True), "low_quality", id="brainstem-signs-in-front"),
    pytest.param(
        record(syndrome="other", consciousness="unconscious", **dict.fromkeys(DEFICITS, "no")),
        "low_quality",
        id="unconscious-without-deficit",
    ),
]


@pytest.mark.parametrize(("data", "code"), BROKEN_RECORDS)
def test_a_broken_record_is_refused_by_its_cause(data: bytes, code: str) -> None:
    with pytest.raises(IntakeRefused) as refused:
        StrokeDr().prepare(Case((), data))
    assert refused.value.code == code
    assert refused.value.__cause__ is None and "740" not in str(refused.value)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
@settings(max_examples=examples(100))
def test_any_json_is_read_or_refused(value: Any) -> None:
    for data in (json.dumps(value).encode(), json.dumps({**RECORD, "age": value}).encode()):
        with contextlib.suppress(IntakeRefused):
            assert StrokeDr().prepare(Case((), data)).items


def test_units_are_converted() -> None:
    plain = StrokeDr().prepare(Case((), record(systolic_pressure={"value": 150.0124, "unit": "mm[Hg]"})))
    other = StrokeDr().prepare(Case((), record(systolic_pressure={"value": 20, "unit": "kPa"})))
    assert np.allclose(plain.items[0]["ADMISSION"], other.items[0]["ADMISSION"])
