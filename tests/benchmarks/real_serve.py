"""What metering adds inside a Ray Serve replica behind HAProxy, composed as `leben up` does it, over HTTP.

One replica answers two routes with the same model and the same bytes, voucher header included; the paywall stands open
on one of them. CPU is that of the replica and the store. `make bench` runs it.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator
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
from rich.table import Table

from serving import embedded
from serving.app import Mesh
from serving.settings import Settings

PORT, ROUNDS = 18_700, 5
LOADS = ((1, 1000), (32, 4000))
BODY, EXTRA = tensor_body(Echo("UINT8", [7], 7).example()["X"], "UINT8")


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
            dapp = Echo("UINT8", [7], 7)
            self._ring = opened(url)
            metered, free = doors(await self._ring.__aenter__(), dapp, dapp)
            pid = Route("/pid", lambda request: PlainTextResponse(str(os.getpid())))
            self._app = Starlette(routes=[Mount("/metered", metered), Mount("/open", free), pid])

        def __serve_build_asgi_app__(self) -> Any:
            return self._app

    return Twin.options(max_ongoing_requests=1_000, ray_actor_options={"num_cpus": 0.5})


@asynccontextmanager
async def replica(folder: Path) -> AsyncIterator[tuple[str, int]]:
    """A store and one replica, started as a mesh starts them: the store's URL and the replica's process id."""
    settings = Settings(data=folder, port=PORT)
    mesh = Mesh(settings)
    embedded.private_folder(settings.runtime)
    mesh._lock = embedded.Lock(settings.home)
    embedded.keys(settings)
    mesh._valkey = embedded.Valkey(settings)
    try:
        mesh._start_ray()
        from ray import serve

        serve.run(twin().bind(settings.redis_url()), name="twin", route_prefix="/twin")
        yield settings.redis_url(), await pid()
    finally:
        mesh.stop()


async def pid() -> int:
    """The replica's process id."""
    import httpx

    async with httpx.AsyncClient() as client:
        return int((await client.get(f"http://127.0.0.1:{PORT}/twin/pid")).text)


async def main() -> None:
    """Measures and prints the table."""
    table = Table(
        *("in flight", "paid/s", "open/s", "paid/open", "p50 ms added", "CPU ms a call, paid", "open", "added"),
        title="7 B in one Ray Serve replica behind HAProxy: median (least to greatest) of rounds",
    )
    with tempfile.TemporaryDirectory(prefix="lb-") as folder:
        async with replica(Path(folder)) as (url, process):
            first = 1

            async def run(route: str, headers: list[str], parallel: int) -> tuple[Slice, float]:
                todo = [
                    http_request(
                        f"/twin/{route}/infer", {"payment-signature": header, "idempotency-key": key(), **EXTRA}, BODY
                    )
                    for header in headers
                ]
                async with lines(PORT, parallel) as callers:
                    before_s = cpu_s(process) + store_cpu_s(url)
                    done = await closed_loop(todo, callers)
                    used_s = cpu_s(process) + store_cpu_s(url) - before_s
                if done.refused:
                    raise RuntimeError(f"{done.refused} calls were refused")
                return done, used_s * 1000 / len(headers)

            for parallel, calls in ((8, 400), *LOADS):
                rounds = []
                for number in range(ROUNDS if calls != 400 else 1):
                    headers = vouchers(calls, first)
                    first += calls
                    order = ("metered", "open") if number % 2 else ("open", "metered")
                    found = {route: await run(route, headers, parallel) for route in order}
                    rounds.append((found["metered"], found["open"]))
                if calls == 400:  # the first calls are slower on either side
                    continue
                rates = [f"{statistics.median(r[side][0].rate for r in rounds):.0f}" for side in (0, 1)]
                cpu = [spread((r[side][1] for r in rounds), 3) for side in (0, 1)]
                table.add_row(
                    str(parallel),
                    *rates,
                    spread(r[0][0].rate / r[1][0].rate for r in rounds),
                    spread(r[0][0].p50_ms - r[1][0].p50_ms for r in rounds),
                    *cpu,
                    spread((r[0][1] - r[1][1] for r in rounds), 3),
                )
    show(table)


if __name__ == "__main__":
    here = str(Path(__file__).parent)
    # The replica's process imports what is beside this file, and this very tree.
    os.environ["PYTHONPATH"] = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    sys.path.insert(0, here)
    on_uvloop(main())
