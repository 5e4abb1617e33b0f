"""`Gpus`: what NVML tells of the GPUs that this process was given, under Triton's names and in Triton's units.

It tells of a whole card, whoever works on it; what a replica has of one is `leben_memory_bytes`. Metrics never stop a
replica: a machine without NVML, and a card that does not tell a figure, tell less. No CUDA context is made for this: it
would cost each isolated DApp's replica half a gigabyte.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

log = logging.getLogger("leben.cards")
FIGURES: dict[str, tuple[str, Callable[[Any, Any], float]]] = {
    "nv_gpu_utilization": (
        "Part of the time for which the GPU was busy, 0 to 1.",
        lambda nvml, card: nvml.nvmlDeviceGetUtilizationRates(card).gpu / 100,
    ),
    "nv_gpu_memory_total_bytes": ("Memory of the GPU.", lambda nvml, card: nvml.nvmlDeviceGetMemoryInfo(card).total),
    "nv_gpu_memory_used_bytes": ("Of it, in use.", lambda nvml, card: nvml.nvmlDeviceGetMemoryInfo(card).used),
    "nv_gpu_power_usage": ("Watts.", lambda nvml, card: nvml.nvmlDeviceGetPowerUsage(card) / 1_000),
    "nv_gpu_power_limit": ("Watts.", lambda nvml, card: nvml.nvmlDeviceGetPowerManagementLimit(card) / 1_000),
    "nv_energy_consumption": (
        "Joules since the driver was loaded.",
        lambda nvml, card: nvml.nvmlDeviceGetTotalEnergyConsumption(card) / 1_000,
    ),
}
"""Metrics by name: what each is, and how NVML (percent, milliwatts, millijoules) is asked for it."""


class Gpus:
    """The GPUs of `CUDA_VISIBLE_DEVICES`, which Ray sets for a replica; where nothing set it, the first."""

    def __init__(self) -> None:
        self._nvml: Any = None
        self._found: dict[str, Any] = {}
        try:
            import pynvml

            pynvml.nvmlInit()
            for each in filter(None, os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")):
                ask = pynvml.nvmlDeviceGetHandleByIndex if each.isdigit() else pynvml.nvmlDeviceGetHandleByUUID
                card = ask(int(each) if each.isdigit() else each)
                self._found[pynvml.nvmlDeviceGetUUID(card)] = card
            self._nvml = pynvml
        except Exception as error:  # no package, no library, no driver, no such card
            log.info("no figures of the GPU: %s", type(error).__name__)
            self._found = {}

    def read(self) -> dict[str, dict[str, float]]:
        """`FIGURES` by the card's UUID; without those that a card does not tell."""
        told: dict[str, dict[str, float]] = {uuid: {} for uuid in self._found}
        for uuid, card in self._found.items():
            for name, (_, ask) in FIGURES.items():
                try:
                    told[uuid][name] = float(ask(self._nvml, card))
                except Exception as error:
                    log.debug("%s: %s", name, type(error).__name__)
        return told
