"""Hostile requests against a real ring, and what must hold after every one of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from channels.protocol.x402 import Payment
from tests.attacks.payer import MARK, Payer
from tests.attacks.ring import Ring, open_ring

Scenario = Callable[[Ring], Awaitable[None]]
OnRing = Callable[..., None]


@pytest.fixture
def on_ring(tmp_path: Path, store_url: str, caplog: pytest.LogCaptureFixture) -> Iterator[OnRing]:
    """Runs a scenario on a fresh ring; nothing that was sent may be in the log afterwards."""
    caplog.set_level(logging.DEBUG)
    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)  # the attacker's own client

    def run(scenario: Scenario, **how: Any) -> None:
        async def whole() -> None:
            async with open_ring(tmp_path, store_url, **how) as ring:
                await scenario(ring)

        asyncio.run(whole())

    yield run
    assert MARK not in caplog.text and "maxClaimableAmount" not in caplog.text


def code_of(answer: httpx.Response) -> str:
    """The stable code of a refusal, which is JSON, 4xx, and quotes nothing of what was sent."""
    assert 400 <= answer.status_code < 500, (answer.status_code, answer.text)
    refusal = answer.json()
    assert set(refusal) == {"error", "code"} and refusal["error"] and refusal["code"]
    assert MARK not in answer.text
    if answer.status_code == 402:
        assert answer.headers["payment-required"] and answer.headers["cache-control"] == "no-store"
        assert "payment-response" not in answer.headers, "nothing was settled, so nothing is confirmed"
    return str(refusal["code"]).removeprefix("invalid_batch_settlement_evm_")


async def refused(ring: Ring, payment: Payment | str | None, code: str, says: str = "", **how: Any) -> httpx.Response:
    """Sends it, and asserts that it is refused by this code and that nothing at all has changed."""
    before = await ring.state()
    answer = await ring.send(payment, **how)
    assert code_of(answer) == code, answer.text
    assert says in answer.json()["error"], answer.text
    assert await ring.state() == before, "a refusal changes nothing"
    return answer


async def opened(ring: Ring, amount: int = 10_000, **who: Any) -> Payer:
    """A payer with a channel of this balance, of which one call has been charged: 100."""
    payer = Payer(ring.quote, **who)
    ring.ledger.fund(payer.signer.address, 1_000_000)
    answer = await ring.send(payer.deposit(400, amount), key="opening")
    assert answer.status_code == 200, answer.text
    return payer
