"""A model that gives back what it is given, seven numbers as JSON: on a mesh, unmetered and paid, and on other servers.

Each of them is started as its documentation shows it, with one worker and no access log, in an environment of its own
(`make others`), and is sent the body that it reads: the three that speak V2 the same. Raw uvicorn takes turns with
each, and they are compared by way of it. `make bench` runs it.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import orjson
from _mesh import Payer, leben_up
from _ring import closed_loop, http_request, lines, on_uvloop, show, spread
from identity import RAW, child
from rich.table import Table

ROUNDS = 5
SIZES = ((1, 400), (32, 1_500))
PORT = 18_720
ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent / "others"
X = [1, 1, 1, 1, 1, 1, 1]
V2 = {"inputs": [{"name": "X", "datatype": "UINT8", "shape": [1, 7], "data": X}]}
JSON = {"content-type": "application/json"}
Calls = Callable[[int], list[bytes]]
Rates = dict[int, list[tuple[float, float]]]


def same(path: str, body: object) -> Calls:
    """Calls that are all alike."""
    request = http_request(path, JSON, orjson.dumps(body))
    return lambda number: [request] * number


def program(name: str, command: str) -> str:
    """A command of the environment of another server."""
    return str(ROOT / ".others" / name / "bin" / command)


OTHERS: dict[str, tuple[Sequence[str], str, object]] = {
    "LitServe": ((program("litserve", "python"), "echo_litserve.py", f"{PORT}"), "/predict", {"X": X}),
    "BentoML": (
        (program("bentoml", "bentoml"), "serve", "echo_bentoml:Echo", "--host", "127.0.0.1", "--port", f"{PORT}"),
        "/predict",
        {"x": X},
    ),
    "KServe": ((program("kserve", "python"), "echo_kserve.py", f"{PORT}"), "/v2/models/echo/infer", V2),
    "MLServer": ((str(ROOT / ".mlserver/bin/mlserver"), "start", "mlserver"), "/v2/models/echo/infer", V2),
}
"""How each is started, where it answers, and what it is sent."""


@contextmanager
def other(name: str) -> Iterator[Calls]:
    """One of the other servers, once it answers rightly."""
    command, path, body = OTHERS[name]
    ports = {"HTTP_PORT": PORT, "GRPC_PORT": PORT + 1, "METRICS_PORT": PORT + 2, "HOST": "127.0.0.1"}
    ports["PARALLEL_WORKERS"] = 0  # in one process: its workers do not start beside the newest uvloop
    environment = {**os.environ, **{f"MLSERVER_{key}": str(value) for key, value in ports.items()}}
    environment.pop("PYTHONPATH", None)
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command, cwd=HERE, env=environment, stdout=output, stderr=output, start_new_session=True
        )
        try:
            for _ in range(300):
                try:
                    answer = httpx.post(f"http://127.0.0.1:{PORT}{path}", json=body, timeout=10)
                    if answer.status_code == 200 and "1,1,1,1,1,1,1" in answer.text.replace(" ", ""):
                        break
                except httpx.TransportError:
                    pass
                if process.poll() is not None:
                    break
                time.sleep(0.2)
            else:
                raise RuntimeError(f"{name} does not answer as it should")
            if process.poll() is not None:
                output.seek(0)
                raise RuntimeError(f"{name} does not start: {output.read()[-2000:]}")
            yield same(path, body)
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=20)
            with suppress(ProcessLookupError):  # workers that heed nothing, whose port the next one needs
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


async def rate(port: int, requests: list[bytes], parallel: int) -> float:
    """Calls a second, all of them answered."""
    async with lines(port, parallel) as callers:
        done = await closed_loop(requests, callers)
    if done.refused:
        raise RuntimeError(f"{done.refused} of {len(requests)} calls were refused")
    return done.rate


async def beside_raw(port: int, calls: Calls) -> Rates:
    """Rounds of (raw, other) calls a second, by the number in flight; the two take turns in going first."""
    raw = same("/v2/models/echo_small/infer", V2)
    rates: Rates = {parallel: [] for parallel, _ in SIZES}
    for side, make in ((port, calls), (RAW, raw)):
        await rate(side, make(200), 8)
    for number in range(ROUNDS):
        for parallel, size in SIZES:
            by_port: dict[int, float] = {}
            for side, make in ((RAW, raw), (port, calls))[:: 1 if number % 2 else -1]:
                by_port[side] = await rate(side, make(size), parallel)
            rates[parallel].append((by_port[RAW], by_port[port]))
    return rates


def measured() -> dict[str, Rates]:
    """All of them, one at a time."""
    rates = {}
    with child("raw", RAW):
        with leben_up(["echo_small", "echo_paid"]) as mesh:
            rates["ours, unmetered"] = on_uvloop(beside_raw(mesh.port, same("/v2/models/echo_small/infer", V2)))
            payer = Payer(mesh, "echo_paid", body=(orjson.dumps(V2), JSON))
            rates["ours, each call paid"] = on_uvloop(
                beside_raw(mesh.port, lambda number: [payer.request() for _ in range(number)])
            )
        for name in OTHERS:
            with other(name) as calls:
                rates[name] = on_uvloop(beside_raw(PORT, calls))
    return rates


def main() -> None:
    """Measures and prints the table."""
    missing = [name for name, (command, _, _) in OTHERS.items() if not Path(command[0]).exists()]
    if missing:
        sys.exit(f"{', '.join(missing)} are not installed here: make others mlserver")
    servers = measured()
    columns = [
        f"{parallel} in flight: {what}" for parallel, _ in SIZES for what in ("calls/s", "of raw", "ours paid / it")
    ]
    table = Table("server", *columns, title="seven numbers there and back: median (least to greatest) of rounds")
    ratios = {
        name: {parallel: [o / r for r, o in rounds] for parallel, rounds in rates.items()}
        for name, rates in servers.items()
    }
    for name, rates in servers.items():
        row = []
        for parallel, rounds in rates.items():
            paid = statistics.median(ratios["ours, each call paid"][parallel])
            # Each was measured beside raw uvicorn, at another time: so are they compared.
            times = paid / statistics.median(ratios[name][parallel])
            row += [
                f"{statistics.median(o for _, o in rounds):.0f}",
                spread(ratios[name][parallel], 3),
                f"{times:.1f}x",
            ]
        table.add_row(name, *row)
    show(table)


if __name__ == "__main__":
    main()
