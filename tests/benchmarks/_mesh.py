"""A whole mesh for a benchmark, `leben up` with the DApps of `echo/`, and a payer who signs without an HTTP client."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
from _ring import http_request, key, tensor_body

from channels.payer import ChannelAuth, Wallet
from channels.protocol.digests import voucher_digest
from channels.protocol.signer import Signer
from channels.protocol.x402 import Payment, Voucher
from dapps import DApp

ECHO = Path(__file__).parent / "echo"
LEBEN = str(Path(sys.executable).with_name("leben"))
PORT = 18_900


@dataclass(frozen=True, slots=True)
class RunningMesh:
    """A mesh that answers on `port`."""

    port: int
    data: Path
    process: int

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    def processes(self) -> dict[str, psutil.Process]:
        """Its processes that work on calls, by name."""
        processes = {"leben up": psutil.Process(self.process)}
        for process in psutil.Process(self.process).children(recursive=True):
            words = " ".join(process.cmdline())
            for name in ("ServeReplica:", "haproxy", "valkey", "ServeController", "raylet"):
                if name in words:
                    # Ray adds the method that an actor is at.
                    processes[words.split()[0].removeprefix("ray::").rpartition("/")[2].partition(".")[0]] = process
                    break
        return processes


@contextmanager
def leben_up(names: Sequence[str], port: int = PORT) -> Iterator[RunningMesh]:
    """A mesh with some DApps of `echo/`, in processes of its own."""
    folder = Path(tempfile.mkdtemp(prefix="lb-"))
    path = os.pathsep.join(filter(None, [str(ECHO), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "LEBEN_TRUSTED_DAPPS": ",".join(names)}
    environment |= {"LEBEN_EXPOSURE_CAP": "1000000000", "LEBEN_SETTLE_AMOUNT": "500000000"}
    command = [LEBEN, "up", "--data", str(folder / "data"), "--port", str(port)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        if process.stdout is None or process.stderr is None or not process.stdout.readline().startswith("ready"):
            raise RuntimeError(process.stderr.read() if process.stderr else "no mesh")
        yield RunningMesh(port, folder / "data", process.pid)
    finally:
        process.terminate()
        process.communicate(timeout=150)
        shutil.rmtree(folder, ignore_errors=True)


def example(name: str) -> tuple[bytes, dict[str, str]]:
    """The body of a V2 call of a DApp of `echo/` with its example, and its headers."""
    sys.path.insert(0, str(ECHO))
    import leben_echo

    dapp: DApp = getattr(leben_echo, name.removeprefix("echo_").capitalize())()
    return tensor_body(dapp.example()["X"], dapp.inputs[0].datatype)


class Payer:
    """One channel to a DApp: calls as raw requests, each with a voucher and a key of its own.

    Args:
        mesh: where the DApp is.
        name: the DApp.
        funds: atomic units that go into the channel.
        body: what each call sends, and its headers; None: the DApp's example, as a binary tensor.
    """

    def __init__(
        self,
        mesh: RunningMesh,
        name: str,
        funds: int = 900_000_000,
        body: tuple[bytes, dict[str, str]] | None = None,
    ) -> None:
        wallet = Wallet(Signer.generate())
        wallet.budget.deposit = funds
        fund = [LEBEN, "wallet", "fund", wallet.address, str(funds), "--data", str(mesh.data)]
        subprocess.run(fund, check=True, capture_output=True)
        self._body, self._extra = body or example(name)
        self._path = f"/v2/models/{name}/infer"
        auth = ChannelAuth(wallet)
        with httpx.Client(auth=auth, timeout=60) as client:
            client.post(mesh.url + self._path, content=self._body, headers=self._extra).raise_for_status()
        (self._channel,), (self._quote,) = auth.channels.values(), auth.quotes.values()
        self._signer, self._ceiling = wallet.signer, self._channel.charged
        self.price = int(self._quote["amount"])

    def request(self, **headers: str) -> bytes:
        """The bytes of one more call, which its voucher pays for."""
        channel = self._channel
        self._ceiling += self.price
        signature = self._signer.sign(voucher_digest(channel.chain_id, channel.id, self._ceiling))
        voucher = Voucher(channel.id, self._ceiling, signature)
        signed = Payment("voucher", self._quote, channel.config, voucher).to_header()
        paid: dict[str, Any] = {"payment-signature": signed, "idempotency-key": key()}
        return http_request(self._path, paid | self._extra | headers, self._body)
