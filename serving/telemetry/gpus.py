"""Reads counters of this process's GPUs from NVML, under Triton's names and in Triton's units.

Counters are those of a whole GPU; a replica's own use of it is `leben_memory_bytes`. Without NVML, or a counter the GPU
lacks, the metric is omitted: metrics never stop a replica. NVML needs no CUDA context, which would cost the replica of
each isolated DApp half a gigabyte.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

log = logging.getLogger("leben.gpus")
READINGS: dict[str, tuple[str, Callable[[Any, Any], float]]] = {
    "nv_gpu_utilization": (
        "Part of the time for which the GPU was busy, 0 to 1.",
        lambda nvml, gpu: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100,
    ),
    "nv_gpu_memory_total_bytes": ("Memory of the GPU.", lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).total),
    "nv_gpu_memory_used_bytes": ("Of it, in use.", lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).used),
    "nv_gpu_power_usage": ("Watts.", lambda nvml, gpu: nvml.nvmlDeviceGetPowerUsage(gpu) / 1_000),
    "nv_gpu_power_limit": ("Watts.", lambda nvml, gpu: nvml.nvmlDeviceGetPowerManagementLimit(gpu) / 1_000),
    "nv_energy_consumption": (
        "Joules since the driver was loaded.",
        lambda nvml, gpu: nvml.nvmlDeviceGetTotalEnergyConsumption(gpu) / 1_000,
    ),
}
"""Metrics by name: the help text, and how to read it from NVML (percent, milliwatts, millijoules)."""


class Gpus:
    """The GPUs in `CUDA_VISIBLE_DEVICES`, which Ray sets for a replica; without that variable, the first."""

    def __init__(self) -> None:
        self._nvml: Any = None
        self._handles: dict[str, Any] = {}
        try:
            import pynvml

            pynvml.nvmlInit()
            for name in filter(None, os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")):
                by_index, by_uuid = pynvml.nvmlDeviceGetHandleByIndex, pynvml.nvmlDeviceGetHandleByUUID
                gpu = by_index(int(name)) if name.isdigit() else by_uuid(name)
                self._handles[pynvml.nvmlDeviceGetUUID(gpu)] = gpu
            self._nvml = pynvml
        except Exception as error:  # no package, no library, no driver, no such GPU
            log.info("no figures of the GPU: %s", type(error).__name__)
            self._handles = {}

    def read(self) -> dict[str, dict[str, float]]:
        """The values of `READINGS` by the GPU's UUID, without those that a GPU lacks."""
        readings: dict[str, dict[str, float]] = {uuid: {} for uuid in self._handles}
        for uuid, gpu in self._handles.items():
            for name, (_, reading) in READINGS.items():
                try:
                    readings[uuid][name] = float(reading(self._nvml, gpu))
                except Exception as error:
                    log.debug("%s: %s", name, type(error).__name__)
        return readings
