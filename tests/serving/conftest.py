"""A whole DApp replica without Ray: the real door, paywall, meter, batcher and runner over a store in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import pytest

from channels.errors import LedgerError
from channels.metering.memory_store import MemoryStore
from channels.metering.meter import Meter
from channels.metering.quote import Payee, Quote, Transfer
from channels.metering.store import LedgerSnapshot
from channels.payer import ChannelAuth, Wallet
from channels.protocol.signer import Signer
from channels.protocol.x402 import Payment
from dapps import ClinicalFile, DApp, Finding, IntakeRefused, Price, Report, Tensor
from serving.cli.dev_server import call_installed
from serving.execution import BatchedExecutor, Executor, UnbatchedExecutor
from serving.replica import Door, LiveOffer, Offer, Paywall
from serving.replica.deployment import runner_of
from serving.telemetry.statistics import LocalCounters, Statistics

CHAIN = 31337
OWNER = Signer(b"\5" * 32).address
PAYEE = Payee(
    CHAIN,
    "0xDe70000000000000000000000000000000000001",
    "Dev Dollar",
    "1",
    Signer(b"\2" * 32).address,
    Signer(b"\3" * 32).address,
    900,
)


class Doubler(DApp):
    """Doubles a vector; refuses 13, whatever it is asked."""

    version = "1.0.0"
    inputs = (Tensor("X", "FP32", [2]),)
    outputs = (Tensor("Y", "FP32", [2]),)
    price = Price(100, maximum_items=4)
    maximum_batch = 4

    def load(self, device: str) -> None:
        self.batches: list[int] = []

    def forward(self, **tensors: Any) -> dict[str, Any]:
        x = tensors["X"]
        self.batches.append(len(x))
        if (x == 13).any():
            raise ValueError("unlucky 13")
        return {"Y": 2 * x}

    def example(self) -> dict[str, Any]:
        return {"X": np.array([[1, 2]], dtype="f4")}

    def intake(self, file: ClinicalFile) -> dict[str, Any]:
        try:
            return {"X": np.array([[float(file.data), 0]], dtype="f4")}
        except ValueError as error:
            raise IntakeRefused("unreadable", "this is not a number") from error

    def report(self, outputs: dict[str, Any]) -> Report:
        return Report("doubled", (Finding("y", "twice", True, float(outputs["Y"][0, 0]), unit=""),))

    def sample(self) -> ClinicalFile:
        return ClinicalFile(b"21")


@dataclass
class Bench:
    """One replica and what it is made of."""

    app: Any
    store: MemoryStore
    mesh: Signer
    dapp: Any
    deposits: list[Payment]
    door: Door
    live: LiveOffer
    executor: Any
    refuse_deposits: bool = False

    @property
    def runner(self) -> Any:
        """The device of a replica that batches."""
        return self.executor.runner

    def client(self, wallet: Wallet | None = None) -> httpx.AsyncClient:
        auth = ChannelAuth(wallet) if wallet else None
        return httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://mesh", auth=auth)

    def charged(self) -> int:
        return sum(int(entry["amount"]) for entry in self.store.journal)

    def held(self) -> int:
        return sum(account.state.held for account in self.store.accounts.values())


@asynccontextmanager
async def replica(
    dapp: DApp | None = None,
    maximum_body_bytes: int = 100_000,
    name: str = "doubler",
    children: Any = call_installed,
    remote: Any = None,
    queue_limit: int = 256,
    now_ms: Callable[[], int] | None = None,
) -> AsyncIterator[Bench]:
    """A replica of the doubler, or of another DApp, quoted at what one call costs at most."""
    clock = {} if now_ms is None else {"now_ms": now_ms}
    dapp, mesh, store = dapp or Doubler(), Signer(b"\7" * 32), MemoryStore(exposure_cap=1_000_000, **clock)
    await store.open_for_service(1)
    deposits: list[Payment] = []

    async def deposit(payment: Payment) -> Transfer:
        assert payment.deposit is not None
        if bench.refuse_deposits:
            raise LedgerError("invalid_batch_settlement_evm_insufficient_balance", "the wallet holds too little")
        deposits.append(payment)
        channel = payment.voucher.channel_id
        total = sum(p.deposit.amount for p in deposits if p.deposit and p.voucher.channel_id == channel)
        await store.mirror(LedgerSnapshot(channel, total, 0, False, 0, len(deposits)), 1)
        return Transfer("0x" + "ab" * 32, payment.deposit.amount)

    meter = Meter(store, mesh, CHAIN, deposit)
    quote = Quote(PAYEE, dapp.price.max_price, minimum_deposit=4_000)
    owner = OWNER if name == "doubler" else Signer(name.encode().ljust(32, b"\1")).address
    shares = (("knowledge", owner, 5_000), ("data", owner, 2_000), ("compute", owner, 2_500), ("operator", owner, 500))
    live = LiveOffer(Offer.of(name, dapp, quote, shares))
    paywall = Paywall(live, meter, mesh, Statistics(LocalCounters()))
    executor: Executor
    if remote is not None:
        executor = remote
    elif dapp.calls:
        executor = UnbatchedExecutor(dapp, observe=paywall.statistics.executed)
    else:
        executor = BatchedExecutor(
            runner_of(dapp),
            dapp,
            dapp.maximum_batch,
            observe=paywall.statistics.executed,
            queue_limit=queue_limit,
        )
    await executor.start()
    door = Door(paywall, executor, maximum_body_bytes=maximum_body_bytes, children=children, remote=remote is not None)
    bench = Bench(door.app(), store, mesh, dapp, deposits, door, live, executor)
    try:
        yield bench
    finally:
        await executor.close()


Scenario = Callable[[Bench], Awaitable[None]]


@pytest.fixture
def on_replica() -> Callable[[Scenario], None]:
    """Runs a scenario against a fresh replica."""

    def run(scenario: Scenario) -> None:
        async def whole() -> None:
            async with replica() as bench:
                await scenario(bench)

        asyncio.run(whole())

    return run


@pytest.fixture
def wallet() -> Wallet:
    return Wallet(Signer.generate())
