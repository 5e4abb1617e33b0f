"""Checks a DApp priced by device time: the time is charged, at most the quote, and stands in the receipt."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

import httpx
import pytest

from channels.payer import Wallet, receipt
from channels.receipts import Receipt
from dapps import Price
from tests.serving.conftest import CHAIN, Bench, Doubler, replica

FORWARD_S = 0.02


class Slow(Doubler):
    """Holds the device for a while."""

    price = Price(per_gpu_second=1_000_000, maximum=60_000, maximum_items=4)

    def forward(self, **tensors: Any) -> dict[str, Any]:
        time.sleep(FORWARD_S)
        return super().forward(**tensors)


class Dear(Slow):
    """Costs its maximum long before it is done."""

    price = Price(per_gpu_second=10**12, maximum=700, maximum_items=4)


def body(value: float, rows: int = 1) -> dict[str, Any]:
    return {"inputs": [{"name": "X", "datatype": "FP32", "shape": [rows, 2], "data": [value] * 2 * rows}]}


async def call(bench: Bench, client: httpx.AsyncClient, rows: int = 1) -> Receipt:
    answer = await client.post("/infer", json=body(1, rows))
    assert answer.status_code == 200, answer.text
    signed = receipt(answer)
    assert signed.verify(CHAIN, bench.mesh.address)
    return signed.receipt


def test_a_call_pays_for_the_time_that_it_had_the_device(wallet: Wallet) -> None:
    async def run() -> None:
        async with replica(Slow()) as bench, bench.client(wallet) as client:
            charge = await call(bench, client)
            assert charge.units >= FORWARD_S * 1e6
            assert charge.amount == Slow.price.of(charge.units) == bench.charged()
            assert FORWARD_S * 1e6 <= charge.amount <= 60_000 and bench.held() == 0

    asyncio.run(run())


def test_a_batch_is_paid_together(wallet: Wallet) -> None:
    wallet.budget.deposit = 600_000

    async def run() -> None:
        async with replica(Slow()) as bench, bench.client(wallet) as client:
            await call(bench, client)
            bench.dapp.batches.clear()
            receipts = await asyncio.gather(*(call(bench, client) for _ in range(6)))
            # The first is alone with the device and the others share it: the calls of one batch have equal parts of it.
            parts = Counter(charge.units for charge in receipts)
            assert sum(bench.dapp.batches) == 6 > len(bench.dapp.batches) >= len(parts)
            assert sum(charge.units for charge in receipts) >= len(bench.dapp.batches) * FORWARD_S * 1e6

    asyncio.run(run())


@pytest.mark.parametrize("rows", [1, 4])
def test_the_quote_is_the_most(wallet: Wallet, rows: int) -> None:
    async def run() -> None:
        async with replica(Dear()) as bench, bench.client(wallet) as client:
            charge = await call(bench, client, rows)
            assert charge.amount == 700 == bench.charged() and charge.units >= FORWARD_S * 1e6

    asyncio.run(run())


def test_a_failure_took_time_and_costs_nothing(wallet: Wallet) -> None:
    async def run() -> None:
        async with replica(Slow()) as bench, bench.client(wallet) as client:
            assert (await client.post("/infer", json=body(13))).status_code == 500
            assert bench.charged() == 0 and bench.held() == 0

    asyncio.run(run())
