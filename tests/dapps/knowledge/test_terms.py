"""Tests dapps/knowledge/terms.py: check digits detect mistyped codes, units are UCUM."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dapps.knowledge.terms import is_code, is_unit


@pytest.mark.parametrize("code", ["777-3", "6301-6", "59407-7", "59418-4", "72089-6", "2339-0"])
def test_loinc_numbers_of_lab_systems(code: str) -> None:
    assert is_code("loinc", code)
    assert not is_code("loinc", code[:-1] + str((int(code[-1]) + 1) % 10))


@given(st.sampled_from(["1386000", "233850007", "77386006", "73211009"]), st.integers(0, 8), st.integers(1, 9))
def test_one_wrong_digit_of_a_snomed_identifier_is_seen(code: str, place: int, by: int) -> None:
    assert is_code("snomed", code)
    place %= len(code)
    wrong = code[:place] + str((int(code[place]) + by) % 10) + code[place + 1 :]
    assert not is_code("snomed", wrong)


@pytest.mark.parametrize(
    "unit", ["%", "h", "s", "mg/dL", "10*3/uL", "mm[Hg]", "{score}", "{INR}", "1", "kg/m2", "mg/kg", "/min"]
)
def test_units_of_clinical_data(unit: str) -> None:
    assert is_unit(unit)


@pytest.mark.parametrize("unit", ["", "mmHg", "percent", "hours", "mg per dL", "10^3/µL", "{}", "mg//dL"])
def test_what_only_looks_like_a_unit(unit: str) -> None:
    assert not is_unit(unit)
