"""Serves one DApp on loopback without Ray, money or a store, and restarts when a file changes: `leben dapp serve`.

Routes, batcher and runner are those of a mesh: an author sees what a caller will see, except for the payment.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import traceback
from contextlib import asynccontextmanager, suppress
from multiprocessing import get_context
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

from channels.metering import MemoryStore, Meter, Payee, Quote
from channels.protocol import Signer
from channels.receipts import Part
from dapps import DApp
from dapps.conformance import answer_locally
from dapps.packages import Offer
from serving.cli.console import stopping
from serving.cluster import processes
from serving.device import TorchRunner
from serving.execution import BatchedExecutor, ChildCall, ChildResult, Executor, UnbatchedExecutor
from serving.replica import Door, LiveOffer, Paywall
from serving.replica import Offer as ServedOffer
from serving.telemetry import LocalCounters, Statistics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

JSON = "application/json"
NOBODY, NO_DIGEST = "0x" + "00" * 20, "0x" + "00" * 32
BODY_BYTES = 64 << 20
GRACE_S = 5.0
KINDS = (".py", ".toml", ".yaml", ".json", ".safetensors")
"""Files of a DApp; a log that is written beside them causes no restart."""


def app(name: str, dapp: DApp) -> Starlette:
    """The ASGI application of one DApp with free calls; its start-up loads the model."""
    signer = Signer.generate()
    # A price of 0: the paywall neither asks for a payment nor takes one.
    quote = Quote(Payee(1, NOBODY, "nothing", "1", NOBODY, NOBODY, 900), 0, minimum_deposit=0)
    live = LiveOffer(ServedOffer.of(name, dapp, quote, ()))
    statistics = Statistics(LocalCounters())
    paywall = Paywall(live, Meter(MemoryStore(exposure_cap=1), signer, 1), signer, statistics)
    executor: Executor
    if dapp.calls:
        executor = UnbatchedExecutor(dapp, observe=statistics.executed)
    else:
        executor = BatchedExecutor(TorchRunner(dapp), dapp, dapp.maximum_batch, observe=statistics.executed)
    door = Door(paywall, executor, maximum_body_bytes=BODY_BYTES, children=call_installed)
    prefix = f"/v2/models/{name}"

    async def home(request: Request) -> Response:
        links = {"metadata": prefix, "infer": f"{prefix}/infer", "diagnose": f"{prefix}/diagnose"}
        return Response(orjson.dumps({"dapp": name, "version": dapp.version, "links": links}), 200, media_type=JSON)

    @asynccontextmanager
    async def started(_: Starlette) -> AsyncIterator[None]:
        await executor.start()
        yield
        await executor.close()

    return Starlette(routes=[Route("/", home), Mount(prefix, door.app())], lifespan=started)


async def call_installed(name: str, call: ChildCall) -> ChildResult:
    """Carries a call to the named DApp as it is installed here, which costs nothing."""
    outputs = await asyncio.to_thread(answer_locally, name, call.inputs)
    free = Part(
        depth=1,
        dapp=name,
        version="installed",
        model_digest=NO_DIGEST,
        request_digest=NO_DIGEST,
        result_digest=NO_DIGEST,
        units=0,
        amount=0,
        shares=(),
    )
    return ChildResult(outputs, (free,))


def serve_once(offer: Offer, port: int) -> None:
    """Serves until SIGTERM or SIGINT; prints what is wrong with the author's code, and returns, if it cannot."""
    import uvicorn

    processes.end_with_parent()
    try:
        dapp = offer.load()
    except Exception:  # an author's module may raise anything; the next change starts it again
        traceback.print_exc(limit=-3)
        print("waiting for a change …", file=sys.stderr)
        return
    ready = f"ready http://127.0.0.1:{port}/v2/models/{offer.name}   free of charge; Ctrl-C stops"
    config = uvicorn.Config(app(offer.name, dapp), host="127.0.0.1", port=port, log_level="warning", lifespan="on")

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                print(ready, flush=True)

    with suppress(KeyboardInterrupt):
        Server(config).run()


def watch(offer: Offer, port: int) -> None:
    """Serves in a process of its own until SIGINT or SIGTERM, and replaces it when a file beside the code changes."""
    import watchfiles

    def counts(change: Any, path: str) -> bool:
        return Path(path).suffix in KINDS and "__pycache__" not in Path(path).parts

    # The handlers set an event and raise nothing: an exception between the start of a new process and the assignment of
    # its handle would leave a server that nobody ends, and this process would wait for it for ever.
    stop = stopping()
    server = ServerProcess(offer, port)
    try:
        server.start()
        for changes in watchfiles.watch(offer.folder, watch_filter=counts, stop_event=stop, rust_timeout=500):
            names = ", ".join(sorted({Path(path).name for _, path in changes}))
            print(f"{names} changed: restarting …", file=sys.stderr)
            server.stop()
            if not stop.is_set():
                server.start()
    finally:
        server.stop()


class ServerProcess:
    """The process that serves the DApp; it imports the author's code anew at each start."""

    def __init__(self, offer: Offer, port: int) -> None:
        self._offer, self._port = offer, port
        self._process: SpawnProcess | None = None

    def start(self) -> None:
        """Starts the process."""
        process = get_context("spawn").Process(target=serve_once, args=(self._offer, self._port))
        self._process = process
        process.start()

    def stop(self) -> None:
        """Ends the process: running calls have `GRACE_S`, then it is killed."""
        process, self._process = self._process, None
        if process is None or process.pid is None:
            return
        try:
            process.terminate()
            process.join(GRACE_S)
        finally:  # a second Ctrl-C interrupts the wait
            process.kill()
            process.join()
