"""The store's memory is lost, whole or in part: rebuilt from SQL and ledger, loss and replay at most the cap.

The worst moment is made: the treasury sleeps, so nothing is drained, and payers call until the cap stops them.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx
import pytest
from eth_account import Account
from x402 import x402Client
from x402.http.clients import x402_httpx_transport
from x402.mechanisms.evm.batch_settlement.client import BatchSettlementEvmScheme
from x402.mechanisms.evm.signers import EthAccountSigner

from channels.payer import receipt
from channels.receipts import Receipt
from tests.crashes.children import MOST_ITEMS, PRICE
from tests.crashes.world import FUNDS, Payer, World, eventually, infer

CAP = 2_000
QUOTE = PRICE * MOST_ITEMS


@pytest.fixture
def capped() -> Iterator[World]:
    world = World(exposure_cap=CAP)
    yield world
    world.close()


async def drained(world: World, name: str, charged: int) -> None:
    async def there() -> bool | None:
        copy = world.journal.channel(name)
        return True if copy is not None and copy.charged == charged else None

    await eventually(there, f"{charged} in SQL")


async def until_exposed(payer: Payer, key: str) -> list[str]:
    """Keyed calls until the channel owes as much as it may; the keys that were answered."""
    for number in range(CAP):
        headers = {"Idempotency-Key": f"{key}-{number}", "Content-Type": "application/json"}
        answer = await payer.http.post("/infer", content=infer(3), headers=headers)
        if answer.status_code == 503 and answer.json()["code"] == "exposure":
            assert number, "the cap lets nothing through"
            return [f"{key}-{n}" for n in range(number)]
        assert answer.status_code == 200, answer.text
        payer.answers[f"{key}-{number}"], payer.bodies[f"{key}-{number}"] = answer, infer(3)
    raise AssertionError("the cap was never reached")


def books(world: World, name: str) -> list[Receipt]:
    """A channel's receipts, which add up to what is charged, claimed and paid out, to the unit."""
    copy, on_ledger, stored = world.journal.channel(name), world.ledger.channel(name), world.journal.receipts(name)
    assert copy is not None and on_ledger is not None
    assert [receipt.seq for receipt in stored] == list(range(1, len(stored) + 1))
    assert all(
        receipt.before == before
        for receipt, before in zip(stored, [0, *(receipt.after for receipt in stored)], strict=False)
    )
    assert sum(receipt.amount for receipt in stored) == copy.charged == copy.settled == on_ledger.total_claimed
    assert len({receipt.call_id for receipt in stored}) == len(stored), "a key is charged once"
    world.journal.verify()
    world.ledger.verify()
    return stored


@pytest.mark.parametrize("lost", ["everything", "the newest part"])
def test_a_keyed_payer_goes_on_and_what_is_lost_is_within_the_cap(capped: World, lost: str) -> None:
    async def whole() -> None:
        async with capped.running():
            payer = capped.payer()
            await payer.call("settled")
            await drained(capped, payer.channel.id, PRICE)
            files, older = capped.settings.home / "store", capped.folder / "older"
            # What a fail-over to a late copy, or a file without its tail, comes back with.
            shutil.copytree(files, older)
            await payer.call("drained")
            await drained(capped, payer.channel.id, 2 * PRICE)
            os.kill(capped.children["treasury"].pid, signal.SIGSTOP)
            gone = await until_exposed(payer, "undrained")
            handed = {key: receipt(answer).receipt for key, answer in payer.answers.items()}
            capped.kill_store(lose_files=True, instead=older if lost == "the newest part" else None)
            os.kill(capped.children["treasury"].pid, signal.SIGCONT)

            # Calls go on under new keys, and those that are lost are run and charged once more, once.
            await payer.call("later")
            again = {key: await payer.call(key) for key in gone}
            for key in ("settled", "drained"):
                repeated = await payer.again(key)
                # Its answer is gone or not, by what was lost; its receipt, which SQL has, is told again.
                assert receipt(repeated) == receipt(payer.answers[key])
                if repeated.status_code != 200:
                    assert (repeated.status_code, repeated.json()["code"]) == (410, "answer_expired")
            await capped.ask("settle")
            stored = books(capped, payer.channel.id)

            assert {receipt.call_id for receipt in stored} >= {handed[key].call_id for key in ("settled", "drained")}
            lost_value = sum(handed[key].amount for key in gone if handed[key] not in stored)
            assert 0 < lost_value <= CAP and len(stored) == 3 + len(gone)
            replayed = sum(receipt(answer).receipt.amount for answer in again.values())
            assert replayed <= CAP
            # A number that is on a lost receipt is never on another one of the same memory.
            numbers = {(receipt.incarnation, receipt.seq): receipt for receipt in stored}
            for key in gone:
                old = handed[key]
                assert numbers.get((old.incarnation, old.seq), old) == old
            assert sum(receipt.amount for receipt in stored) <= payer.channel.max_claimable, (
                "no more than was signed for"
            )

    asyncio.run(whole())


def test_a_stock_client_goes_on_with_its_own_ceiling(capped: World) -> None:
    """Its count is ahead of a mesh that forgot; it has no keys, and signs from what it remembers."""

    async def whole() -> None:
        async with capped.running():
            account = Account.create()
            capped.ledger.fund(account.address, FUNDS)
            client = x402Client()
            client.register("eip155:*", BatchSettlementEvmScheme(EthAccountSigner(account)))
            client.set_spend_controls(False)
            transport = x402_httpx_transport(client, capped.transport())
            async with httpx.AsyncClient(transport=transport, base_url="http://mesh", timeout=30) as http:
                answers: list[httpx.Response] = []

                async def call() -> Any:
                    answer = await http.post("/infer", content=infer(3), headers={"Content-Type": "application/json"})
                    if answer.status_code == 503:
                        return None
                    assert answer.status_code == 200, answer.text
                    answers.append(answer)
                    return answer

                async def listening() -> Any:
                    with suppress(httpx.TransportError):
                        return await http.get("/ready")
                    return None

                await eventually(listening, "a replica")
                first = receipt(await eventually(call, "the first call")).receipt
                name = first.channel_id
                await drained(capped, name, PRICE)
                os.kill(capped.children["treasury"].pid, signal.SIGSTOP)
                while await call() is not None:
                    pass
                before = len(answers)
                capped.kill_store(lose_files=True)
                os.kill(capped.children["treasury"].pid, signal.SIGCONT)
                for turn in range(3):
                    await eventually(call, f"call {turn} after the loss")
            await capped.ask("settle")
            stored = books(capped, name)
            handed = [receipt(answer).receipt for answer in answers]
            lost = [receipt for receipt in handed if receipt not in stored]
            assert len(stored) == 4 and len(handed) == before + 3
            assert 0 < sum(receipt.amount for receipt in lost) <= CAP
            on_ledger = capped.ledger.channel(name)
            assert on_ledger is not None and capped.ledger.wallet(account.address) == FUNDS - on_ledger.balance

    asyncio.run(whole())
