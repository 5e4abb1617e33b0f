"""A soak in miniature: paid, unpaid, broken and abandoned calls for minutes, and the memory of every process of a mesh.

A leak shows as memory that grows with the calls made. The first third of the time fills caches and pools; after it the
growth is a line fitted through the samples, in MB per 100 000 calls. `--minutes 60` for the whole soak; `make bench`
runs three minutes of it.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections import defaultdict
from contextlib import suppress

import numpy as np
import psutil
from _mesh import Payer, RunningMesh, leben_up
from _ring import Line, http_request, on_uvloop, show
from rich.table import Table

LINES, SAMPLE_S = 8, 5.0
WHOLE_STATUSES = {200, 400, 402}


class Soak:
    """The callers of one mesh, and what was seen of it."""

    def __init__(self, mesh: RunningMesh, seconds: float) -> None:
        self._mesh, self._until_s = mesh, time.monotonic() + seconds
        self.statuses: dict[int, int] = defaultdict(int)
        self.samples: dict[str, list[tuple[int, float]]] = defaultdict(list)
        self.calls = 0

    async def run(self) -> None:
        """Everything at once, until the time is up."""
        payer = Payer(self._mesh, "echo_paid")
        await asyncio.gather(self._watch(), self._hang_up(payer), *(self._call(payer, n) for n in range(LINES)))

    @property
    def _going(self) -> bool:
        return time.monotonic() < self._until_s

    async def _call(self, payer: Payer, number: int) -> None:
        """Paid calls one after the other; one in ten is unpaid, and one in ten is broken."""
        line = await Line.open(self._mesh.port)
        unpaid = http_request("/v2/models/echo_paid/infer", {}, b"{}")
        while self._going:
            kind = (self.calls + number) % 10
            request = unpaid if kind == 0 else payer.request()
            if kind == 1:
                request = request.replace(b'"X"', b'"Z"')
            self.statuses[await line(request)] += 1
            self.calls += 1
        await line.close()

    async def _hang_up(self, payer: Payer) -> None:
        """Callers who go away in the middle of a body."""
        while self._going:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._mesh.port)
            writer.write(payer.request()[:-3])
            await writer.drain()
            await asyncio.sleep(0.2)
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
            del reader

    async def _watch(self) -> None:
        while self._going:
            for name, process in self._mesh.processes().items():
                with suppress(psutil.NoSuchProcess):
                    self.samples[name].append((self.calls, process.memory_info().rss / 1e6))
            left_s = self._until_s - time.monotonic()
            print(f"\r{self.calls} calls, {max(left_s, 0):.0f} s to go ", end="", file=sys.stderr, flush=True)
            await asyncio.sleep(min(SAMPLE_S, max(left_s, 0.01)))
        print(file=sys.stderr)


def main() -> None:
    """Soaks and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=3.0, help="how long")
    minutes = parser.parse_args().minutes
    with leben_up(["echo_paid"]) as mesh:
        soak = Soak(mesh, 60 * minutes)
        on_uvloop(soak.run())
    if strange := set(soak.statuses) - WHOLE_STATUSES:
        raise RuntimeError(f"answers that nobody should get: {sorted(strange)}")
    statuses = ", ".join(f"{count} of {status}" for status, count in sorted(soak.statuses.items()))
    points = ("a third", "two thirds", "the end")
    table = Table(
        "process", *(f"MB at {point}" for point in points), "MB / 100 000 calls", title=f"{minutes:.0f} min: {statuses}"
    )
    for name, samples in sorted(soak.samples.items()):
        if len(samples) < 9:
            continue  # the store's short-lived helpers
        calls, sizes = (np.array(column, float) for column in zip(*samples[len(samples) // 3 :], strict=True))
        slope = np.polyfit(calls, sizes, 1)[0] * 1e5 if len(calls) > 2 else float("nan")
        table.add_row(name, *(f"{sizes[at]:.1f}" for at in (0, len(sizes) // 2, -1)), f"{slope:+.1f}")
    show(table)


if __name__ == "__main__":
    main()
