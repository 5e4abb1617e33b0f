"""Steps of many calls in one script have the same effect as each alone, in the order in which they were taken."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from channels.errors import NotReady
from channels.metering.channel import Outcome
from channels.metering.store import Attempt, ChannelSnapshot, HoldRequest, LedgerSnapshot
from channels.redis_store.pipeline import MAX_BYTES, MAX_STEPS
from channels.redis_store.store import RedisStore
from tests.channels.twins import Twins
from tests.examples import examples

CHANNELS = ("0x" + "00" * 32, "0x" + "00" * 31 + "01")
UNKNOWN = "0x" + "00" * 31 + "02"
BALANCE, CAP, TTL_MS, ANSWER_MS = 100, 60, 6_000, 600_000

asks = st.builds(
    lambda channel, call, token, keyed, digest, price, maximum: HoldRequest(
        Attempt(channel, call if keyed else f"stock {call}", token, keyed, digest),
        price,
        maximum,
        bytes([maximum]) * 65,
        TTL_MS,
    ),
    st.sampled_from([*CHANNELS, CHANNELS[0], UNKNOWN]),
    st.sampled_from(["a", "b", "c"]),
    st.sampled_from(["t", "t", "u"]),
    st.sampled_from([True, True, False]),
    st.sampled_from(["d", "d", "e"]),
    st.integers(0, 30),
    st.integers(0, BALANCE + 20),
)
steps = st.one_of(
    st.tuples(st.just("hold"), asks),
    st.tuples(st.just("hold"), asks),
    st.tuples(st.just("charge"), asks, st.integers(0, 30), st.just("{}"), st.just(b"answer"), st.just(ANSWER_MS)),
    st.tuples(st.just("release"), asks.map(lambda ask: ask.attempt), st.booleans()),
    st.tuples(st.just("renew"), asks.map(lambda ask: ask.attempt), st.sampled_from([1, TTL_MS])),
)
turns = st.lists(st.tuples(st.lists(steps, min_size=1, max_size=8), st.sampled_from([0, 1, TTL_MS])), max_size=6)


def stock(token: str, digest: str, price: int = 0, maximum: int = 0) -> HoldRequest:
    """A call without a key on the first channel; all of them have one call id."""
    return HoldRequest(Attempt(CHANNELS[0], "stock a", token, False, digest), price, maximum, bytes(65), TTL_MS)


RENEWED_FOR_ANOTHER_REQUEST = [
    ([("hold", stock("t", "d"))], 0),
    ([("renew", stock("t", "e").attempt, TTL_MS)], 0),
]
HELD_BY_TWO_ATTEMPTS = [([("hold", stock("t", "d", 10, 10)), ("hold", stock("u", "d", 10, 20))], 0)]


@settings(max_examples=examples(200), suppress_health_check=list(HealthCheck))
@given(turns=turns, lossy=st.booleans())
@example(turns=RENEWED_FOR_ANOTHER_REQUEST, lossy=False)
@example(turns=HELD_BY_TWO_ATTEMPTS, lossy=False)
def test_steps_together_are_steps_in_order(turns: list[Any], lossy: bool, store_url: str) -> None:
    async def scene() -> None:
        twins = Twins(store_url, CAP)
        try:
            await twins("begin_reconcile", 1)
            for channel in CHANNELS:
                await twins("mirror", LedgerSnapshot(channel, BALANCE, 0, False, 0, 1), 1)
                if lossy:
                    await twins("restore", ChannelSnapshot(channel, 10, 3, 20, bytes(65)), 1)
            await twins("open_for_service", 1)
            for taken, wait_ms in turns:
                await twins.together(*taken)
                twins.agree(CHANNELS)
                twins.server.at(twins.server.now_ms + wait_ms)
        finally:
            await twins.close()

    asyncio.run(scene())


def keyed(call: str, maximum: int, price: int = 1) -> HoldRequest:
    return HoldRequest(Attempt(CHANNELS[0], call, "t", True, "d"), price, maximum, bytes(65), TTL_MS)


async def opened(url: str) -> RedisStore:
    store = RedisStore(url, exposure_cap=10**6)
    await store.begin_reconcile(1)
    await store.mirror(LedgerSnapshot(CHANNELS[0], 10**6, 0, False, 0, 1), 1)
    await store.open_for_service(1)
    return store


def test_more_steps_and_more_bytes_than_one_script_takes_are_all_taken(store_url: str) -> None:
    async def scene() -> None:
        store = await opened(store_url)
        calls = [keyed(f"c{number}", 10_000) for number in range(2 * MAX_STEPS + 3)]
        assert {result.outcome for result in await asyncio.gather(*map(store.hold, calls))} == {Outcome.ACCEPTED}
        answers = [b"x" * (MAX_BYTES // 3)] * len(calls)
        charges = (
            store.charge(request, 1, "{}", answer, ANSWER_MS) for request, answer in zip(calls, answers, strict=True)
        )
        results = await asyncio.gather(*charges)
        assert [result.charged for result in results] == list(range(1, len(calls) + 1))
        await store.close()

    asyncio.run(scene())


def test_a_full_store_refuses_the_hold_and_takes_the_charge_beside_it(store_url: str) -> None:
    """A hold refused for want of memory must not fail the charge beside it: that work would be unpaid."""

    async def scene() -> None:
        store = await opened(store_url)
        first, second = keyed("first", 100), keyed("second", 100)
        await store.hold(first)
        limit = (await store.client.config_get("maxmemory"))["maxmemory"]
        await store.client.config_set("maxmemory", 1)
        try:
            taken = (store.hold(second), store.charge(first, 1, "{}", b"answer", ANSWER_MS))
            refused, charged = await asyncio.gather(*taken, return_exceptions=True)
        finally:
            await store.client.config_set("maxmemory", limit)
        assert isinstance(refused, NotReady) and refused.code == "store_unavailable"
        assert not isinstance(charged, BaseException) and charged.outcome is Outcome.CHARGED
        assert (await store.hold(second)).held == 1, "nothing is left of the refused hold"
        await store.close()

    asyncio.run(scene())


@pytest.mark.parametrize("gone", ["hold", "charge"])
def test_a_caller_who_leaves_fails_no_other_call(gone: str, store_url: str) -> None:
    async def scene() -> None:
        store = await opened(store_url)
        first, second = keyed("first", 100), keyed("second", 100)
        await store.hold(first)
        left = store.hold(keyed("third", 100)) if gone == "hold" else store.charge(first, 1, "{}", b"a", ANSWER_MS)
        tasks = [asyncio.create_task(left), asyncio.create_task(store.hold(second))]
        await asyncio.sleep(0)
        tasks[0].cancel()
        assert (await tasks[1]).outcome is Outcome.ACCEPTED
        await store.close()

    asyncio.run(scene())
