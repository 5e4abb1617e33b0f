"""Exports one replica's metrics to Prometheus through Ray, which prefixes each name with `ray_`.

Labels are DApp, version, outcome, stable code and GPU. No label identifies a caller, so cardinality is bounded. Names
are those of Triton and Ray Serve where these have one, so that their dashboards show this mesh.
"""

from __future__ import annotations

from collections.abc import Mapping

from ray.serve.metrics import Counter as ServeCounter
from ray.serve.metrics import Gauge as ServeGauge
from ray.serve.metrics import Histogram as ServeHistogram
from ray.util.metrics import Counter, Gauge, Histogram

from serving.telemetry.gpus import READINGS
from serving.telemetry.usage import Execution

HOLD_S = [0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0]
FILL = [0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
SIZES = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0]
TOOK_MS = [0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 60_000]
TRITON = {
    "success.count": ("nv_inference_request_success", 1),
    "fail.count": ("nv_inference_request_failure", 1),
    "inference_count": ("nv_inference_count", 1),
    "execution_count": ("nv_inference_exec_count", 1),
    "success.ns": ("nv_inference_request_duration_us", 1_000),
    "queue.ns": ("nv_inference_queue_duration_us", 1_000),
    "compute_input.ns": ("nv_inference_compute_input_duration_us", 1_000),
    "compute_infer.ns": ("nv_inference_compute_infer_duration_us", 1_000),
    "compute_output.ns": ("nv_inference_compute_output_duration_us", 1_000),
}
"""Triton's name of each counter of `Statistics`, and its divisor."""
CHARGED = "charged.units"
DEVICE = "device.ns"
CALLS, REFUSED = "calls.", "refused."


class Metrics:
    """One replica's metrics.

    Args:
        dapp: its name on the mesh.
        version: the version that it serves.
        maximum_batch: rows of a full batch.
    """

    def __init__(self, dapp: str, version: str, maximum_batch: int) -> None:
        self._maximum_batch = maximum_batch
        self._dapp = {"dapp": dapp}
        self._model = {"model": dapp, "version": version}
        self._function = {"function_name": dapp}
        self._triton = {
            field: Counter(name, _as_triton(name), ("model", "version")) for field, (name, _) in TRITON.items()
        }
        self._calls = Counter(
            "leben_calls_total", "Calls by outcome: charged, replayed, free, refused, failed.", ("dapp", "outcome")
        )
        self._refused = Counter("leben_refused_total", "Calls that cost nothing, by stable code.", ("dapp", "reason"))
        self._charged = Counter("leben_charged_units_total", "Atomic units of the asset charged.", ("dapp",))
        self._device = Counter("leben_gpu_seconds_total", "Seconds for which batches had the device.", ("dapp",))
        self._hold = Histogram("leben_hold_seconds", "Time to set a call's price aside.", HOLD_S, ("dapp",))
        self._fill = Histogram("leben_batch_fill_ratio", "Rows of a batch, of the most it can have.", FILL, ("dapp",))
        self._memory = Gauge("leben_memory_bytes", "Memory that a replica has, of its device's.", ("dapp",))
        self._gpus = {name: Gauge(name, meaning, ("gpu_uuid",)) for name, (meaning, _) in READINGS.items()}
        tags = ("function_name",)
        self._wait = ServeHistogram("serve_batch_wait_time_ms", "Mean wait of a batch's calls.", TOOK_MS, tags)
        self._took = ServeHistogram("serve_batch_execution_time_ms", "Time to run a batch.", TOOK_MS, tags)
        self._size = ServeHistogram("serve_actual_batch_size", "Calls in a batch.", SIZES, tags)
        percents = [100 * part for part in FILL]
        self._used = ServeHistogram("serve_batch_utilization_percent", "How full a batch was.", percents, tags)
        self._queue = ServeGauge("serve_batch_queue_length", "Rows that wait for the device.", tags)
        self._batches = ServeCounter("serve_batches_processed", "Batches that ran.", tags)

    def count(self, deltas: Mapping[str, int]) -> None:
        """Adds what was counted since the last call."""
        for field, delta in deltas.items():
            if delta <= 0:
                continue
            if field in TRITON:
                self._triton[field].inc(delta / TRITON[field][1], self._model)
            elif field.startswith(CALLS):
                self._calls.inc(delta, self._dapp | {"outcome": field.removeprefix(CALLS)})
            elif field.startswith(REFUSED):
                self._refused.inc(delta, self._dapp | {"reason": field.removeprefix(REFUSED)})
            elif field == CHARGED:
                self._charged.inc(delta, self._dapp)
            elif field == DEVICE:
                self._device.inc(delta / 1e9, self._dapp)

    def executed(self, execution: Execution) -> None:
        """Observes a batch that ran."""
        full = min(1.0, execution.rows / self._maximum_batch)
        self._fill.observe(full, self._dapp)
        self._used.observe(100 * full, self._function)
        self._size.observe(execution.calls, self._function)
        self._wait.observe(execution.queued_ns / execution.calls / 1e6, self._function)
        self._took.observe(execution.took_ns / 1e6, self._function)
        self._batches.inc(1, self._function)

    def waiting(self, rows: int) -> None:
        """Sets how many rows wait for the device."""
        self._queue.set(rows, self._function)

    def held(self, took_s: float) -> None:
        """Observes how long it took to hold a call's price, or to refuse the hold."""
        self._hold.observe(took_s, self._dapp)

    def memory(self, used_bytes: int) -> None:
        """Sets how many bytes of its device's memory the replica uses."""
        self._memory.set(used_bytes, self._dapp)

    def gpus(self, readings: Mapping[str, Mapping[str, float]]) -> None:
        """Sets the readings of the replica's GPUs by UUID, see `Gpus.read`; Ray exports a value once it is set."""
        for uuid, values in readings.items():
            for name, value in values.items():
                self._gpus[name].set(value, {"gpu_uuid": uuid})


def _as_triton(name: str) -> str:
    return f"As Triton's {name}."
