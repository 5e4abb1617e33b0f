"""What each optimization of the runner wins on this device, and the whole served path beside the raw loop.

The ladder runs one DApp's forward, numpy in and numpy out, adding one optimization at a time. The served path is a
client in a process of its own, HTTP, the door, the batcher and the runner; the raw loop is the runner's forward alone.
`python tests/benchmarks/gpu.py` prints the tables and writes them into docs/performance.md under the device's name;
`--quick` takes the small nets alone and writes nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import platform
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import uvicorn
from _ring import CHAIN, MESH, PRICE, QUOTE, Slice, closed_loop, http_request, lines, on_uvloop, tensor_body
from rich.console import Console
from torch import nn

from channels.metering import MemoryStore, Meter
from dapps import DApp, Price, Tensor
from dapps.packages import registry
from serving.device.optimizations import NAMES, Forward, tuned
from serving.device.torch_runner import TorchRunner
from serving.execution.batcher import Batcher
from serving.replica import Door, LiveOffer, Offer, Paywall
from serving.telemetry import Execution

PAGE = Path(__file__).parents[2] / "docs" / "performance.md"
BATCHES = (1, 8, 32, 64)
SECONDS = 1.5
IN_FLIGHT = 64
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SERVED = {"cuda": ("tf32", "channels_last", "bf16", "graph", "staged"), "cpu": ("channels_last", "bf16")}[DEVICE]
LADDER = {
    "cuda": [(), *(NAMES[:end] for end in range(1, len(NAMES) + 1)), SERVED],
    "cpu": [(), ("channels_last",), ("channels_last", "bf16"), ("channels_last", "compile")],
}[DEVICE]


class Residual(nn.Module):
    """Two convolutions and a way around them."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inside, outside, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outside),
            nn.ReLU(),
            nn.Conv2d(outside, outside, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outside),
        )
        self.around = nn.Identity() if stride == 1 else nn.Conv2d(inside, outside, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.around(x))


class ResNet(DApp):
    """A net of ResNet-18's size with random weights; its input is FP32 as it is used, 602 KB an image."""

    version = "1.0.0"
    inputs = (Tensor("X", "FP32", [3, 224, 224]),)
    outputs = (Tensor("Y", "FP32", [10]),)
    price = Price(PRICE, maximum_items=1)
    maximum_batch = 64
    precisions = ("bf16", "fp16")
    tolerance = 0.05

    def load(self, device: str) -> None:
        torch.manual_seed(0)
        layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
        wide = 64
        for width in (64, 128, 256, 512):
            layers += [Residual(wide, width, 1 if wide == width else 2), Residual(width, width, 1)]
            wide = width
        self._net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10)).to(device).eval()

    def forward(self, **tensors: Any) -> dict[str, Any]:
        return {"Y": self._net(tensors["X"]).float()}

    def example(self) -> dict[str, Any]:
        return {"X": np.random.default_rng(0).normal(size=(1, 3, 224, 224)).astype("f4")}


class Camera(ResNet):
    """The same net; an image is 150 KB of UINT8 and becomes numbers on the device."""

    inputs = (Tensor("X", "UINT8", [3, 224, 224]),)

    def forward(self, **tensors: Any) -> dict[str, Any]:
        return {"Y": self._net((tensors["X"].float() - 114.0) / 57.0).float()}

    def example(self) -> dict[str, Any]:
        return {"X": np.random.default_rng(0).integers(0, 255, (1, 3, 224, 224), dtype="u1")}


def build(name: str) -> DApp:
    """A DApp of this benchmark, or an installed one."""
    own = {"resnet": ResNet, "camera": Camera}
    return own[name]() if name in own else registry.load(name)


def rate(forward: Forward, batch: dict[str, Any]) -> float:
    """Items a second: the median of what fits into a second and a half."""
    rows, took_s, until = len(next(iter(batch.values()))), [], time.perf_counter() + SECONDS
    while time.perf_counter() < until or len(took_s) < 3:
        began_s = time.perf_counter()
        forward(batch)
        took_s.append(time.perf_counter() - began_s)
    if "staged" not in forward.optimizations:
        return rows / statistics.median(took_s)
    began_s, done, waiting = time.perf_counter(), 0, forward.launch(batch)
    while time.perf_counter() < began_s + SECONDS:
        following = forward.launch(batch)
        waiting()
        waiting, done = following, done + 1
    waiting()
    return rows * (done + 1) / (time.perf_counter() - began_s)


