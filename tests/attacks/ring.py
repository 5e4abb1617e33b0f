"""`Ring`: the whole payment ring in one process: real door, paywall, meter and model, Valkey, treasury and SQL ledger.

Only Ray and the proxy are missing; `tests/test_mesh.py` has those. An attack is sent to it and its state compared.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import orjson
from pydantic import SecretStr
from redis.asyncio import Redis

from channels.ledger.sql_ledger import SqlLedger
from channels.metering.meter import Meter
from channels.metering.quote import Payee, Quote
from channels.payer import ChannelAuth, Wallet
from channels.protocol.signer import Signer
from channels.protocol.x402 import Payment
from channels.redis_store.store import RedisStore
from serving.device.torch_runner import TorchRunner
from serving.execution.batcher import Batcher
from serving.replica import Door, LiveOffer, Offer, Paywall
from serving.treasury.deployment import Treasury
from serving.treasury.spec import TreasurySpec
from tests.serving.conftest import Doubler

GOOD = orjson.dumps({"inputs": [{"name": "X", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]})
CAP = 1_000_000
MESH, RECEIPTS = Signer(b"\2" * 32), Signer(b"\7" * 32)


@dataclass
class Ring:
    """A running ring. `quote` is what its route asks for a call; a call of one item costs 100 of the 400 quoted."""

    app: Any
    quote: Quote
    store_url: str
    redis: Redis
    ledger: SqlLedger
    treasury: Any
    dapp: Doubler
    doors: list[Any] = field(default_factory=list)
    """One more door a replica: all share store and treasury."""

    def client(self, wallet: Wallet | None = None) -> httpx.AsyncClient:
        auth = ChannelAuth(wallet) if wallet else None
        return httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://mesh", auth=auth)

    async def send(
        self,
        payment: Payment | str | None,
        key: str | None = None,
        body: bytes = GOOD,
        method: str = "POST",
        path: str = "/infer",
        door: int = 0,
        more: Iterable[tuple[str, str]] = (),
    ) -> httpx.Response:
        """One request with this payment, to one of the replicas."""
        headers = list(more)
        if payment is not None:
            text = payment if isinstance(payment, str) else payment.to_header()
            headers.append(("PAYMENT-SIGNATURE", text))
        if key is not None:
            headers.append(("Idempotency-Key", key))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(self.doors[door]), base_url="http://mesh") as client:
            return await client.request(method, path, content=body, headers=headers)

    async def state(self) -> dict[str, Any]:
        """Everything that a refusal must leave alone: every key of the store, every row of money, every model run."""
        await self.treasury.keeper.drain()  # so that no entry is on its way
        names = sorted(await self.redis.keys("*"))
        async with self.redis.pipeline(transaction=False) as pipeline:
            for name in names:
                pipeline.dump(name)
            values = await pipeline.execute()
        with self.treasury.journal.read() as conn:
            tables = ("journal_channel", "journal_receipt", "journal_refund")
            rows = {name: conn.exec_driver_sql(f"SELECT * FROM {name}").fetchall() for name in tables}  # noqa: S608
        return {
            "store": dict(zip(names, values, strict=True)),
            "ledger": self.ledger.verify(),
            "journal": rows,
            "runs": list(self.dapp.batches),
        }

    async def charged(self, channel: str) -> int:
        """What the journal says was charged."""
        state = await self.treasury.channel(MESH.address, channel)
        return int(state["charged"]) if state else 0


@asynccontextmanager
async def open_ring(folder: Path, store_url: str, replicas: int = 1, cap: int = CAP) -> AsyncIterator[Ring]:
    """A ring on an emptied store and fresh books."""
    url = f"sqlite:///{folder / 'books.db'}"
    secrets = {name: SecretStr(signer.secret()) for name, signer in (("a", MESH), ("r", RECEIPTS))}
    ledger = SqlLedger.open(url)
    terms = ledger.terms
    spec = TreasurySpec(
        ledger_url=SecretStr(url),
        store_url=SecretStr(store_url),
        authorizer_key=secrets["a"],
        receipt_key=secrets["r"],
        exposure_cap=cap,
        settle_interval_s=3_600.0,
        settle_amount=cap,
    )
    treasury: Any = Treasury.func_or_class(spec)
    token = (terms.asset, terms.asset_name, terms.asset_version)
    payee = Payee(terms.chain_id, *token, MESH.address, MESH.address, 900)

    dapp, owner = Doubler(), Signer(b"\5" * 32).address
    quote = Quote(payee, dapp.price.of(4), minimum_deposit=4_000)
    runner, stores, doors = TorchRunner(dapp), [], []
    await runner.start()
    for _ in range(replicas):
        stores.append(RedisStore(store_url, cap))
        meter = Meter(stores[-1], RECEIPTS, terms.chain_id, treasury.deposit, treasury.refund)
        live = LiveOffer(Offer.of("doubler", dapp, quote, (("knowledge", owner, 10_000),)))
        paywall = Paywall(live, meter, RECEIPTS)
        doors.append(Door(paywall, Batcher(runner, dapp.maximum_batch), maximum_body_bytes=100_000).app())
    redis: Redis = Redis.from_url(store_url)
    async with asyncio.timeout(120):
        await treasury.keeper.opened(None)
    try:
        yield Ring(doors[0], quote, store_url, redis, ledger, treasury, dapp, doors)
    finally:
        await treasury.close()
        for store in stores:
            await store.close()
        await redis.aclose()
        ledger.close()
        runner.close()
