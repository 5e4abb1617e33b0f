"""What metering adds inside a Ray Serve replica behind HAProxy, composed as `leben up` does it, over HTTP.

One replica answers two routes with the same model and the same bytes, voucher header included; the paywall stands open
on one of them. CPU is that of the replica and the store. `make bench` runs it.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from _ring import (
    Echo,
    Slice,
    closed_loop,
    cpu_s,
    doors,
    http_request,
    key,
    lines,
    on_uvloop,
    opened,
    show,
    spread,
    store_cpu_s,
    tensor_body,
    vouchers,
)
from _serve import started
from rich.table import Table

PORT, ROUNDS = 18_700, 5
Run = tuple[Slice, float]
WARM_CALLS = 400


def small() -> Echo:
    """7 bytes in and out."""
    return Echo("UINT8", [7], 7)


def image() -> Echo:
    """An image of 602 KB in, four bytes out."""
    return Echo("FP32", (3, 224, 224), 1)


CASES = {
    "7 B": ("small", small, ((1, 1000), (32, 4000))),
    "602 KB in, 4 B out": ("image", image, ((1, 300), (32, 600))),
}


def twin() -> Any:
    """The deployment: made here, for Ray may be imported only after its settings."""
    from ray import serve
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Mount, Route

    @serve.deployment
    @serve.ingress()
    class Twin:
        async def __init__(self, url: str) -> None:
            self._ring = opened(url)
            store = await self._ring.__aenter__()
            routes: list[Any] = [Route("/pid", lambda request: PlainTextResponse(str(os.getpid())))]
            for name, make, _ in CASES.values():
                dapp = make()
                metered, free = doors(store, dapp, dapp)
                routes += [Mount(f"/{name}/metered", metered), Mount(f"/{name}/open", free)]
            self._app = Starlette(routes=routes)

        def __serve_build_asgi_app__(self) -> Any:
            return self._app

    return Twin.options(max_ongoing_requests=1_000, ray_actor_options={"num_cpus": 0.5})  # type: ignore[attr-defined]


@asynccontextmanager
async def replica(folder: Path) -> AsyncIterator[tuple[str, int]]:
    """A store and one replica, started as a mesh starts them: the store's URL and the replica's process id."""
    with started(folder, PORT) as settings:
        from ray import serve

        serve.run(twin().bind(settings.redis_url()), name="twin", route_prefix="/twin")
        yield settings.redis_url(), await pid()


async def pid() -> int:
    """The replica's process id."""
    import httpx

    async with httpx.AsyncClient() as client:
        return int((await client.get(f"http://127.0.0.1:{PORT}/twin/pid")).text)


class Bench:
    """Calls of one replica's routes, paid from one channel."""

    def __init__(self, url: str, process: int) -> None:
        self._url, self._process = url, process
        self._first = 1

    async def rounds(self, name: str, dapp: Echo, parallel: int, calls: int, number: int) -> list[list[Run]]:
        """Both sides of each round, metered first; they take turns in going first."""
        rounds = []
        for at in range(number):
            headers = vouchers(calls, self._first)
            self._first += calls
            sides = ("metered", "open") if at % 2 else ("open", "metered")
            runs = {side: await self._run(f"/twin/{name}/{side}/infer", dapp, headers, parallel) for side in sides}
            rounds.append([runs["metered"], runs["open"]])
        return rounds

    async def _run(self, path: str, dapp: Echo, headers: list[str], parallel: int) -> Run:
        body, extra = tensor_body(dapp.example()["X"], dapp.inputs[0].datatype)

        def requests() -> Iterator[bytes]:
            for header in headers:
                yield http_request(path, {"payment-signature": header, "idempotency-key": key(), **extra}, body)

        async with lines(PORT, parallel) as callers:
            before_s = cpu_s(self._process) + store_cpu_s(self._url)
            done = await closed_loop(requests(), callers)
            used_s = cpu_s(self._process) + store_cpu_s(self._url) - before_s
        if done.refused:
            raise RuntimeError(f"{done.refused} calls were refused")
        return done, used_s * 1000 / len(headers)


async def main() -> None:
    """Measures and prints the table."""
    table = Table(
        *("body", "in flight", "paid/s", "open/s", "paid/open", "p50 ms added", "CPU ms a call, open", "added"),
        title="in one Ray Serve replica behind HAProxy: median (least to greatest) of rounds",
    )
    with tempfile.TemporaryDirectory(prefix="lb-") as folder:
        async with replica(Path(folder)) as (url, process):
            bench = Bench(url, process)
            for title, (name, make, loads) in CASES.items():
                await bench.rounds(name, make(), 8, WARM_CALLS, 1)
                for parallel, calls in loads:
                    rounds = await bench.rounds(name, make(), parallel, calls, ROUNDS)
                    table.add_row(
                        title,
                        str(parallel),
                        *(f"{statistics.median(r[side][0].rate for r in rounds):.0f}" for side in (0, 1)),
                        spread(r[0][0].rate / r[1][0].rate for r in rounds),
                        spread(r[0][0].p50_ms - r[1][0].p50_ms for r in rounds),
                        f"{statistics.median(r[1][1] for r in rounds):.3f}",
                        spread((r[0][1] - r[1][1] for r in rounds), 3),
                    )
    show(table)


if __name__ == "__main__":
    here = str(Path(__file__).parent)
    # The replica's process imports what is beside this file, and this very tree.
    os.environ["PYTHONPATH"] = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    sys.path.insert(0, here)
    on_uvloop(main())
