"""Our door against the official x402 Python server (FastAPI, its memory store), each on the same uvicorn.

One channel, vouchers signed beforehand, connections that are kept. The official server's facilitator is an object that
accepts one deposit and is not asked again. Ours writes every charge to a Valkey's append-only file, and the CPU of that
Valkey is counted with it. `make bench` runs it.
"""

from __future__ import annotations

import asyncio
import base64
import multiprocessing
import socket
import statistics
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import httpx
import orjson
import uvicorn
from _ring import (
    BALANCE,
    CHAIN,
    MESH,
    PAYEE,
    PAYER,
    PRICE,
    Echo,
    closed_loop,
    config,
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
    valkey,
    vouchers,
)
from fastapi import FastAPI, Request, Response
from rich.table import Table
from starlette.applications import Starlette
from starlette.routing import Mount

from channels.protocol.digests import channel_id
from channels.protocol.x402 import Deposit, Payment

ROUNDS, CALLS, TOGETHER = 5, 600, 32
SLOW_S = 0.05
BODY, EXTRA = tensor_body(Echo("UINT8", [7], 7).example()["X"], "UINT8")


class AcceptsTheDeposit:
    """A facilitator that moves no money: it says yes to a deposit, and the server goes on by itself."""

    async def verify(self, payload: Any, requirements: Any) -> Any:
        """Valid, with the balance that the channel will have."""
        from x402.schemas import VerifyResponse

        state = {"channelId": payload.payload["voucher"]["channelId"], **self._state()}
        return VerifyResponse(is_valid=True, payer=PAYER.address, extra=state)

    async def settle(self, payload: Any, requirements: Any) -> Any:
        """Settled."""
        from x402.schemas import SettleResponse

        facts = {"payer": PAYER.address, "transaction": "0x" + "ab" * 32, "network": PAYEE.network}
        return SettleResponse(success=True, extra={"channelState": self._state()}, **facts)

    def get_supported(self) -> Any:
        """The one scheme."""
        from x402.schemas import SupportedKind, SupportedResponse

        return SupportedResponse(
            kinds=[SupportedKind(x402_version=2, scheme="batch-settlement", network=PAYEE.network)]
        )

    @staticmethod
    def _state() -> dict[str, Any]:
        return {"balance": str(BALANCE), "totalClaimed": "0", "withdrawRequestedAt": 0, "refundNonce": "0"}


def official_app() -> Any:
    """The official server as its documentation shows it, on one cheap and one slow route."""
    from eth_account import Account
    from x402 import x402ResourceServer
    from x402.http.middleware.fastapi import payment_middleware
    from x402.http.types import PaymentOption, RouteConfig
    from x402.mechanisms.evm.batch_settlement.authorizer_signer import LocalAuthorizerSigner
    from x402.mechanisms.evm.batch_settlement.server import (
        BatchSettlementEvmScheme,
        BatchSettlementEvmSchemeServerConfig,
    )
    from x402.schemas import AssetAmount

    signer = LocalAuthorizerSigner(Account.from_key(b"\2" * 32))
    # A channel's state counts as fresh for an hour, so that the facilitator is not asked again within a run.
    settings = BatchSettlementEvmSchemeServerConfig(
        receiver_authorizer_signer=signer, withdraw_delay=PAYEE.withdraw_delay_s, onchain_state_ttl_ms=3_600_000
    )
    server = x402ResourceServer(AcceptsTheDeposit())
    server.register(PAYEE.network, BatchSettlementEvmScheme(MESH.address, settings))
    token = {"name": PAYEE.asset_name, "version": PAYEE.asset_version}
    price = AssetAmount(amount=str(PRICE), asset=PAYEE.asset, extra=token)
    option = PaymentOption("batch-settlement", MESH.address, price, PAYEE.network, 120)
    app = FastAPI()
    app.middleware("http")(payment_middleware({"POST /*": RouteConfig(accepts=option)}, server))

    @app.post("/fast/infer")
    async def fast(request: Request) -> Response:
        return Response(await request.body())

    @app.post("/slow/infer")
    async def slow(request: Request) -> Response:
        await asyncio.sleep(SLOW_S)
        return Response(await request.body())

    return app


def our_app(url: str) -> Any:
    """Our door on the same two routes."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with opened(url, channels=1 + ROUNDS) as store:
            for name, pause_s in (("fast", 0.0), ("slow", SLOW_S)):
                dapp = Echo("UINT8", [7], 7, pause_s)
                app.router.routes.append(Mount(f"/{name}", doors(store, dapp, Sleeper(dapp))[0]))
            yield

    return Starlette(lifespan=lifespan)


class Sleeper:
    """A model beside others: each call sleeps by itself, as a handler of the official server does."""

    def __init__(self, dapp: Echo) -> None:
        self._dapp = dapp

    async def run(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The echo."""
        return await self._dapp.run(inputs)


def serve(build: Callable[..., Any], port: int, *values: str) -> None:
    """A child's whole life."""
    settings = uvicorn.Config(build(*values), port=port, loop="uvloop", http="httptools", log_level="warning")
    on_uvloop(uvicorn.Server(settings).serve())


