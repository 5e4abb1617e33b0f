"""Checks GPU metrics under Triton's names, from NVML's numbers."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest
import yaml

from serving.telemetry import metrics
from serving.telemetry.gpus import READINGS, Gpus

UUIDS = ["GPU-aaaa", "GPU-bbbb"]


class Refused(Exception):
    """As NVML refuses."""


def nvml(**changed: Any) -> SimpleNamespace:
    """NVIDIA's library, as far as it is asked here, on a machine with two cards."""

    def by_index(index: int) -> str:
        if index >= len(UUIDS):
            raise Refused
        return UUIDS[index]

    usual = {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetHandleByIndex": by_index,
        "nvmlDeviceGetHandleByUUID": lambda uuid: UUIDS[UUIDS.index(uuid)],
        "nvmlDeviceGetUUID": lambda card: card,
        "nvmlDeviceGetUtilizationRates": lambda card: SimpleNamespace(gpu=37, memory=5),
        "nvmlDeviceGetMemoryInfo": lambda card: SimpleNamespace(total=80 << 30, used=3 << 30, free=77 << 30),
        "nvmlDeviceGetPowerUsage": lambda card: 251_500,
        "nvmlDeviceGetPowerManagementLimit": lambda card: 700_000,
        "nvmlDeviceGetTotalEnergyConsumption": lambda card: 1_234_567,
    }
    return SimpleNamespace(**(usual | changed))


def refuse(*arguments: object) -> Any:
    raise Refused


TOLD = {
    "nv_gpu_utilization": 0.37,
    "nv_gpu_memory_total_bytes": 80 << 30,
    "nv_gpu_memory_used_bytes": 3 << 30,
    "nv_gpu_power_usage": 251.5,
    "nv_gpu_power_limit": 700.0,
    "nv_energy_consumption": 1234.567,
}


@pytest.mark.parametrize(
    ("visible", "uuids"),
    [(None, UUIDS[:1]), ("1", UUIDS[1:]), ("GPU-bbbb", UUIDS[1:]), ("0,1", UUIDS), ("", []), ("7", []), ("?", [])],
)
def test_each_card_that_the_replica_was_given_is_told_in_tritons_units(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, uuids: list[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml())
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert Gpus().read() == {uuid: pytest.approx(TOLD) for uuid in uuids}


@pytest.mark.parametrize("library", [None, nvml(nvmlInit=refuse)])
def test_a_machine_without_the_package_or_the_driver_tells_nothing(
    monkeypatch: pytest.MonkeyPatch, library: SimpleNamespace | None
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", library)
    assert Gpus().read() == {}


def test_a_card_that_does_not_tell_a_figure_tells_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml(nvmlDeviceGetUtilizationRates=refuse))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert set(Gpus().read()["GPU-aaaa"]) == set(READINGS) - {"nv_gpu_utilization"}


def test_the_package_has_what_it_is_asked_for() -> None:
    assert [name for name in vars(nvml()) if not callable(getattr(pynvml, name, None))] == []


def test_each_figure_goes_into_its_gauge_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    put: list[tuple[str, float, dict[str, str]]] = []

    class Gauge:
        def __init__(self, name: str, description: str, labels: tuple[str, ...]) -> None:
            self.name, self.labels = name, labels

        def set(self, value: float, tags: dict[str, str]) -> None:
            assert set(tags) == set(self.labels)
            put.append((self.name, value, tags))

    monkeypatch.setattr(metrics, "Gauge", Gauge)
    exported = metrics.Metrics("chdr", "1", 8)
    for _ in range(2):
        exported.gpus({"GPU-aaaa": TOLD})
    assert put == 2 * [(name, value, {"gpu_uuid": "GPU-aaaa"}) for name, value in TOLD.items()]


def test_prometheus_puts_tritons_names_back() -> None:
    path = Path(__file__).parents[2] / "deploy/prometheus/prometheus.yml"
    rules = yaml.safe_load(path.read_text())["scrape_configs"][0]["metric_relabel_configs"]
    rays = [f"ray_{name}" for name in READINGS] + [f"ray_{name}_total" for name, _ in metrics.TRITON.values()]
    for name in rays:
        matches = [match for match in (re.fullmatch(rule["regex"], name) for rule in rules) if match]
        assert [match[1] for match in matches] == [name.removeprefix("ray_").removesuffix("_total")]
