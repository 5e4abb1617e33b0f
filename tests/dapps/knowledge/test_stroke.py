"""Tests stroke thrombolysis, AHA/ASA 2026: windows, limits, risk tiers; unknown bleeding is never no bleeding."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dapps.knowledge import explain, find, from_probability, weigh
from dapps.knowledge.record import read
from tests.examples import examples

NAME, OLDER = "stroke-ivt-2026", "stroke-ivt-2018"
CORE: dict[str, Any] = {
    "hours_since_last_known_well": 2,
    "disabling_deficit": True,
    "nihss": 12,
    "haemorrhage": False,
    "platelets_10e3_per_ul": 200,
    "inr": 1.0,
    "aptt_s": 30,
    "pt_s": 12,
    "glucose_mg_dl": 110,
}
OFFER, WITHHOLD, REVIEW = "offer_ivt", "withhold_ivt", "specialist_review"
TIERS = {"absolute": WITHHOLD, "relative": REVIEW, "benefit usually above risk": OFFER}


def recommended(name: str = NAME, **changes: Any) -> str | None:
    guideline = find(name)
    recommended = weigh(guideline, read(CORE | changes, guideline)).recommended
    return recommended.name if recommended else None


def tier(group: str) -> list[str]:
    return [name for name, datum in find(NAME).document.data.items() if datum.group == group]


BOUNDARIES = [
    pytest.param({}, OFFER, id="core window"),
    pytest.param({"hours_since_last_known_well": 4.5}, OFFER, id="4.5 h"),
    pytest.param({"hours_since_last_known_well": 4.6}, REVIEW, id="above 4.5 h"),
    pytest.param({"hours_since_last_known_well": 24}, REVIEW, id="24 h"),
    pytest.param({"hours_since_last_known_well": 24.1}, WITHHOLD, id="above 24 h"),
    pytest.param({"nihss": 1}, OFFER, id="disabling whatever the NIHSS: low"),
    pytest.param({"nihss": 30}, OFFER, id="disabling whatever the NIHSS: high"),
    pytest.param({"nihss": None}, OFFER, id="NIHSS unknown"),
    pytest.param({"disabling_deficit": False, "nihss": 3}, WITHHOLD, id="not disabling"),
    pytest.param({"haemorrhage": True}, WITHHOLD, id="haemorrhage"),
    pytest.param({"platelets_10e3_per_ul": 99}, WITHHOLD, id="platelets 99"),
    pytest.param({"platelets_10e3_per_ul": 100}, OFFER, id="platelets 100"),
    pytest.param({"inr": 1.7}, OFFER, id="INR 1.7"),
    pytest.param({"inr": 1.71}, WITHHOLD, id="INR above 1.7"),
    pytest.param({"aptt_s": 40}, OFFER, id="aPTT 40"),
    pytest.param({"aptt_s": 41}, WITHHOLD, id="aPTT 41"),
    pytest.param({"pt_s": 15}, OFFER, id="PT 15"),
    pytest.param({"pt_s": 16}, WITHHOLD, id="PT 16"),
    pytest.param({"glucose_mg_dl": 45}, REVIEW, id="low glucose is treated first, and is no exclusion"),
    pytest.param({"glucose_mg_dl": 450}, REVIEW, id="so is high glucose"),
    pytest.param({"glucose_mg_dl": 50}, OFFER, id="glucose 50"),
    pytest.param({"cerebral_microbleeds_1_to_10": True}, OFFER, id="few microbleeds"),
    pytest.param({"cerebral_microbleeds_over_10": True}, REVIEW, id="many microbleeds"),
    pytest.param({"antiplatelet_therapy": True}, OFFER, id="antiplatelets"),
    pytest.param({"age_under_18": True}, REVIEW, id="a child"),
    pytest.param({"hours_since_last_known_well": 6, "dwi_flair_mismatch": True}, REVIEW, id="selected by imaging"),
    pytest.param(
        {"hours_since_last_known_well": 6, "dwi_flair_mismatch": False, "perfusion_penumbra": False,
         "lvo_with_penumbra_and_no_thrombectomy": False}, WITHHOLD, id="not selected by imaging"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "expected"), BOUNDARIES)
def test_the_boundaries(changes: dict[str, Any], expected: str) -> None:
    assert recommended(**changes) == expected


@pytest.mark.parametrize("name", ["haemorrhage", "hours_since_last_known_well", "disabling_deficit", "glucose_mg_dl"])
def test_what_must_be_known_blocks_while_it_is_not(name: str) -> None:
    guideline = find(NAME)
    for record in (CORE | {name: None}, {key: value for key, value in CORE.items() if key != name}):
        explanation = explain(guideline, read(record, guideline))
        assert explanation["recommended"] == REVIEW and name in explanation["unknown"] and name in explanation["needed"]


@pytest.mark.parametrize("name", ["platelets_10e3_per_ul", "inr", "aptt_s", "pt_s"])
def test_laboratory_results_are_waited_for_unless_there_is_no_reason_to_suspect_them(name: str) -> None:
    assert recommended(**{name: None}) == REVIEW
    assert recommended(**{name: None, "coagulopathy_suspected": True}) == REVIEW
    assert recommended(**{name: None, "coagulopathy_suspected": False}) == OFFER


@pytest.mark.parametrize(("group", "expected"), list(TIERS.items()))
def test_every_condition_of_a_risk_tier_has_its_effect(group: str, expected: str) -> None:
    names = tier(group)
    assert len(names) == {"absolute": 8, "relative": 13, "benefit usually above risk": 8}[group]
    for name in names:
        assert recommended(**{name: True}) == expected, name
        assert recommended(**{name: False}) == OFFER, name


def test_an_absolute_condition_outweighs_everything() -> None:
    assert recommended(infective_endocarditis=True, haemorrhage=None, doac_within_48_h=True) == WITHHOLD
    assert recommended(haemorrhage=True, hours_since_last_known_well=None, glucose_mg_dl=None) == WITHHOLD


def test_a_history_that_was_not_asked_for_makes_it_provisional() -> None:
    guideline = find(NAME)
    core = explain(guideline, read(CORE, guideline))
    assert core["recommended"] == OFFER and core["provisional"]
    assert set(tier("absolute") + tier("relative")) <= set(core["open"])
    complete = CORE | {name: False for name, datum in guideline.document.data.items() if datum.group}
    full = explain(guideline, read(complete, guideline))
    assert full["recommended"] == OFFER and not full["provisional"] and full["open"] == full["unknown"] == []


def test_the_drug_is_started_with_what_stops_it() -> None:
    guideline = find(NAME)
    record = CORE | {"platelets_10e3_per_ul": None, "coagulopathy_suspected": False}
    (drug,) = [
        action for action in explain(guideline, read(record, guideline))["actions"] if action["name"] == "thrombolysis"
    ]
    assert drug["abort_if"] == "inr > 1.7 or platelets_10e3_per_ul < 100 or aptt_s > 40 or pt_s > 15"
    assert drug["aborted"] == "unknown"


@given(st.one_of(st.floats(), st.floats(0, 1)), st.booleans())
def test_a_model_that_is_not_sure_is_never_no_bleeding(probability: float, usable: bool) -> None:
    low, high = 0.09, 0.19
    guideline = find(NAME)
    record = read({name: value for name, value in CORE.items() if name != "haemorrhage"}, guideline)
    seen = from_probability(probability, low, high, "strokedr", usable)
    recommended = weigh(guideline, {**record, "haemorrhage": seen}).recommended
    assert recommended is not None
    if recommended.name == OFFER:
        assert usable and probability < low


FIELDS = st.sets(st.sampled_from(sorted(CORE)))
VALUES = {
    "hours_since_last_known_well": st.sampled_from([0, 4.5, 4.6, 24, 25]),
    "disabling_deficit": st.booleans(),
    "nihss": st.integers(0, 42),
    "haemorrhage": st.booleans(),
    "platelets_10e3_per_ul": st.sampled_from([99, 100, 250]),
    "inr": st.sampled_from([1, 1.7, 1.8]),
    "aptt_s": st.sampled_from([40, 41]),
    "pt_s": st.sampled_from([15, 16]),
    "glucose_mg_dl": st.sampled_from([49, 50, 400, 401]),
}


@settings(max_examples=examples(200))
@given(st.fixed_dictionaries(VALUES), FIELDS)
def test_knowing_less_never_recommends_more(record: dict[str, Any], lost: set[str]) -> None:
    """Losing any of these fields leaves the answer as it was, or hands it to a person."""
    less = recommended(**record | dict.fromkeys(lost))
    assert less in (REVIEW, recommended(**record))
    assert recommended(**record) is not None


def test_the_older_list_differs_where_it_should() -> None:
    young = {"age_years": 60, "diabetes_and_prior_stroke": False}
    assert recommended(OLDER, **young) == OFFER
    assert (recommended(OLDER, **young, glucose_mg_dl=45), recommended(glucose_mg_dl=45)) == (WITHHOLD, REVIEW)
    late = {"hours_since_last_known_well": 4}
    assert recommended(OLDER, **young | late | {"age_years": 81}) == WITHHOLD
    assert recommended(OLDER, **young | late, nihss=26) == WITHHOLD and recommended(**late, nihss=26) == OFFER
    assert recommended(OLDER, **young | late | {"diabetes_and_prior_stroke": True}) == WITHHOLD
    assert recommended(OLDER, **young | {"hours_since_last_known_well": 5}) == WITHHOLD
    assert recommended(OLDER, **young, haemorrhage=None) == REVIEW


@pytest.mark.parametrize("name", [NAME, OLDER, "cchd-aap-2025", "cchd-aap-2011", "cchd-joint-2025"])
def test_nothing_is_signed_that_no_clinician_signed(name: str) -> None:
    assert find(name).document.reviewed_by is None
    assert "Not reviewed by a clinician." in explain(find(name), {})["notices"]
