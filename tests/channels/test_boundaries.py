"""Amounts at 2^53, the millisecond at which a hold or an answer ends, and many channels at once."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from channels.metering.channel import AMOUNT_LIMIT, Channel, Outcome, admit
from channels.metering.store import Attempt, HoldRequest, LedgerSnapshot
from channels.redis_store import keys
from channels.redis_store.store import RedisStore
from channels.settlement.settler import drain
from tests.channels.life import ANSWER_MS, TTL_MS, body, word32
from tests.channels.twins import SCRIPTS, Twins

CHANNEL = "0x" + "00" * 32
MOST = AMOUNT_LIMIT - 1
EDGES = [0, 1, MOST - 1, MOST, AMOUNT_LIMIT, AMOUNT_LIMIT + 1, 2 * AMOUNT_LIMIT + 1, 2**128 - 1]


def ask(call: str, price: int, maximum: int, keyed: bool = True, token: str = "t") -> HoldRequest:  # noqa: S107
    return HoldRequest(Attempt(CHANNEL, call, token, keyed, "d"), price, maximum, bytes(65), TTL_MS)


def on_twins(url: str, cap: int, balance: int, scene: Callable[[Twins], Awaitable[None]]) -> None:
    async def whole() -> None:
        twins = Twins(url, cap)
        try:
            assert await twins("begin_reconcile", 1) is True
            await twins("mirror", LedgerSnapshot(CHANNEL, balance, 0, False, 0, 1), 1)
            await twins("open_for_service", 1)
            await scene(twins)
            twins.agree([CHANNEL])
        finally:
            await twins.close()

    asyncio.run(whole())


def test_the_largest_balance_is_spent_to_its_last_unit(store_url: str) -> None:
    async def scene(twins: Twins) -> None:
        for call, price in (("most", MOST - 2), ("one", 1), ("last", 1)):
            request = ask(call, price, MOST)
            assert (await twins("hold", request)).outcome is Outcome.ACCEPTED
            result = await twins("charge", request, price, "{}", b"", ANSWER_MS)
            assert result.record.amount == price
        assert (result.charged, result.usable, result.proof_maximum) == (MOST, MOST, MOST)
        assert (await twins("hold", ask("more", 1, MOST))).outcome is Outcome.MISMATCH
        entries = await twins.real.read_journal(keys.bucket(CHANNEL), "0-0", 9)
        assert [int(fields["amount"]) for _, fields in entries] == [MOST - 2, 1, 1]
        assert entries[-1][1]["after"] == str(MOST)

    on_twins(store_url, MOST, MOST, scene)


@pytest.mark.parametrize("keyed", [True, False], ids=["keyed", "stock"])
@pytest.mark.parametrize("balance", [0, 1, MOST])
def test_rule_script_and_memory_say_the_same_at_every_edge(store_url: str, balance: int, keyed: bool) -> None:
    async def scene(twins: Twins) -> None:
        for price, maximum, extra in itertools.product(EDGES, EDGES, EDGES):
            result = await twins("hold", ask("k", price, maximum, keyed), extra, True)
            assert result.outcome is admit(Channel(balance), price, maximum, keyed, MOST, extra), (
                price,
                maximum,
                extra,
            )

    on_twins(store_url, MOST, balance, scene)


@pytest.mark.parametrize("balance", [MOST, AMOUNT_LIMIT, AMOUNT_LIMIT + 1, 2**128 - 1])
def test_a_balance_that_cannot_be_counted_is_used_up_to_where_it_can(store_url: str, balance: int) -> None:
    """A ledger that anybody may pay into can hold more than Lua counts."""

    async def scene(twins: Twins) -> None:
        assert (await twins("hold", ask("k", MOST, MOST))).usable == MOST
        await twins("release", ask("k", MOST, MOST).attempt)
        assert await twins("reserve_refund", CHANNEL, balance, 0, 0, 1) == (
            "ok" if balance == MOST else "exceeds_balance"
        )

    on_twins(store_url, MOST, balance, scene)


@pytest.mark.parametrize(("early_ms", "lives"), [(1, True), (0, False), (-1, False)])
def test_a_hold_and_an_answer_end_at_their_millisecond(store_url: str, early_ms: int, lives: bool) -> None:
    async def scene(twins: Twins) -> None:
        start, request = twins.server.now_ms, ask("k", 10, 100)
        await twins("hold", request)
        twins.server.at(start + TTL_MS - early_ms)
        assert (await twins("hold", ask("ask", 0, 0), 0, True)).held == (10 if lives else 0)
        renewed = await twins("renew", request.attempt, TTL_MS)
        assert renewed.outcome is (Outcome.RENEWED if lives else Outcome.NOT_OWNER)
        start = twins.server.now_ms
        assert (await twins("charge", request, 10, "{}", b"answer", ANSWER_MS)).outcome is Outcome.CHARGED
        twins.server.at(start + ANSWER_MS - early_ms)
        again = await twins("hold", ask("k", 10, 100, token="t2"))
        assert (again.outcome, again.stored) == (Outcome.REPLAYED, b"answer" if lives else None)

    on_twins(store_url, 100, 1_000, scene)


def test_time_is_read_in_one_place() -> None:
    """No step takes a time from its caller: replicas whose clocks differ see one order."""
    texts = {entry.name: entry.read_text() for entry in SCRIPTS.iterdir() if entry.name.endswith(".lua")}
    assert {name: text.count("'TIME'") for name, text in texts.items() if "TIME'" in text} == {"_head.lua": 1}


def test_many_channels_keep_their_money_apart(store_url: str, make_world: Callable[[], Any]) -> None:
    world = make_world()
    identities = []
    for salt in range(130):
        world.open_channel(1_000, salt)
        identities.append(world.identity(salt))
    assert len({keys.bucket(identity) for identity in identities}) > 40

    async def call(store: RedisStore, salt: int, number: int) -> int:
        amount = (salt * 7 + number * 3) % 11
        voucher = world.voucher(1_000, salt)
        name = word32(1 + salt * 100 + number)
        request = HoldRequest(
            Attempt(identities[salt], name, f"t{number}", True, word32(7)), 10, 1_000, voucher.signature
        )
        assert (await store.hold(request)).outcome is Outcome.ACCEPTED
        assert (await store.charge(request, amount, body(amount), b"", ANSWER_MS)).outcome is Outcome.CHARGED
        return amount

    async def scene() -> list[list[int]]:
        stores = [RedisStore(store_url, exposure_cap=1_000) for _ in range(2)]
        try:
            await stores[0].begin_reconcile(world.token)
            await stores[0].open_for_service(world.token)
            for identity in identities:
                await stores[0].mirror(LedgerSnapshot(identity, 1_000, 0, False, 0, 1), world.token)
            salts = range(len(identities))
            charged = await asyncio.gather(
                *(asyncio.gather(*(call(stores[number % 2], salt, number) for number in range(4))) for salt in salts)
            )
            assert await drain(stores[0], world.journal, world.token) == 4 * len(identities)
            return charged
        finally:
            for store in stores:
                await store.close()

    charged = asyncio.run(scene())
    while world.settler().settle(world.token).epoch is not None:
        pass
    for salt, identity in enumerate(identities):
        assert world.journal.channel(identity).charged == sum(charged[salt])
        assert world.ledger.channel(identity).total_claimed == sum(charged[salt])
        assert sorted(receipt.amount for receipt in world.journal.receipts(identity)) == sorted(charged[salt])
    world.ledger.verify()
    world.close()
