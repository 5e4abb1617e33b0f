"""Twice as many paid calls as a DApp can answer, on a whole mesh: what is answered, and how soon the rest is told.

A device that takes 40 ms over eight calls is first called by 32 callers who wait for their answers: what they get is
its capacity. Then it is called at that rate and at twice that rate, by a clock that waits for nobody; every call
carries a voucher. The queue holds 256 rows, so the first second of an overload is not refused: each stretch begins with
three that are not counted. `make bench` runs it.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from _mesh import Payer, RunningMesh, leben_up
from _ring import Line, closed_loop, on_uvloop, show, spread
from rich.table import Table

CONNECTIONS, FILLING = 900, 32
ROUNDS, WARM_S, SLICE_S = 3, 3.0, 6.0


@dataclass(slots=True)
class Told:
    """Milliseconds of the counted calls, by status; answers that came in the counted time."""

    took_ms: dict[int, list[float]] = field(default_factory=dict)
    answered: int = 0

    @property
    def goodput(self) -> float:
        """Answers a second."""
        return self.answered / SLICE_S

    def quantile_ms(self, status: int, percent: int) -> float:
        """So many of 100 calls with this status were told as soon."""
        return float(np.percentile(self.took_ms.get(status, [np.nan]), percent))


async def stretch(payer: Payer, callers: Sequence[Line], rate: float) -> Told:
    """Calls at a rate."""
    counts, idle, tasks = Told(), list(callers), set()
    gc.collect()
    gc.disable()  # a collection here, of a tenth of a second, would be told as the mesh's
    requests = [payer.request() for _ in range(int(rate * (WARM_S + SLICE_S)))]  # signed before the clock runs
    began_s = time.perf_counter()

    async def call(line: Line, request: bytes, due_s: float) -> None:
        start_s = time.perf_counter()
        status = await line(request)
        now_s = time.perf_counter()
        idle.append(line)
        if due_s >= WARM_S:
            counts.took_ms.setdefault(status, []).append((now_s - start_s) * 1000)
        counts.answered += status == 200 and WARM_S <= now_s - began_s < WARM_S + SLICE_S

    for number, request in enumerate(requests):
        due_s = number / rate
        if (spare_s := began_s + due_s - time.perf_counter()) > 0:
            await asyncio.sleep(spare_s)
        task = asyncio.create_task(call(idle.pop(), request, due_s))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    gc.enable()
    return counts


async def measure(mesh: RunningMesh) -> tuple[float, list[tuple[Told, Told]]]:
    """The capacity, and rounds of (1x, 2x)."""
    payer = Payer(mesh, "echo_slow")
    callers = [await Line.open(mesh.port) for _ in range(CONNECTIONS)]
    for _ in range(2):  # the first warms up
        capacity = (await closed_loop([payer.request() for _ in range(600)], callers[:FILLING])).rate
    rounds = []
    for _ in range(ROUNDS):
        rounds.append((await stretch(payer, callers, capacity), await stretch(payer, callers, 2 * capacity)))
    for line in callers:
        await line.close()
    return capacity, rounds


def main() -> None:
    """Measures and prints the table."""
    with leben_up(["echo_slow"]) as mesh:
        capacity, rounds = on_uvloop(measure(mesh))
    table = Table(
        *("", "1x", "2x", "bar"), title=f"{capacity:.0f} calls/s, metered, on a whole mesh: median (least to greatest)"
    )
    once, twice = zip(*rounds, strict=True)
    table.add_row("answers/s", *(spread((load.goodput for load in side), 0) for side in (once, twice)), "")
    table.add_row("answers at 2x / at 1x", "", spread(two.goodput / single.goodput for single, two in rounds), "0.95")
    table.add_row(
        "an answer, p99 ms", *(spread((load.quantile_ms(200, 99) for load in side), 0) for side in (once, twice)), ""
    )
    table.add_row("a refusal, p50 ms", "", spread((load.quantile_ms(429, 50) for load in twice), 1), "")
    table.add_row("a refusal, p99 ms", "", spread((load.quantile_ms(429, 99) for load in twice), 1), "50")
    statuses = [sorted({status for load in side for status in load.took_ms}) for side in (once, twice)]
    table.add_row("statuses", *(", ".join(map(str, codes)) for codes in statuses), "")
    show(table)


if __name__ == "__main__":
    main()
