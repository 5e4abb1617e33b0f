"""An operator changes a DApp's price, batch and thresholds on a running mesh: no replica is restarted over it."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import httpx
import psutil

from channels.payer import ChannelAuth, receipt
from serving.config import mesh_file
from serving.config.settings import Settings
from tests.conftest import MODELS, RunningMesh

BODY: dict[str, Any] = {"inputs": [{"name": "INPUT0", "datatype": "UINT8", "shape": [1, 3], "data": [1, 2, 3]}]}
NAME = "simple_paid"


def replicas(mesh: RunningMesh) -> set[int]:
    assert mesh.process is not None
    pids = set()
    for process in psutil.Process(mesh.process.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # one that ends while it is looked at is none
            if f"ServeReplica:{NAME}:" in " ".join(process.cmdline()):
                pids.add(process.pid)
    return pids


def followed(mesh: RunningMesh, per_item: int) -> dict[str, Any]:
    until = time.monotonic() + 150
    while time.monotonic() < until:
        row: dict[str, Any] = httpx.get(f"{mesh.url}/v1/dapps/{NAME}", timeout=30).json()
        if row["price"]["perItem"] == str(per_item):
            return row
        time.sleep(0.2)
    raise AssertionError("the mesh has not followed its file")


def test_price_batch_and_thresholds_change_without_a_restart(simple: RunningMesh) -> None:
    settings, before = Settings(data=simple.data, trusted_dapps=frozenset(MODELS.split(","))), replicas(simple)
    path = settings.home / mesh_file.FILE
    original = path.read_bytes() if path.exists() else None
    assert before
    with httpx.Client(auth=ChannelAuth(simple.payer()), timeout=60) as client:

        def called() -> tuple[list[int], int, str]:
            answer = client.post(f"{simple.url}/v2/models/{NAME}/infer", json=BODY)
            assert answer.status_code == 200, answer.text
            paid = receipt(answer).receipt
            return answer.json()["outputs"][0]["data"], paid.amount, paid.model_digest

        first = called()
        assert first[:2] == ([6], 100)
        try:
            mesh_file.change(settings, NAME, price={"per_item": 70}, maximum_batch=2, thresholds={"more": 5})
            row = followed(simple, 70)
            second = called()
            assert second[:2] == ([11], 70) and second[2] == "0x" + row["digest"] != first[2]
            assert row["thresholds"] == {"more": 5.0} and row["versions"][0]["price"]["perItem"] == "70"
            config = httpx.get(f"{simple.url}/v2/models/{NAME}/config").json()
            assert config["max_batch_size"] == 2
        finally:
            mesh_file.change(settings, NAME, price=None, maximum_batch=None, thresholds=None)
        followed(simple, 100)
        assert called() == first
    assert replicas(simple) == before
    if original is not None:
        path.write_bytes(original)
