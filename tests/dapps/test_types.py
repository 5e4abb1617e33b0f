"""Tests dapps/api/types.py: every value refuses what it cannot mean."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dapps.api.types import BASIS_POINTS, DTYPES, RESEARCH_USE, ClinicalFile, Price, Report, Shares, Tensor


@pytest.mark.parametrize("name", DTYPES)
def test_every_datatype_is_little_endian_on_the_wire(name: str) -> None:
    assert Tensor("X", name, [1]).dtype.newbyteorder("<") == DTYPES[name]


@pytest.mark.parametrize(
    ("datatype", "shape"),
    [
        pytest.param("FLOAT", [1], id="unknown-datatype"),
        pytest.param("FP32", [0], id="zero-dimension"),
        pytest.param("FP32", [3, -2], id="negative-dimension"),
    ],
)
def test_a_tensor_refuses(datatype: str, shape: list[int]) -> None:
    with pytest.raises(ValueError, match="tensor X"):
        Tensor("X", datatype, shape)


@pytest.mark.parametrize(
    ("declared", "shape", "fits"),
    [
        pytest.param([3, 4], (3, 4), True, id="exact"),
        pytest.param([3, -1], (3, 9), True, id="any-size"),
        pytest.param([3, -1], (3, 0), False, id="any-size-but-none"),
        pytest.param([3, 4], (4, 3), False, id="swapped"),
        pytest.param([3, 4], (3,), False, id="too-few-dimensions"),
        pytest.param([], (), True, id="scalar"),
    ],
)
def test_a_tensor_accepts_what_it_declares(declared: list[int], shape: tuple[int, ...], fits: bool) -> None:
    assert Tensor("X", "FP32", declared).accepts(shape) is fits


@pytest.mark.parametrize(
    ("per_item", "maximum_items"),
    [
        pytest.param(1.5, 1, id="float-amount"),
        pytest.param(True, 1, id="bool-amount"),
        pytest.param(-1, 1, id="negative-amount"),
        pytest.param(1, 0, id="no-items"),
    ],
)
def test_a_price_refuses(per_item: int, maximum_items: int) -> None:
    with pytest.raises(ValueError, match="price"):
        Price(per_item, maximum_items)


@given(st.integers(0, 10**12), st.integers(0, 1000))
def test_a_price_is_linear_and_whole(per_item: int, items: int) -> None:
    assert Price(per_item).of(items) == per_item * items


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({"per_gpu_second": 5}, id="no-maximum"),
        pytest.param({"per_gpu_second": 5, "maximum": 0}, id="nothing-at-most"),
        pytest.param({"per_gpu_second": 5, "maximum": 9, "per_item": 1}, id="two-prices"),
        pytest.param({"per_gpu_second": 0.5, "maximum": 9}, id="float-amount"),
        pytest.param({"per_gpu_second": -5, "maximum": 9}, id="negative-amount"),
        pytest.param({"per_item": 5, "maximum": 9}, id="maximum-of-items"),
        pytest.param({"per_gpu_second": 5, "maximum": 9, "guideline": 10}, id="guideline-above-maximum"),
    ],
)
def test_a_price_by_time_refuses(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="price"):
        Price(**wrong)


@given(st.integers(1, 10**12), st.integers(1, 10**12), st.integers(0, 10**10), st.integers(0, 10**10))
def test_a_price_by_time_grows_with_it_to_the_quote_and_never_above(
    rate: int, maximum: int, device_us: int, more_us: int
) -> None:
    price = Price(per_gpu_second=rate, maximum=maximum)
    assert price.units(3, device_us) == device_us
    assert 0 <= price.of(device_us) <= price.of(device_us + more_us) <= price.max_price == maximum
    assert price.of(0) == 0 and price.of(10**6) == min(rate, maximum)
    assert price.of(device_us) in (maximum, -(-rate * device_us // 10**6))


@given(st.lists(st.integers(-5, BASIS_POINTS), min_size=4, max_size=4))
def test_shares_either_sum_or_refuse(parts: list[int]) -> None:
    if sum(parts) == BASIS_POINTS and min(parts) >= 0:
        assert Shares(*parts).knowledge == parts[0]
    else:
        with pytest.raises(ValueError, match="basis points"):
            Shares(*parts)


def test_a_clinical_file_shows_nothing_of_itself() -> None:
    shown = repr(ClinicalFile(b"JANE DOE", "jane_doe.dcm"))
    assert "JANE" not in shown and "jane" not in shown


def test_every_report_is_stamped_and_frozen() -> None:
    report = Report("fine", ())
    assert report.notice == RESEARCH_USE
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.notice = "medical device"  # type: ignore[misc]
