"""Tests CHDr. and StrokeDr. from case to decision: model and record together, or the record alone."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from dapps.api.dapp import DApp
from dapps.api.types import Case, ClinicalFile, Inputs, IntakeRefused, Report
from dapps.packages import registry
from dapps.strokedr import decision

ADMISSION = {
    "hours_since_last_known_well": 2,
    "disabling_deficit": True,
    "platelets_10e3_per_ul": 200,
    "inr": 1.0,
    "aptt_s": 30,
    "pt_s": 12,
    "glucose_mg_dl": {"value": 110, "unit": "mg/dL"},
}
OXIMETRY = {"pre_ductal_spo2_percent": 98, "post_ductal_spo2_percent": 98, "screen_number": 1}
INTAKE = {name: {"value": 98, "unit": "%"} for name in ("spo2_right_hand", "spo2_foot")}


def case(record: Any, *files: ClinicalFile) -> Case:
    return Case(files, None if record is None else json.dumps(record).encode())


@pytest.fixture(scope="module")
def loaded() -> dict[str, DApp]:
    dapps = {name: registry.load(name) for name in ("chdr", "strokedr")}
    for dapp in dapps.values():
        dapp.load("cpu")
    return dapps


def answered(dapp: DApp, case: Case) -> Report:
    import torch

    prepared = dapp.prepare(case)
    outputs: list[Inputs] = [
        {
            name: tensor.numpy()
            for name, tensor in dapp.forward(
                **{key: torch.from_numpy(np.array(value)) for key, value in item.items()}
            ).items()
        }
        for item in prepared.items
    ]
    return dapp.conclude(prepared, outputs)


def test_a_scan_and_an_admission_record_end_in_a_decision(loaded: dict[str, DApp]) -> None:
    report = answered(loaded["strokedr"], case(ADMISSION, loaded["strokedr"].sample()))
    assert report.decision is not None
    (finding,) = [row for row in report.findings if row.code == "intracranial_haemorrhage"]
    # One slice: blood on it is blood, and no blood on it rules nothing out.
    expected = "withhold_ivt" if finding.present else "specialist_review"
    assert report.decision["recommended"] == expected and expected in report.summary
    assert report.decision["guideline"]["digest"] in loaded["strokedr"].release
    assert "strokedr 0." in json.dumps(report.decision) and "medical advice" in report.patient_summary


def test_oximetry_and_sound_end_in_a_decision_with_reasons_from_both(loaded: dict[str, DApp]) -> None:
    for record in (OXIMETRY, INTAKE):
        report = answered(loaded["chdr"], case(record, loaded["chdr"].sample()))
        assert report.decision is not None and report.decision["guideline"]["name"] == "cchd-joint-2025"
        (finding, *_) = report.findings
        expected = {True: "refer", False: "pass", None: "repeat"}[finding.present]
        assert report.decision["recommended"] == expected
        held = {
            argument["id"]
            for option in report.decision["options"]
            for argument in option["arguments"]
            if argument["truth"] == "true"
        }
        assert "criteria_met" in held and held & {"murmur", "no_murmur", "murmur_unclear"}


@pytest.mark.parametrize(
    ("name", "record", "guideline", "expected"),
    [
        pytest.param("strokedr", ADMISSION, "stroke-ivt-2026", "specialist_review", id="no imaging"),
        pytest.param(
            "strokedr", ADMISSION | {"haemorrhage": False}, "stroke-ivt-2026", "offer_ivt", id="a person read it"
        ),
        pytest.param("chdr", OXIMETRY, "cchd-aap-2025", "pass", id="oximetry"),
        pytest.param("chdr", INTAKE, "cchd-aap-2025", "pass", id="oximetry, as the intake has it"),
        pytest.param(
            "chdr", OXIMETRY | {"screen_number": None, "post_ductal_spo2_percent": 94}, "cchd-aap-2025", None, id="open"
        ),
    ],
)
def test_a_record_alone_is_answered_without_a_model(
    name: str, record: Any, guideline: str, expected: str | None
) -> None:
    dapp = registry.load(name)  # its weights are not even loaded
    prepared = dapp.prepare(case(record))
    assert prepared.items == ()
    report = dapp.conclude(prepared, [])
    assert report.decision is not None and report.findings == ()
    assert (report.decision["guideline"]["name"], report.decision["recommended"]) == (guideline, expected)
    assert 0 < dapp.price.guideline_only < dapp.price.of(1)
    with pytest.raises(IntakeRefused, match="no picture"):
        dapp.picture(prepared, [], report)


@pytest.mark.parametrize(
    ("name", "record", "field"),
    [
        ("strokedr", {"hemorrhage": True}, "hemorrhage"),
        ("strokedr", ADMISSION | {"glucose_mg_dl": {"value": 6, "unit": "mmol/L"}}, "glucose_mg_dl"),
        ("strokedr", ADMISSION | {"inr": 500}, "inr"),
        ("strokedr", ADMISSION | {"haemorrhage": {"value": False, "origin": "model"}, "nihss": "5"}, "nihss"),
        ("chdr", OXIMETRY | {"pre_ductal_spo2_percent": 0.98}, "pre_ductal_spo2_percent"),
        ("chdr", {"spo2": 98}, "spo2"),
    ],
)
def test_a_bad_field_is_refused_by_name_before_any_model_runs(name: str, record: Any, field: str) -> None:
    dapp = registry.load(name)
    for files in ((), (dapp.sample(),)):
        with pytest.raises(IntakeRefused) as caught:
            dapp.prepare(case(record, *files))
        assert caught.value.code in ("guideline_field", "unknown_field")
        assert caught.value.message.startswith(f"{field}: ")


def test_without_a_guidelines_field_nothing_is_weighed(loaded: dict[str, DApp]) -> None:
    assert answered(loaded["strokedr"], case(None, loaded["strokedr"].sample())).decision is None
    old = {"age": {"value": 5, "unit": "a"}, **INTAKE}
    assert answered(loaded["chdr"], case(old, loaded["chdr"].sample())).decision is None


@pytest.mark.parametrize(
    ("places", "whole"),
    [
        ([float(place) for place in range(0, 160, 5)], True),
        ([float(place) for place in range(0, 60, 5)], False),
        ([0.0, 50.0, 100.0], False),
        ([None] * 30, False),
        ([None, *map(float, range(0, 160, 5))], False),
        ([], False),
    ],
)
def test_only_a_whole_head_can_be_without_blood(places: list[float | None], whole: bool) -> None:
    assert decision.whole_head(places) is whole


def test_a_record_is_bounded_and_read_once() -> None:
    dapp = registry.load("strokedr")
    for raw in (b"{", b'{"inr": 1, "inr": 2}', b"[1]", b" " * 70_000, b'{"a":' * 20_000, b"\xff"):
        with pytest.raises(IntakeRefused):
            dapp.prepare(Case((), raw))
