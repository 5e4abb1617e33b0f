"""The processes of the ring: a replica and a treasury, as Ray Serve would start them, on sockets of their own.

Both are the product's classes, put together by their own constructors. Only what Ray would do is done here: start them,
carry HTTP to one, and carry the rare message from one to the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import uvicorn
from pydantic import SecretStr
from ray import serve

from channels import errors
from channels.errors import ChannelError
from channels.ledger.ledger import Terms
from channels.metering.meter import Meter
from channels.metering.quote import Payee, Transfer
from channels.metering.store import ChargeRecord
from channels.protocol.signer import Signer
from channels.protocol.x402 import Payment
from dapps import DApp, Price, Tensor
from dapps.packages import registry
from serving.replica import deployment as replica_module
from serving.replica.deployment import Replica
from serving.replica.spec import ReplicaSpec
from serving.treasury.deployment import Treasury
from serving.treasury.spec import TreasurySpec
from tests.crashes.faults import Points

RECEIVER, AUTHORIZER, RECEIPTS = (Signer(bytes([number] * 32)) for number in (21, 22, 23))
OWNERS = tuple(Signer(bytes([number] * 32)).address for number in (31, 32, 33, 34))
SHARES = tuple(zip(("knowledge", "data", "compute", "operator"), OWNERS, (5_000, 2_000, 2_500, 500), strict=True))
PRICE, MOST_ITEMS = 100, 4
HOLD_TTL_MS = 400
"""Much less than the product's, so that what a dead replica held is soon back."""
ANSWER_S = 2.0
"""A treasury that is silent for so long is asked again: it may be asleep, and another in its place."""
LONG, UNLUCKY = 7, 13


@dataclass(frozen=True)
class Plan:
    """What a child is told: where everything is."""

    folder: Path
    terms: Terms
    store_url: str
    exposure_cap: int

    @property
    def ledger_url(self) -> str:
        return f"sqlite:///{self.folder / 'ledger.db'}"

    @property
    def go(self) -> Path:
        return self.folder / "go"

    def socket(self, process: str) -> str:
        return str(self.folder / f"{process}.sock")

    def points(self, process: str) -> Points:
        return Points(process, self.folder)


class Doubler(DApp):
    """Doubles a vector; refuses 13; takes as long over 7 as it is let."""

    version = "1.0.0"
    inputs = (Tensor("X", "FP32", [2]),)
    outputs = (Tensor("Y", "FP32", [2]),)
    price = Price(PRICE, maximum_items=MOST_ITEMS)
    maximum_batch = 1

    def __init__(self, plan: Plan, points: Points) -> None:
        self._plan, self._points = plan, points

    def load(self, device: str) -> None:
        self._wait = __import__("threading").Event()

    def forward(self, **tensors: Any) -> dict[str, Any]:
        x = tensors["X"]
        if (x == 1).any():  # the example runs before anything is paid
            return {"Y": 2 * x}
        self._points.reach("work.begun")
        while (x == LONG).any() and not self._plan.go.exists():
            self._wait.wait(0.005)
        if (x == UNLUCKY).any():
            raise ValueError("unlucky 13")
        return {"Y": 2 * x}

    def example(self) -> dict[str, Any]:
        import numpy as np

        return {"X": np.array([[1, 2]], dtype="f4")}


def run_replica(plan: Plan, name: str) -> None:
    """A replica process; ends when it is killed."""
    _log_to(plan, name)
    asyncio.run(_replica(plan, name))


def run_treasury(plan: Plan, name: str) -> None:
    """A treasury process; ends when it is killed."""
    _log_to(plan, name)
    asyncio.run(_treasury(plan))


async def _replica(plan: Plan, name: str) -> None:
    points = plan.points(name)
    replica_module.registry = _Registry(plan, points)  # type: ignore[assignment]
    serve.get_deployment_handle = _Handles(plan, points).get_deployment_handle  # type: ignore[assignment]
    replica_module.Meter = partial(Meter, hold_ttl_ms=HOLD_TTL_MS)  # type: ignore[assignment, misc]
    terms = plan.terms
    payee = Payee(
        terms.chain_id,
        terms.asset,
        terms.asset_name,
        terms.asset_version,
        RECEIVER.address,
        AUTHORIZER.address,
        900,
    )
    spec = ReplicaSpec(
        dapp="doubler",
        payee=payee,
        shares=SHARES,
        store_url=SecretStr(plan.store_url),
        receipt_key=SecretStr("17" * 32),
        exposure_cap=plan.exposure_cap,
        abandoned_limit=8,
        deposit_calls=20,
        maximum_body_bytes=100_000,
        torch_threads=1,
    )
    plain = Replica.func_or_class.__mro__[1]  # type: ignore[attr-defined] # the class without Ray's wrapper
    replica = object.__new__(plain)
    await replica.__init__(spec)
    points.wrap_store(replica.store)
    app = replica.__serve_build_asgi_app__()
    config = uvicorn.Config(app, uds=plan.socket(name), log_level="warning", lifespan="off")
    await uvicorn.Server(config).serve()