def ladder(name: str) -> Iterator[list[str]]:
    """A row for each set of optimizations: items a second at each batch; what the gate refused is named."""
    dapp = build(name)
    dapp.load("cpu")
    example = dapp.example()
    reference = Forward(dapp, "cpu")(example)
    if DEVICE != "cpu":
        dapp.load(DEVICE)
    for optimizations in LADDER:
        forward = tuned(dapp, DEVICE, optimizations, max(BATCHES), reference)
        off = [f"{optimization} refused" for optimization in optimizations if optimization not in forward.optimizations]
        rates = [rate(forward, {n: np.repeat(a, rows, axis=0) for n, a in example.items()}) for rows in BATCHES]
        yield [name, ", ".join([*forward.optimizations, *off]) or "fp32, eager", *(f"{rate:.1f}" for rate in rates)]


def serve(name: str, optimizations: tuple[str, ...], pipe: Any) -> None:
    """A child's whole life: the raw loop first, then the same runner behind the door."""
    on_uvloop(_serve(name, optimizations, pipe))


async def _serve(name: str, optimizations: tuple[str, ...], pipe: Any) -> None:
    dapp = build(name)
    dapp.price = Price(0, maximum_items=1)  # type: ignore[misc] # unmetered: what is measured is the way to the device
    runner = TorchRunner(dapp, DEVICE, threads=1 if DEVICE == "cpu" else 0, optimizations=optimizations)
    await runner.start()
    item, raw = dapp.example(), {}
    for rows in BATCHES:
        batch, times, until = (
            {n: np.repeat(a, rows, axis=0) for n, a in item.items()},
            [],
            time.perf_counter() + SECONDS,
        )
        while time.perf_counter() < until or len(times) < 3:
            began_s = time.perf_counter()
            await runner.run(batch)
            times.append(time.perf_counter() - began_s)
        raw[rows] = statistics.median(times)
    ran: list[Execution] = []
    batcher = Batcher(runner, dapp.maximum_batch, queue_limit=4 * IN_FLIGHT, observe=ran.append, depth=runner.depth)
    live = LiveOffer(Offer.of(name, dapp, replace(QUOTE, amount=0), ()))
    paywall = Paywall(live, Meter(MemoryStore(1), MESH, CHAIN), MESH)
    app = Door(paywall, batcher, maximum_body_bytes=16 << 20).app()
    server = uvicorn.Server(uvicorn.Config(app, port=0, loop="uvloop", http="httptools", log_level="warning"))
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.05)
    pipe.send((server.servers[0].sockets[0].getsockname()[1], raw))
    while (await asyncio.to_thread(pipe.recv)) == "tell":  # of what ran since the last time
        pipe.send((Counter(batch.rows for batch in ran), sum(batch.took_ns for batch in ran) / 1e9))
        ran.clear()
    server.should_exit = True
    await task


