"""What metering adds to a call: the same door, model and headers, with the paywall and without, on a real Valkey.

In one process over ASGI, without HTTP, so that the difference is the paywall's alone: header, signature, hold, charge,
stored answer, receipt. What is left of the ratio behind a real HTTP server is `real_serve.py`'s. `make bench` runs it.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from _ring import (
    CHAIN,
    MESH,
    PRICE,
    QUOTE,
    Echo,
    Slice,
    closed_loop,
    doors,
    key,
    on_uvloop,
    opened,
    paywalls,
    show,
    spread,
    store_cpu_s,
    tensor_body,
    valkey,
    vouchers,
)
from rich.table import Table

from channels.metering.hold import Call
from channels.metering.meter import Meter
from channels.metering.quote import response_header
from channels.metering.store import Attempt, HoldRequest, StepResult
from channels.protocol.x402 import Payment
from channels.redis_store.store import RedisStore
from dapps import DApp, Price, Tensor
from serving.device.torch_runner import TorchRunner
from serving.execution.batcher import Runner
from serving.protocol.exchange import Request, Response, Result
from serving.replica.receipts import ReceiptBody

ROUNDS = 5
IMAGE = (3, 224, 224)
BARS = {"7 B": 0.50, "602 KB in, 4 B out": 0.88, "CNN": 0.97}


class Cnn(DApp):
    """A net of ResNet-18's layers without its shortcuts, random weights: 1.8 GFLOP an image."""

    version = "1.0.0"
    inputs = (Tensor("X", "FP32", list(IMAGE)),)
    outputs = (Tensor("Y", "FP32", [10]),)
    price = Price(PRICE, maximum_items=1)
    maximum_batch = 8

    def load(self, device: str) -> None:
        """Makes the net."""
        import torch
        from torch import nn

        torch.manual_seed(0)
        layers: list[Any] = [nn.Conv2d(3, 64, 7, 2, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
        wide = 64
        for width in (64, 128, 256, 512):
            for _ in range(4):
                layers += [nn.Conv2d(wide, width, 3, 1 if wide == width else 2, 1), nn.ReLU()]
                wide = width
        self._net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10)).to(device).eval()

    def forward(self, **tensors: Any) -> dict[str, Any]:
        """Ten numbers an image."""
        return {"Y": self._net(tensors["X"])}

    def example(self) -> dict[str, Any]:
        """One image."""
        return {"X": np.ones((1, *IMAGE), "f4")}


@dataclass(frozen=True, slots=True)
class Case:
    """A model and a body; how many calls a round makes one at a time and many at once."""

    name: str
    dapp: DApp
    runner: Runner
    batch: int
    loads: tuple[tuple[int, int], ...]


def asgi(app: Any, body: bytes, extra: dict[str, str]) -> Callable[[str], Awaitable[int]]:
    """A caller of an application: takes a payment header, gives the status."""

    async def call(header: str) -> int:
        names = {"payment-signature": header, "idempotency-key": key(), **extra}
        scope = {"type": "http", "method": "POST", "path": "/infer", "raw_path": b"/infer", "query_string": b""}
        scope |= {"headers": [(n.encode(), v.encode()) for n, v in names.items()], "server": ("x", 80)}
        status = 0

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            nonlocal status
            status = message.get("status", status)

        await app({**scope, "scheme": "http"}, receive, send)
        return status

    return call


async def measured(url: str, caller: Callable[[str], Awaitable[int]], headers: list[str], parallel: int) -> Any:
    """A slice of calls and the CPU milliseconds of each, ours and the store's."""
    ours_s, store_s = time.process_time(), store_cpu_s(url)
    done = await closed_loop(headers, [caller] * parallel)
    used_s = time.process_time() - ours_s + store_cpu_s(url) - store_s
    if done.refused:
        raise RuntimeError(f"{done.refused} calls were refused")
    return done, used_s * 1000 / len(headers)


async def compare(url: str, store: RedisStore, case: Case, table: Table, first: int) -> int:
    """Adds a case's rows; returns the number of the first voucher that was not used."""
    array = case.dapp.example()["X"]
    body, extra = tensor_body(array, case.dapp.inputs[0].datatype)
    callers = [asgi(app, body, extra) for app in doors(store, case.dapp, case.runner, case.batch)]
    for parallel, calls in case.loads:
        rounds: list[list[tuple[Slice, float]]] = []
        for number in range(ROUNDS):
            headers = vouchers(calls, first)
            first += calls
            slices = {}
            for side in (0, 1) if number % 2 else (1, 0):
                slices[side] = await measured(url, callers[side], headers, parallel)
            rounds.append([slices[0], slices[1]])
        paid, free = (f"{statistics.median(r[side][0].rate for r in rounds):.0f}" for side in (0, 1))
        ratio = spread(r[0][0].rate / r[1][0].rate for r in rounds)
        late = spread(r[0][0].p50_ms - r[1][0].p50_ms for r in rounds)
        added = spread((r[0][1] - r[1][1] for r in rounds), 3)
        table.add_row(case.name, str(parallel), paid, free, ratio, late, added)
    return first