@contextmanager
def child(build: Callable[..., Any], *values: str) -> Iterator[tuple[int, int]]:
    """A server in a process of its own: its port and its process id."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(build, port, *values), daemon=True)
    process.start()
    until = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            break
        except OSError:
            if not process.is_alive() or time.monotonic() > until:
                raise RuntimeError("the server does not start") from None
            time.sleep(0.1)
    yield port, process.pid or 0
    process.terminate()
    process.join()


def requests(route: str, headers: list[str], keyed: bool) -> list[bytes]:
    """One request a voucher."""
    own = ({"payment-signature": header, **({"idempotency-key": key()} if keyed else {})} for header in headers)
    return [http_request(f"/{route}/infer", {**names, **EXTRA}, BODY) for names in own]


def quote(port: int) -> dict[str, Any]:
    """What a server asks for."""
    answer = httpx.post(f"http://127.0.0.1:{port}/fast/infer", content=BODY, headers=EXTRA)
    accepts: dict[str, Any] = orjson.loads(base64.b64decode(answer.headers["payment-required"]))["accepts"][0]
    return accepts


def deposit(port: int, accepted: dict[str, Any], salt: int) -> None:
    """Opens a channel of the official server; pays for its first call."""
    channel = config(salt)
    first = Payment.from_header(vouchers(1, 1, salt, accepted)[0]).voucher
    moved = Deposit(BALANCE, 0, 2**40, "0x" + "5a" * 32, b"\1" * 65)
    header = Payment("deposit", accepted, channel, first, moved).to_header()
    answer = httpx.post(
        f"http://127.0.0.1:{port}/fast/infer", content=BODY, headers={**EXTRA, "payment-signature": header}
    )
    if answer.status_code != 200:
        raise RuntimeError(
            f"the official server refused {channel_id(CHAIN, channel)}: {answer.status_code} {answer.text}"
        )


async def main() -> None:
    """Measures and prints the table."""
    with valkey() as url, child(official_app) as official, child(our_app, url) as ours:
        accepted = {port: quote(port) for port, _ in (official, ours)}
        for salt in range(1 + ROUNDS):
            deposit(official[0], accepted[official[0]], salt)
        used = {official[0]: 2, ours[0]: 1}

        def signed(port: int, calls: int) -> list[str]:
            used[port] += calls
            return vouchers(calls, used[port] - calls, 0, accepted[port])

        async def run(side: tuple[int, int], parallel: int, keyed: bool) -> tuple[float, float]:
            port, pid = side
            todo = requests("fast", signed(port, CALLS), keyed)
            async with lines(port, parallel) as callers:
                before_s = cpu_s(pid) + (store_cpu_s(url) if side is ours else 0)
                done = await closed_loop(todo, callers)
                used_s = cpu_s(pid) + (store_cpu_s(url) if side is ours else 0) - before_s
            if done.refused:
                raise RuntimeError(f"{done.refused} calls were refused")
            return done.rate, used_s * 1000 / CALLS

        async def together(side: tuple[int, int], salt: int, keyed: bool) -> int:
            port = side[0]
            todo = requests("slow", vouchers(TOGETHER, 2 if side is official else 1, salt, accepted[port]), keyed)
            async with lines(port, TOGETHER) as callers:
                return TOGETHER - (await closed_loop(todo, callers)).refused

        for side in (official, ours):
            await run(side, 1, False)
        rows: list[tuple[float, ...]] = []
        for number in range(ROUNDS):
            alone = {side: await run(side, 1, False) for side in ((ours, official), (official, ours))[number % 2]}
            many = await run(ours, TOGETHER, True)
            served = [await together(side, 1 + number, side is ours) for side in (official, ours)]
            rows.append((*alone[official], *alone[ours], *many, *served))
    columns = list(zip(*rows, strict=True))
    table = Table("x402 batch-settlement server, 7 B", "official", "ours", "ours/official", "bar")
    ratios = [[row[2] / row[0] for row in rows], [row[3] / row[1] for row in rows], [row[4] / row[0] for row in rows]]
    table.add_row(
        "calls/s, one after the other", spread(columns[0], 0), spread(columns[2], 0), spread(ratios[0]), "≥ 2.5"
    )
    table.add_row("server CPU ms a call", spread(columns[1]), spread(columns[3]), spread(ratios[1]), "≤ 0.3")
    many = "calls/s, 32 in flight on one channel (official: one after the other)"
    table.add_row(many, spread(columns[0], 0), spread(columns[4], 0), spread(ratios[2]), "≥ 6")
    table.add_row("  its server CPU ms a call", "", spread(columns[5]), "", "")
    served = [f"{statistics.median(column):.0f} of {TOGETHER}" for column in columns[6:]]
    table.add_row(f"served of {TOGETHER} at once, handler of 50 ms", *served, "", f"{TOGETHER} of {TOGETHER}")
    show(table)


if __name__ == "__main__":
    on_uvloop(main())