@contextmanager
def child(name: str, optimizations: tuple[str, ...]) -> Iterator[tuple[Any, int, dict[int, float]]]:
    """The served model in a process of its own: its pipe, its port and the raw loop's seconds by batch."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=serve, args=(name, optimizations, theirs), daemon=True
    )
    process.start()
    port, raw = ours.recv()
    yield ours, port, raw
    process.join(30)


async def paced(port: int, request: bytes, calls: int, rate_s: float) -> list[float]:
    """Milliseconds of calls that come at a fixed rate, whether earlier ones were answered or not."""
    free: asyncio.Queue[Any] = asyncio.Queue()
    latencies: list[float] = []

    async def call(at_s: float) -> None:
        await asyncio.sleep(max(0.0, at_s - time.perf_counter()))
        line = await free.get()
        await line(request)
        latencies.append((time.perf_counter() - at_s) * 1000)
        free.put_nowait(line)

    async with lines(port, min(calls, 512)) as some:
        for line in some:
            free.put_nowait(line)
        start_s = time.perf_counter() + 0.1
        await asyncio.gather(*(call(start_s + number / rate_s) for number in range(calls)))
    return latencies


async def load(port: int, request: bytes, calls: int) -> Slice:
    """As fast as it goes, so many in flight."""
    async with lines(port, IN_FLIGHT) as some:
        return await closed_loop([request] * calls, some)


def served(name: str, optimizations: tuple[str, ...]) -> list[str]:
    """A row: the served path against the raw loop."""
    with child(name, optimizations) as (pipe, port, raw):
        best = max(rows / took_s for rows, took_s in raw.items())
        body, headers = tensor_body(build(name).example()["X"], build(name).inputs[0].datatype)
        request = http_request("/infer", headers, body)
        calls = max(2 * IN_FLIGHT, int(best * 5))
        on_uvloop(load(port, request, IN_FLIGHT))  # warm
        received(pipe)
        began_s = time.perf_counter()
        full = on_uvloop(load(port, request, calls))
        took_s = time.perf_counter() - began_s
        sizes, busy_s = received(pipe)
        late = on_uvloop(paced(port, request, max(100, int(0.7 * full.rate * 4)), 0.7 * full.rate))
        pipe.send("done")
    if full.refused:
        raise RuntimeError(f"{full.refused} calls of {name} were refused")
    # What the raw loop would have taken for the very batches that were served, between those that it was measured at.
    raw_s = sum(number * float(np.interp(size, list(raw), list(raw.values()))) for size, number in sizes.items())
    percentiles = np.percentile(late, [50, 99])
    common = ", ".join(f"{size}: {number}" for size, number in sizes.most_common(4))
    return [
        name,
        f"{best:.1f}",
        f"{full.rate:.1f}",
        f"{full.rate / best:.2f}",
        f"{raw_s / took_s:.2f}",
        f"{100 * min(1.0, busy_s / took_s):.0f} %",
        f"{percentiles[0]:.0f}, {percentiles[1]:.0f}",
        f"{1000 * raw_s / sum(sizes.values()):.0f}",
        common,
    ]


def received(pipe: Any) -> tuple[Counter[int], float]:
    """How many batches of each size have run since this was last asked, and for how many seconds."""
    pipe.send("tell")
    counts: tuple[Counter[int], float] = pipe.recv()
    return counts


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def write(device: str, text: str) -> None:
    """Puts the tables of a device in place of those that it had."""
    start, end = f"<!-- gpu.py: {device} -->", f"<!-- end of {device} -->"
    page = PAGE.read_text()
    section = f"{start}\n\n{text}\n\n{end}"
    if start in page:
        page = page[: page.index(start)] + section + page[page.index(end) + len(end) :]
    else:
        page = page.rstrip() + f"\n\n### {device}\n\n{section}\n"
    PAGE.write_text(page)


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the small nets alone; nothing is written")
    quick = parser.parse_args().quick
    device = torch.cuda.get_device_name() if DEVICE == "cuda" else f"CPU, {platform.machine()}, one torch thread"
    if DEVICE == "cpu":
        torch.set_num_threads(1)
    console = Console(width=160)
    rows = []
    for name in ("strokedr", "chdr") if quick else ("resnet", "camera", "strokedr", "chdr"):
        for row in ladder(name):
            console.print(*row, sep="  ")
            rows.append(row)
    climbed = markdown(["model", "optimizations", *(f"items/s at {size}" for size in BATCHES)], rows)
    path = []
    for name in () if quick else ("camera", "resnet"):
        path.append(served(name, SERVED))
        console.print(*path[-1], sep="  ")
    if not quick:
        head = ["model", "raw loop, best", "served", "ratio", "ratio at the same batches", "device busy"]
        head += ["p50, p99 ms at 70 %", "mean batch ms", "batches (rows: how many)"]
        write(device, f"{climbed}\n\n{markdown(head, path)}")


if __name__ == "__main__":
    main()
