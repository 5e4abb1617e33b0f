"""Tests the decision.py of both DApps: a model's finding is one observation of a guideline."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dapps.chdr import decision as chdr
from dapps.knowledge import RecordRefused
from dapps.strokedr import decision as strokedr

LOW, HIGH = 0.09, 0.19
ADMISSION: dict[str, Any] = {
    "hours_since_last_known_well": 2,
    "disabling_deficit": True,
    "platelets_10e3_per_ul": 200,
    "inr": 1.0,
    "aptt_s": 30,
    "pt_s": 12,
    "glucose_mg_dl": 110,
}
OFFER, WITHHOLD, REVIEW = "offer_ivt", "withhold_ivt", "specialist_review"


def ct(probability: float, whole_head: bool = True, usable: bool = True) -> Any:
    return strokedr.seen(probability, LOW, HIGH, whole_head=whole_head, model="strokedr 0.2.0", usable=usable)


@pytest.mark.parametrize(
    ("reading", "expected"),
    [
        pytest.param(ct(0.02), OFFER, id="absent"),
        pytest.param(ct(0.5), WITHHOLD, id="present"),
        pytest.param(ct(0.1), REVIEW, id="grey zone"),
        pytest.param(ct(LOW), REVIEW, id="at the lower cut-off"),
        pytest.param(ct(HIGH), WITHHOLD, id="at the upper cut-off"),
        pytest.param(ct(0.02, usable=False), REVIEW, id="poor images"),
        pytest.param(ct(0.5, usable=False), REVIEW, id="poor images, high answer"),
        pytest.param(ct(0.02, whole_head=False), REVIEW, id="single slices rule nothing out"),
        pytest.param(ct(0.5, whole_head=False), WITHHOLD, id="one slice can show blood"),
        pytest.param(ct(float("nan")), REVIEW, id="no number"),
        pytest.param(None, REVIEW, id="no images"),
    ],
)
def test_ct_and_admission_are_weighed_together(reading: Any, expected: str) -> None:
    decision = strokedr.decide(ADMISSION, reading)
    assert decision["recommended"] == expected
    if expected == REVIEW:
        assert "haemorrhage" in decision["needed"]
    values = [
        value
        for option in decision["options"]
        for argument in option["arguments"]
        if argument["id"] == "haemorrhage"
        for value in argument["values"]
    ]
    assert all(("strokedr 0.2.0" in str(value["source"])) is (reading is not None) for value in values)


@pytest.mark.parametrize(
    ("person", "probability", "expected"),
    [
        pytest.param(False, 0.1, OFFER, id="a person read what the model cannot tell"),
        pytest.param(True, 0.1, WITHHOLD, id="a person saw blood"),
        pytest.param(False, 0.02, OFFER, id="both see none"),
        pytest.param(True, 0.9, WITHHOLD, id="both see blood"),
        pytest.param(False, 0.9, REVIEW, id="the model alone sees blood"),
        pytest.param(True, 0.02, WITHHOLD, id="the person alone sees blood"),
        pytest.param(None, 0.02, OFFER, id="nobody has read them"),
    ],
)
def test_where_person_and_model_differ_a_specialist_looks(person: Any, probability: float, expected: str) -> None:
    assert strokedr.decide({**ADMISSION, "haemorrhage": person}, ct(probability))["recommended"] == expected


@given(st.floats(), st.booleans(), st.booleans())
def test_only_a_whole_usable_series_below_the_lower_cut_off_is_no_bleeding(
    probability: float, whole_head: bool, usable: bool
) -> None:
    reading = ct(probability, whole_head, usable)
    assert (reading.value is False) == (whole_head and usable and 0 <= probability < LOW)


def test_a_bad_field_is_refused_by_name() -> None:
    with pytest.raises(RecordRefused, match=r"^glucose_mg_dl: "):
        strokedr.decide({**ADMISSION, "glucose_mg_dl": 5.5}, ct(0.02))
    with pytest.raises(RecordRefused, match=r"^spo2: "):
        chdr.decide({"spo2": 97})


def oximetry(pre: float | None, post: float | None, screen: int | None = 1) -> dict[str, Any]:
    return {"pre_ductal_spo2_percent": pre, "post_ductal_spo2_percent": post, "screen_number": screen, "age_h": 26}


def murmur(probability: float, usable: bool = True) -> Any:
    return chdr.heard(probability, 0.3, 0.6, model="chdr 0.2.0", usable=usable)


@pytest.mark.parametrize(
    ("record", "reading", "expected"),
    [
        pytest.param(oximetry(98, 98), murmur(0.1), "pass", id="both passed"),
        pytest.param(oximetry(98, 98), murmur(0.9), "refer", id="a murmur with good oximetry"),
        pytest.param(oximetry(98, 98), murmur(0.4), "repeat", id="unclear recording"),
        pytest.param(oximetry(98, 98), murmur(0.1, usable=False), "repeat", id="poor recording"),
        pytest.param(oximetry(94, 94), murmur(0.1), "repeat", id="oximetry between"),
        pytest.param(oximetry(94, 94), murmur(0.9), "refer", id="a murmur and oximetry between"),
        pytest.param(oximetry(94, 94, 2), murmur(0.1), "refer", id="oximetry failed"),
        pytest.param(oximetry(89, 99), murmur(0.4), "refer", id="low, whatever the recording"),
        pytest.param({}, murmur(0.9), "refer", id="a murmur alone"),
        pytest.param({}, murmur(0.1), None, id="no murmur alone passes nobody"),
        pytest.param(oximetry(98, None), murmur(0.1), None, id="half of the oximetry"),
        pytest.param(oximetry(98, 98), None, "pass", id="oximetry alone"),
        pytest.param(oximetry(97, 94), None, "repeat", id="oximetry alone, between"),
    ],
)
def test_sound_and_oximetry_are_weighed_together(record: dict[str, Any], reading: Any, expected: str | None) -> None:
    decision = chdr.decide(record, reading)
    assert decision["recommended"] == expected
    assert decision["guideline"]["name"] == ("cchd-aap-2025" if reading is None else "cchd-joint-2025")


def test_reasons_come_from_both() -> None:
    decision = chdr.decide(oximetry(94, 94), murmur(0.9))
    pros = [
        argument["id"]
        for option in decision["options"]
        for argument in option["arguments"]
        if argument["truth"] == "true"
    ]
    assert {"murmur", "indeterminate"} <= set(pros)
    assert any(entry["argument"] == "murmur" for entry in decision["uncertain"])


@pytest.mark.parametrize(
    ("pairs", "screen", "expected"),
    [
        ([(98, 98)], 1, "pass"),
        ([(94, 94), (98, 98)], 2, "pass"),
        ([(94, 94), (94, 94)], 2, "refer"),
        ([(89, 99), (98, 98)], 1, "refer"),
        ([(94, None)], 1, None),
        ([], None, None),
    ],
)
def test_an_early_low_saturation_is_not_measured_away(
    pairs: list[tuple[float | None, float | None]], screen: int | None, expected: str | None
) -> None:
    record = chdr.screens(pairs, 26)
    assert record.get("screen_number") == screen
    assert chdr.decide(record)["recommended"] == expected
