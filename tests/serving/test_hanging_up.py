"""Checks callers who hang up: a keyed call is finished and charged, an unkeyed one is free, but not without limit."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from channels.metering.channel import ABANDONED_LIMIT, ABANDONED_WINDOW_MS
from channels.payer import ChannelAuth, Wallet
from channels.protocol.digests import voucher_digest
from channels.protocol.x402 import Payment, Voucher
from tests.serving.conftest import replica


class Unkeyed:
    """A stock client's calls: exact ceilings, no Idempotency-Key, on a channel that `wallet` has opened."""

    def __init__(self, auth: ChannelAuth) -> None:
        (self.channel,) = auth.channels.values()
        (self.quote,) = auth.quotes.values()
        self.wallet = auth.wallet

    def headers(self) -> dict[str, str]:
        channel, ceiling = self.channel, self.channel.charged + int(self.quote["amount"])
        signature = self.wallet.signer.sign(voucher_digest(channel.chain_id, channel.id, ceiling))
        paid = Payment("voucher", self.quote, channel.config, Voucher(channel.id, ceiling, signature))
        return {"PAYMENT-SIGNATURE": paid.to_header()}


async def hang_up(bench: Any, client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    """Sends a call and goes away while its model runs."""
    started, release = asyncio.Event(), asyncio.Event()
    runner = bench.runner
    run = runner.run

    async def slowly(inputs: Any) -> Any:
        started.set()
        await release.wait()
        return await run(inputs)

    runner.run = slowly
    call = asyncio.create_task(client.post("/diagnose", content=b"21", headers=headers, auth=None))
    await started.wait()
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    release.set()
    runner.run = run
    while bench.held():
        await asyncio.sleep(0)
    while bench.executor.queue.running:  # the device is finishing what it had begun
        await asyncio.sleep(0)


def test_free_work_by_hanging_up_is_bounded_and_never_charged(wallet: Wallet) -> None:
    now = [0]

    async def scenario(bench: Any) -> None:
        async with bench.client(wallet) as client:
            assert (await client.post("/diagnose", content=b"1")).status_code == 200
            stock = Unkeyed(client.auth)
            for _ in range(ABANDONED_LIMIT):
                await hang_up(bench, client, stock.headers())
            ran = len(bench.dapp.batches)
            refused = await client.post("/diagnose", content=b"2", headers=stock.headers(), auth=None)
            assert (refused.status_code, refused.json()["code"]) == (429, "abandoned")
            assert refused.headers["retry-after"] and len(bench.dapp.batches) == ran, "the device did nothing for it"
            assert (await client.post("/diagnose", content=b"3")).status_code == 200, "a call with a key is served"
            now[0] = ABANDONED_WINDOW_MS
            assert (await client.post("/diagnose", content=b"4", headers=stock.headers(), auth=None)).status_code == 200
        assert bench.charged() == 300

    async def run() -> None:
        async with replica(now_ms=lambda: now[0]) as bench:
            await scenario(bench)

    asyncio.run(run())


@pytest.mark.parametrize("times", [1, ABANDONED_LIMIT + 2])
def test_a_keyed_caller_pays_for_what_it_hangs_up_on(on_replica: Any, wallet: Wallet, times: int) -> None:
    async def scenario(bench: Any) -> None:
        async with bench.client(wallet) as client:
            assert (await client.post("/diagnose", content=b"1")).status_code == 200
            stock = Unkeyed(client.auth)
            for number in range(times):
                await hang_up(bench, client, stock.headers() | {"Idempotency-Key": f"k{number}"})
                stock.channel.charged += 100
        assert bench.charged() == 100 * (times + 1)

    on_replica(scenario)
