"""What Prometheus reads of a running mesh: every name, fed by real calls, and nobody's address in a label."""

from __future__ import annotations

import re
import time

import httpx
import pytest

from channels.payer import ChannelAuth, receipt
from tests.conftest import RunningMesh
from tests.test_mesh import CHDR, samples

OURS = {
    "leben_calls_total",
    "leben_charged_units_total",
    "leben_refused_total",
    "leben_hold_seconds_count",
    "leben_unsettled_units",
    "leben_exposure_units",
    "leben_settlement_lag_seconds",
    "leben_channels_open",
    "leben_channels_quarantined",
    "leben_journal_set_aside",
    "leben_exposure_cap_units",
    "leben_ledger_broken",
    "leben_clock_skew_seconds",
    "leben_batch_fill_ratio_count",
    "leben_gpu_seconds_total",
    "leben_memory_bytes",
}
TRITON = {
    "nv_inference_request_success",
    "nv_inference_request_failure",
    "nv_inference_count",
    "nv_inference_exec_count",
    "nv_inference_request_duration_us",
    "nv_inference_queue_duration_us",
    "nv_inference_compute_input_duration_us",
    "nv_inference_compute_infer_duration_us",
    "nv_inference_compute_output_duration_us",
}
SERVE = {
    "serve_batch_wait_time_ms_count",
    "serve_batch_execution_time_ms_count",
    "serve_actual_batch_size_count",
    "serve_batch_utilization_percent_count",
    "serve_batch_queue_length",
    "serve_batches_processed",
}


def read(mesh: RunningMesh) -> str:
    return httpx.get(f"http://127.0.0.1:{mesh.port + 4}/metrics", timeout=30).raise_for_status().text


def value(text: str, name: str, **labels: str) -> float:
    rows = re.findall(rf"^ray_{name}{{(.*)}} (\S+)$", text, re.M)
    return sum(float(number) for row, number in rows if all(f'{key}="{label}"' in row for key, label in labels.items()))


def missing(text: str) -> set[str]:
    return {name for name in OURS | TRITON | SERVE if not re.search(rf"^ray_{name}(_total)?{{", text, re.M)}


def all_exported(mesh: RunningMesh) -> str:
    """The metrics once a refusal made here is among them: what was counted before it is too."""
    text, until = read(mesh), time.monotonic() + 150
    answer = httpx.post(mesh.url + CHDR, content=b"nothing", headers={"payment-signature": "no payment"})
    code = answer.json()["code"].rpartition("evm_")[2]
    before = value(text, "leben_refused_total", dapp="chdr", reason=code)
    while value(text := read(mesh), "leben_refused_total", dapp="chdr", reason=code) <= before:
        assert time.monotonic() < until, code
        time.sleep(0.5)
    return text


def test_every_metric_is_there_after_a_paid_and_a_refused_call_and_none_names_a_caller(mesh: RunningMesh) -> None:
    wallet = mesh.payer()
    before = all_exported(mesh)
    with httpx.Client(base_url=mesh.url, auth=ChannelAuth(wallet), timeout=120) as client:
        paid = client.post(CHDR, content=samples()[CHDR])
        assert paid.status_code == 200
        assert client.post(CHDR, content=b"no recording").status_code == 422
    until = time.monotonic() + 150
    while time.monotonic() < until:
        text = read(mesh)
        refusals = value(text, "leben_calls_total", dapp="chdr", outcome="refused") > value(
            before, "leben_calls_total", dapp="chdr", outcome="refused"
        )
        # The treasury tells its own figures every few seconds, beside the replicas' and not before them.
        if refusals and not missing(text) and value(text, "leben_channels_open") >= 1:
            break
        time.sleep(0.5)
    else:
        pytest.fail(f"not exported: {sorted(missing(text))}")

    def rose(name: str, **labels: str) -> float:
        return value(text, name, **labels) - value(before, name, **labels)

    assert rose("leben_calls_total", dapp="chdr", outcome="charged") == 1
    assert rose("leben_charged_units_total", dapp="chdr") == receipt(paid).receipt.amount
    assert rose("leben_refused_total", dapp="chdr", reason="payment_required") == 1
    assert rose("leben_gpu_seconds_total", dapp="chdr") > 0
    assert value(text, "leben_clock_skew_seconds") < 2
    names = set(re.findall(r"^ray_(?:leben|nv)_\w+{(.*)} ", text, re.M))
    labels = {label for row in names for label in re.findall(r'(\w+)="', row)}
    assert labels & {"dapp", "outcome", "reason", "model", "version"} == {
        "dapp",
        "outcome",
        "reason",
        "model",
        "version",
    }
    assert wallet.address.lower()[2:] not in text.lower()
    assert not re.search(r"0x[0-9a-fA-F]{40}", text)