async def _treasury(plan: Plan) -> None:
    points = plan.points("treasury")
    authorizer, receipts = SecretStr("16" * 32), SecretStr("17" * 32)
    spec = TreasurySpec(
        ledger_url=SecretStr(plan.ledger_url),
        store_url=SecretStr(plan.store_url),
        authorizer_key=authorizer,
        receipt_key=receipts,
        exposure_cap=plan.exposure_cap,
        settle_interval_s=300.0,
        settle_amount=2**40,
    )
    treasury = Treasury.func_or_class(spec, retry_pause_s=0.1)  # type: ignore[attr-defined]
    points.wrap_store(treasury.store)
    points.wrap_commits(treasury.ledger.database)
    points.wrap_commits(treasury.journal.database)
    for owner, method, point in (
        (treasury.journal, "lease", "takeover"),
        (treasury.journal, "acquire", "reconcile.token"),
        (treasury.journal, "remember_channel", "deposit.remember"),
        (treasury.ledger, "deposit", "deposit.ledger"),
        (treasury.transfers.refunds, "begin", "refund.intent"),
        (treasury.ledger, "refund", "refund.ledger"),
        (treasury.transfers.refunds, "end", "refund.end"),
        (treasury.journal, "append", "drain.append"),
        (treasury.settler.epochs, "open", "settle.open"),
        (treasury.ledger, "claim", "settle.claim"),
        (treasury.ledger, "split", "settle.split"),
        (treasury.settler.epochs, "close", "settle.close"),
    ):
        points.wrap_sql(owner, method, point)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        verb, word = orjson.loads(await reader.readline())
        with contextlib.suppress(ChannelError, OSError):  # whoever asked sees no answer, and asks again
            reply: Any
            if verb == "settle":
                reply = await treasury.settle()
            elif verb == "record":
                record = await treasury.record(word)
                reply = ["record", record and asdict(record)]
            else:
                try:
                    moved = await getattr(treasury, verb)(Payment.from_header(word))
                    reply = ["moved", moved.transaction, moved.amount]
                except ChannelError as error:
                    reply = ["refused", type(error).__name__, error.code, error.message]
            writer.write(orjson.dumps(reply) + b"\n")
            await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(answer, plan.socket("treasury"))
    async with server:
        await server.serve_forever()


async def ask_treasury(plan: Plan, verb: str, word: str = "") -> Any:
    """One question to the treasury, as a handle would carry it.

    Raises:
        OSError: it cannot be reached, or died before it answered.
    """
    reader, writer = await asyncio.open_unix_connection(plan.socket("treasury"))
    try:
        writer.write(orjson.dumps([verb, word]) + b"\n")
        async with asyncio.timeout(ANSWER_S):  # a TimeoutError is an OSError
            line = await reader.readline()
    finally:
        writer.close()
    if not line:
        raise ConnectionResetError("the treasury died before it answered")
    return orjson.loads(line)


class _Registry:
    """`dapps.packages.registry` with one DApp, told where its process is to die."""

    def __init__(self, plan: Plan, points: Points) -> None:
        self._plan, self._points = plan, points

    def load(self, name: str) -> DApp:
        return Doubler(self._plan, self._points)

    def public(self, name: str) -> str:
        return registry.public(name)


class _Handles:
    """The one thing that a replica needs from Ray Serve while it runs: a handle of the treasury."""

    def __init__(self, plan: Plan, points: Points) -> None:
        self._plan, self._points = plan, points

    def get_deployment_handle(self, deployment: str, app_name: str) -> _Handles:
        return self

    def __getattr__(self, verb: str) -> Any:
        return _Remote(self._plan, self._points, verb)


class _Remote:
    def __init__(self, plan: Plan, points: Points, verb: str) -> None:
        self._plan, self._points, self._verb = plan, points, verb

    async def remote(self, payment: Payment | str) -> Any:
        self._points.reach(f"{self._verb}.asked")
        word = payment if isinstance(payment, str) else payment.to_header()
        kind, *words = await ask_treasury(self._plan, self._verb, word)
        self._points.reach(f"{self._verb}.answered")
        if kind == "record":
            return ChargeRecord(**words[0]) if words[0] else None
        if kind == "refused":
            raise getattr(errors, words[0])(*words[1:])
        return Transfer(*words)


def _log_to(plan: Plan, process: str) -> None:
    log = os.open(plan.folder / f"{process}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, sys.stderr.fileno())
    os.dup2(log, sys.stdout.fileno())
    logging.basicConfig(level=logging.WARNING, format="%(name)s %(levelname)s %(message)s", force=True)
