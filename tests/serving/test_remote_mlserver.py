"""Checks a remote model on MLServer, a third-party V2 server in an environment of its own: `make mlserver`."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from channels.payer import Wallet
from channels.protocol.signer import Signer
from dapps import Price, Tensor
from serving.errors import CallError, StartError
from serving.execution.executor import Submission
from serving.execution.remote import RemoteExecutor, RemoteModel
from tests.conftest import free_ports
from tests.serving.conftest import replica
from tests.serving.test_remote import Sums

ROOT = Path(__file__).parents[2]
MLSERVER = ROOT / ".mlserver/bin/mlserver"
FIRST, SECOND = np.arange(32, dtype="i4").reshape(2, 16), np.full((2, 16), -1, "i4")


class Priced(Sums):
    price = Price(150, maximum_items=4)


class Wrong(Sums):
    inputs = (Tensor("INPUT0", "FP32", [16]), Tensor("INPUT1", "INT32", [16]))


@pytest.fixture(scope="module")
def mlserver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A running MLServer with one model; its first port, for HTTP. The next one is for gRPC."""
    if not MLSERVER.exists():
        pytest.skip("MLServer is not installed: make mlserver")
    port = free_ports()
    names = {"HTTP_PORT": port, "GRPC_PORT": port + 1, "METRICS_PORT": port + 2, "PARALLEL_WORKERS": 0}
    environment = {**os.environ, "MLSERVER_HOST": "127.0.0.1", **{f"MLSERVER_{key}": str(names[key]) for key in names}}
    environment.pop("PYTHONPATH", None)
    folder = tmp_path_factory.mktemp("mlserver")
    with (folder / "log").open("w") as log:
        command = [str(MLSERVER), "start", str(ROOT / "tests/mlserver")]
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        until_s = time.monotonic() + 240
        while not _ready(port):
            assert process.poll() is None and time.monotonic() < until_s, (folder / "log").read_text()
            time.sleep(0.2)
        yield port
    finally:
        process.terminate()
        process.wait(timeout=30)


def _ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/v2/models/sums/ready").status_code == 200
    except httpx.TransportError:
        return False


def runner(port: int, dapp: Any, scheme: str = "grpc") -> RemoteExecutor:
    at = port + (scheme == "grpc")
    return RemoteExecutor(dapp, RemoteModel.read(f"{scheme}://127.0.0.1:{at}/v2/models/sums"))


def test_paid_calls_are_answered_there(mlserver: int) -> None:
    async def scene() -> None:
        far = runner(mlserver, Priced())
        async with replica(Priced(), remote=far) as bench, bench.client(Wallet(Signer.generate())) as client:
            rows = [
                {"name": name, "datatype": "INT32", "shape": [2, 16], "data": array.ravel().tolist()}
                for name, array in (("INPUT0", FIRST), ("INPUT1", SECOND))
            ]
            answer = await client.post("/infer", json={"inputs": rows})
            assert answer.status_code == 200, answer.text
            outputs = {row["name"]: row["data"] for row in answer.json()["outputs"]}
            assert outputs == {
                "OUTPUT0": (FIRST + SECOND).ravel().tolist(),
                "OUTPUT1": (FIRST - SECOND).ravel().tolist(),
            }
            assert bench.charged() == 300

    asyncio.run(scene())


def test_a_deadline_ends_the_call_there(mlserver: int) -> None:
    async def scene() -> None:
        far = runner(mlserver, Sums())
        await far.start()
        with pytest.raises(CallError) as late:
            await far.submit(Submission({"INPUT0": np.full((1, 16), 99, "i4"), "INPUT1": SECOND[:1]}, timeout_s=0.5))
        assert late.value.code == "deadline"
        await far.close()

    asyncio.run(scene())


def test_what_does_not_fit_and_what_is_refused(mlserver: int) -> None:
    async def scene() -> None:
        with pytest.raises(StartError, match="INPUT0 is INT32 there, and FP32 here"):
            await runner(mlserver, Wrong()).start()
        # MLServer reads no binary tensors over HTTP.
        far = runner(mlserver, Sums(), "http")
        await far.start()
        with pytest.raises(CallError) as refused:
            await far.submit(Submission({"INPUT0": FIRST, "INPUT1": SECOND}))
        assert refused.value.code == "remote_refused" and "utf-8" not in refused.value.message
        await far.close()

    asyncio.run(scene())
