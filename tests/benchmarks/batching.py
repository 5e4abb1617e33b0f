"""Calls that come at random to a device whose batch of n takes a + b·n: our batcher beside Ray Serve's `@serve.batch`.

The device sleeps, so what is measured is when each batch is made and of how many. Calls arrive as they will (Poisson)
and wait for nobody; an answer counts if it comes within the deadline. Serve's is taken with its default wait and with
the wait that does best at the load that it was tuned at; ours has nothing to tune. `make bench` runs it.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from _ring import on_uvloop, show, spread
from ray import serve
from ray.serve.batching import _BatchQueue
from rich.table import Table

from serving.errors import CallError
from serving.execution.batcher import Batcher
from serving.execution.executor import Submission

A_S, B_S, LARGEST = 0.040, 0.0004, 64
CAPACITY = LARGEST / (A_S + B_S * LARGEST)
DEADLINE_S = 5 * (A_S + B_S * LARGEST)
DEFAULT_WAIT_S = 0.01
WAITS_S = (0.0, 0.005, 0.02, 0.04, 0.065)
TUNED_AT = 0.8
LOADS = (0.2, 0.5, 0.8, 1.0, 1.2)
SLICE_S, ROUNDS, LONE_CALLS = 3.0, 3, 20
Call = Callable[[int], Awaitable[int]]

# Outside a replica there is no limit of requests to warn of, and its tasks are ended here.
_BatchQueue._warn_if_max_batch_size_exceeds_max_ongoing_requests = lambda self: None
_BatchQueue.__del__ = lambda self: None


@dataclass(frozen=True, slots=True)
class Stretch:
    """What a load got: answers within the deadline a second, their latencies, and how many a batch held."""

    goodput: float
    latencies_ms: list[float]
    batch: float

    @property
    def p99_ms(self) -> float:
        """99 of 100 answers came as soon."""
        return float(np.percentile(self.latencies_ms, 99)) if self.latencies_ms else float("nan")


class Device:
    """Sleeps a + b·n and gives back what it is given; remembers its batches."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    async def work(self, size: int) -> None:
        self.batches.append(size)
        await asyncio.sleep(A_S + B_S * size)

    async def run(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Our runner's side."""
        await self.work(len(inputs["X"]))
        return {"Y": inputs["X"]}


def ours() -> tuple[Device, Call]:
    """The batcher as it is."""
    device = Device()
    batcher = Batcher(device, LARGEST)

    async def call(number: int) -> int:
        answer = await batcher.submit(Submission({"X": np.array([[number]])}))
        return int(answer.outputs["Y"][0, 0])

    return device, call


def theirs(wait_s: float) -> tuple[Device, Call]:
    """`@serve.batch` around the same device, one batch at a time."""
    device = Device()

    @serve.batch(max_batch_size=LARGEST, batch_wait_timeout_s=wait_s)
    async def call(numbers: list[int]) -> list[int]:
        await device.work(len(numbers))
        return numbers

    return device, call


async def stretch(make: Callable[[], tuple[Device, Call]], load: float, seed: int) -> Stretch:
    """Calls at a share of the capacity for a while, the same arrivals for everybody."""
    device, call = make()
    chance, latencies, tasks = random.Random(seed), [], []

    async def send(number: int) -> None:
        start_s = time.perf_counter()
        try:
            async with asyncio.timeout(DEADLINE_S):
                if await call(number) == number:
                    latencies.append((time.perf_counter() - start_s) * 1000)
        except (TimeoutError, CallError):
            return

    began_s = time.perf_counter()
    due_s = 0.0
    while (due_s := due_s + chance.expovariate(CAPACITY * load)) < SLICE_S:
        if (spare_s := began_s + due_s - time.perf_counter()) > 0:
            await asyncio.sleep(spare_s)
        tasks.append(asyncio.create_task(send(len(tasks))))
    await asyncio.gather(*tasks)
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    return Stretch(len(latencies) / SLICE_S, latencies, statistics.mean(device.batches))


async def lone(make: Callable[[], tuple[Device, Call]]) -> float:
    """Milliseconds of a call that is alone: the median."""
    _, call = make()
    took = []
    for number in range(LONE_CALLS):
        start_s = time.perf_counter()
        await call(number)
        took.append((time.perf_counter() - start_s) * 1000)
    return statistics.median(took)


async def tuned() -> float:
    """The wait that answers most in time at the load that it is tuned at."""
    tried = {}
    for wait_s in WAITS_S:
        stretch_ = await stretch(lambda wait_s=wait_s: theirs(wait_s), TUNED_AT, seed=0)  # type: ignore[misc]
        tried[wait_s] = (stretch_.goodput, -stretch_.p99_ms)
    return max(tried, key=tried.__getitem__)


def row(rounds: Sequence[Sequence[Stretch]]) -> list[str]:
    """Goodput, p99 and batch of each side: medians of rounds."""
    sides = list(zip(*rounds, strict=True))
    cells = []
    for side in sides:
        goodput, p99_ms, batch = (
            statistics.median(getattr(part, name) for part in side) for name in ("goodput", "p99_ms", "batch")
        )
        cells.append(f"{goodput:.0f} / {p99_ms:.0f} / {batch:.1f}")
    ratios = [spread(sides[0].goodput / max(sides[at].goodput, 0.1) for sides in rounds) for at in (1, 2)]
    return cells + ratios


async def main() -> None:
    """Measures and prints the table."""
    # Serve's queues log that their tasks are ended with what nobody waits for any more.
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    wait_s = await tuned()
    makers = (ours, lambda: theirs(DEFAULT_WAIT_S), lambda: theirs(wait_s))
    table = Table(
        *("load", "ours", "default", f"tuned ({wait_s * 1000:.0f} ms)", "ours/default", "ours/tuned"),
        title=f"answers/s within {DEADLINE_S * 1000:.0f} ms / p99 ms / mean batch; capacity {CAPACITY:.0f}/s",
    )
    for load in LOADS:
        rounds = []
        for number in range(ROUNDS):
            order = [0, 1, 2][number % 3 :] + [0, 1, 2][: number % 3]
            got = {at: await stretch(makers[at], load, seed=number) for at in order}
            rounds.append([got[at] for at in range(3)])
        table.add_row(f"{load:.0%}", *row(rounds))
    alone = [await lone(make) for make in makers]
    table.add_row("a lone call", *(f"{milliseconds:.1f} ms" for milliseconds in alone), "", "")
    table.add_row("one run of it", f"{(A_S + B_S) * 1000:.1f} ms", "", "", "", "")
    show(table)


if __name__ == "__main__":
    on_uvloop(main())
