"""A model that gives back what it is given, unmetered, on a whole mesh: beside raw uvicorn and beside stock Ray Serve.

Between them, the raw server's application in a replica of Ray Serve that is started as a mesh starts it: no mesh can do
better, for nothing of ours is in the way of those calls. All are sent the same bytes by the same client on the same
machine. Raw uvicorn takes turns with each of the others, so that a ratio is of one stretch of time.
`make bench` runs it.
"""

from __future__ import annotations

import asyncio
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
from _mesh import example, leben_up
from _ring import closed_loop, http_request, lines, on_uvloop, show, spread
from _serve import started
from rich.table import Table

ROUNDS = 5
RAW, STOCK, BARE = 18_880, 18_890, 18_700
CASES = {
    "echo_small": ("7 B", ((1, 800), (32, 3_000)), (0.25, 0.15)),
    "echo_image": ("602 KB in and out", ((1, 200), (32, 400)), (0.8, 0.3)),
    "echo_glance": ("602 KB in, 4 B out", ((1, 200), (32, 400)), (0.8, 0.3)),
}
FEW = {1: 100, 32: 160}
"""Stock Serve is sent fewer calls: it takes longer over each."""


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """The least that an ASGI application can do: the body back, or its first four bytes."""
    if scope["type"] != "http":
        return
    body, more = bytearray(), True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    answer = bytes(body[-4:] if "glance" in scope["path"] else body)
    headers = [(b"content-type", b"application/octet-stream"), (b"content-length", str(len(answer)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


def serve_raw() -> None:
    """Raw uvicorn, as fast as it goes."""
    import uvicorn

    uvicorn.run(echo, port=RAW, log_level="error", loop="uvloop", http="httptools", lifespan="off")


def serve_stock() -> None:
    """Ray Serve as its documentation starts it."""
    import ray
    from ray import serve
    from starlette.requests import Request
    from starlette.responses import Response

    @serve.deployment
    class Echo:
        async def __call__(self, request: Request) -> Response:
            body = await request.body()
            return Response(body[-4:] if "glance" in request.url.path else body)

    ray.init(include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"port": STOCK})
    serve.run(Echo.bind(), name="echo", route_prefix="/v2/models")  # type: ignore[attr-defined]
    signal.pause()


def serve_bare() -> None:
    """The raw server's application behind a mesh's HAProxy, in a replica as a mesh's are."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    with tempfile.TemporaryDirectory(prefix="lb-") as folder, started(Path(folder), BARE):
        from ray import serve

        @serve.deployment
        @serve.ingress()
        class Bare:
            def __serve_build_asgi_app__(self) -> Any:
                return echo

        bare = Bare.options(max_ongoing_requests=1_000, ray_actor_options={"num_cpus": 0.5})  # type: ignore[attr-defined]
        serve.run(bare.bind(), name="echo", route_prefix="/v2/models")
        signal.pause()


@contextmanager
def child(role: str, port: int) -> Iterator[int]:
    """This program in another role, once it answers."""
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__)), role], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(600):
            try:
                if httpx.get(f"http://127.0.0.1:{port}/v2/models/echo_glance/infer").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            if process.poll() is not None:
                raise RuntimeError(f"{role} does not start")
            time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait(timeout=60)


async def rate(port: int, name: str, parallel: int, calls: int) -> float:
    """Calls a second, all of them answered."""
    body, extra = example(name)
    request = http_request(f"/v2/models/{name}/infer", extra, body)
    async with lines(port, parallel) as callers:
        done = await closed_loop([request] * calls, callers)
    if done.refused:
        raise RuntimeError(f"{done.refused} calls were refused")
    return done.rate


async def warm(port: int, name: str, calls: int) -> None:
    """Calls that are not counted; again from the first if the proxy, which is reloaded once, closed a connection."""
    while True:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            await rate(port, name, 8, calls)
            return


async def beside_raw(
    port: int, few: Mapping[int, int] | None = None, rounds: int = ROUNDS
) -> dict[tuple[str, int], list[tuple[float, float]]]:
    """Rounds of (raw, other) calls a second, by case; the two take turns in going first."""
    rates: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for name in CASES:
        await warm(port, name, 48 if few else 200)
        await warm(RAW, name, 200)
    for number in range(rounds):
        for name, (_, sizes, _) in CASES.items():
            for parallel, calls in sizes:
                by_port: dict[int, float] = {}
                for side in (RAW, port) if number % 2 else (port, RAW):
                    by_port[side] = await rate(side, name, parallel, few[parallel] if few and side == port else calls)
                rates.setdefault((name, parallel), []).append((by_port[RAW], by_port[port]))
    return rates


def main() -> None:
    """Measures and prints the table."""
    with child("raw", RAW):
        with leben_up(list(CASES)) as mesh:
            ours = on_uvloop(beside_raw(mesh.port))
        with child("bare", BARE):
            bare = on_uvloop(beside_raw(BARE, rounds=3))
        with child("stock", STOCK):
            stock = on_uvloop(beside_raw(STOCK, FEW, rounds=3))
    table = Table(
        *("body", "in flight", "raw/s", "ours/s", "ours/raw", "bar", "bare/raw", "stock/s", "ours/stock"),
        title="an identity model, unmetered: median (least to greatest) of rounds",
    )
    for (name, parallel), rounds in ours.items():
        title, _, bars = CASES[name]
        raw_rate, our_rate = (statistics.median(pair[side] for pair in rounds) for side in (0, 1))
        other = statistics.median(pair[1] for pair in stock[name, parallel])
        # All were measured beside raw uvicorn, at different times: so are they compared.
        times = statistics.median(o / r for r, o in rounds) / statistics.median(o / r for r, o in stock[name, parallel])
        ratio, most = (spread(o / r for r, o in pairs) for pairs in (rounds, bare[name, parallel]))
        rates = (f"{raw_rate:.0f}", f"{our_rate:.0f}", ratio, f"{bars[parallel > 1]}", most, f"{other:.0f}")
        table.add_row(title, str(parallel), *rates, f"{times:.1f}")
    show(table)


if __name__ == "__main__":
    {"raw": serve_raw, "stock": serve_stock, "bare": serve_bare}.get(sys.argv[-1], main)()