async def alone(url: str, work: Callable[[int], Any], calls: int) -> tuple[float, float]:
    """Microseconds of wall and of CPU (the store's included) of one piece, called with 0, 1, …, one after the other."""
    ours_s, store_s, wall_s = time.process_time(), store_cpu_s(url), time.perf_counter()
    for number in range(calls):
        answer = work(number)
        if asyncio.iscoroutine(answer):
            await answer
    wall_s = time.perf_counter() - wall_s
    used_s = time.process_time() - ours_s + store_cpu_s(url) - store_s
    return wall_s * 1e6 / calls, used_s * 1e6 / calls


async def split(url: str, store: RedisStore, first: int, calls: int = 400) -> Table:
    """The pieces of a paid call, each alone."""
    dapp = Echo("UINT8", [7], 7)
    paywall, _ = paywalls(store, dapp)
    meter = Meter(store, MESH, CHAIN)
    body, extra = tensor_body(dapp.example()["X"], "UINT8")
    reply = Response(200, body, {"content-type": "application/octet-stream", **extra})
    pieces: dict[str, list[tuple[float, float]]] = {}
    receipts, offer, result = paywall.receipts, paywall.live.offer, Result(reply, 1)

    def body_of(call: Call) -> ReceiptBody:
        return receipts.body(offer, call.digest, result, units=1, amount=PRICE)

    for _ in range(ROUNDS):
        headers = vouchers(calls, first)
        first += calls
        payments = [Payment.from_header(header) for header in headers]
        request = Request("POST", "/infer", "http://mesh/infer", {"payment-signature": headers[0], **extra}, body)
        keyed = [Call(key(), meter.digest(b"call", body)) for _ in range(calls)]
        asks: list[HoldRequest] = []
        for payment, call in zip(payments, keyed, strict=True):
            channel, call_id = payment.voucher.channel_id, meter.digest(b"key", (call.key or "").encode())
            attempt = Attempt(channel, call_id, key(), True, call.digest)
            asks.append(HoldRequest(attempt, PRICE, payment.voucher.max_claimable, payment.voucher.signature))
        fixed = body_of(keyed[0]).to_json()
        charged: list[StepResult] = []

        async def charge(
            number: int, asks: list[HoldRequest] = asks, fixed: str = fixed, into: list[StepResult] = charged
        ) -> None:
            into.append(await store.charge(asks[number], PRICE, fixed, body, 600_000))

        def receipt(number: int, asks: Any = asks, into: Any = charged, keyed: Any = keyed, payments: Any = payments):
            body = body_of(keyed[number])
            body.to_json()
            payment = payments[number]
            receipts.header(payment.voucher.channel_id, into[number].record, body)
            state = (payment.config.payer, payment.voucher.channel_id, into[number])
            response_header(QUOTE, *state, PRICE, payment.voucher.max_claimable, None)

        work = {
            "parse": lambda n, headers=headers: Payment.from_header(headers[n]),
            "verify": lambda n, payments=payments: meter.check(payments[n], QUOTE),
            "digest": lambda n, request=request: receipts.request_digest(request),
            "hold": lambda n, asks=asks: store.hold(asks[n]),
            "charge": charge,
            "receipt": receipt,
        }
        for name, piece in work.items():
            pieces.setdefault(name, []).append(await alone(url, piece, calls))
    table = Table("piece of a paid call, alone", "wall µs", "CPU µs, store included", title="7 B, one after the other")
    for name, rounds in pieces.items():
        table.add_row(name, spread((wall for wall, _ in rounds), 0), spread((cpu for _, cpu in rounds), 0))
    wall, cpu = (sum(statistics.median(r[i] for r in rounds) for rounds in pieces.values()) for i in (0, 1))
    table.add_row("together", f"{wall:.0f}", f"{cpu:.0f}")
    return table


async def main(url: str) -> None:
    """Measures and prints the tables."""
    cnn = Cnn()
    runner = TorchRunner(cnn, "cpu", threads=1)
    await runner.start()
    small, image, both = Echo("UINT8", [7], 7), Echo("FP32", IMAGE, 1), Echo("FP32", IMAGE, 3 * 224 * 224)
    cases = (
        Case("7 B", small, small, 1, ((1, 1500), (32, 3000))),
        Case("602 KB in, 4 B out", image, image, 1, ((1, 200), (32, 400))),
        Case("602 KB in and out", both, both, 1, ((1, 200), (32, 400))),
        Case("CNN", cnn, runner, cnn.maximum_batch, ((1, 30), (16, 64))),
    )
    table = Table(
        *("body", "in flight", "paid/s", "open/s", "paid/open", "p50 ms added", "CPU ms added a call"),
        title="in one process, without HTTP: median (least to greatest) of rounds",
    )
    first = 1
    async with opened(url) as store:
        await measured(
            url, asgi(doors(store, small, small)[0], *tensor_body(small.example()["X"], "UINT8")), vouchers(200), 8
        )
        first += 200
        for case in cases:
            first = await compare(url, store, case, table, first)
        show(table)
        show(await split(url, store, first))
    runner.close()


if __name__ == "__main__":
    with valkey() as url:
        on_uvloop(main(url))
