"""Both stores give the same results for the same steps, and no order of steps breaks an invariant of money."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from channels.errors import NotReady
from channels.metering.channel import ABANDONED_WINDOW_MS, Outcome
from channels.metering.memory_store import MemoryStore
from channels.metering.store import Attempt, ChannelSnapshot, HoldRequest, LedgerSnapshot
from channels.redis_store import keys, script_loader
from channels.redis_store.store import MAX_CALLS_RESTORED, RedisStore
from tests.examples import examples

CHANNEL = "0x" + "ab" * 32
CAP = 50


def ask(
    call: str, token: str, price: int, maximum: int, keyed: bool = True, digest: str = "d", ttl_ms: int = 60_000
) -> HoldRequest:
    return HoldRequest(Attempt(CHANNEL, call, token, keyed, digest), price, maximum, bytes(65), ttl_ms)


async def opened(store: RedisStore | MemoryStore, balance: int = 1_000) -> None:
    assert await store.begin_reconcile(1)
    await store.mirror(LedgerSnapshot(CHANNEL, balance, 0, False, 0, 1), 1)
    await store.open_for_service(1)
    assert not await store.begin_reconcile(1)


def with_redis(url: str, scenario: Callable[[RedisStore], Coroutine[Any, Any, None]], cap: int = CAP) -> None:
    async def run() -> None:
        store = RedisStore(url, exposure_cap=cap)
        try:
            await scenario(store)
        finally:
            await store.close()

    asyncio.run(run())


STEP = st.tuples(
    st.sampled_from(["hold", "charge", "release", "renew"]),
    st.sampled_from(["k1", "k2", "k3"]),
    st.sampled_from(["t1", "t2"]),
    st.integers(0, 12),
    st.integers(0, 60),
    st.booleans(),
    st.sampled_from(["d1", "d2"]),
)


@settings(max_examples=examples(150), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEP, max_size=25), balance=st.integers(0, 60))
def test_redis_and_memory_agree_and_keep_the_invariants(
    steps: list[tuple[str, str, str, int, int, bool, str]], balance: int, store_url: str
) -> None:
    async def scenario(store: RedisStore) -> None:
        await store.client.flushall()
        twin = MemoryStore(exposure_cap=CAP)
        await opened(store, balance)
        await opened(twin, balance)
        total, charged_calls = 0, set()
        for verb, call, token, price, maximum, keyed, digest in steps:
            # An unkeyed call's id is drawn afresh for each attempt, so it is never shared with a keyed one.
            name = call if keyed else f"{call}-{token}-{digest}"
            request = ask(name, token, price, maximum, keyed, digest)
            if verb == "hold":
                answers = [await s.hold(request) for s in (store, twin)]
            elif verb == "charge":
                answers = [await s.charge(request, price // 2, "{}", b"answer", 60_000) for s in (store, twin)]
            elif verb == "release":
                answers = [await s.release(request.attempt) for s in (store, twin)]
            else:
                answers = [await s.renew(request.attempt, 60_000) for s in (store, twin)]
            real, model = answers
            assert (real.outcome, real.charged, real.held, real.usable, real.proof_maximum, real.stored) == (
                model.outcome, model.charged, model.held, model.usable, model.proof_maximum, model.stored
            ), (verb, name)  # fmt: skip
            if real.outcome is Outcome.CHARGED:
                assert name not in charged_calls
                charged_calls.add(name)
                assert real.record is not None
                total += real.record.amount
            assert real.charged == total
            assert real.charged + real.held <= min(real.usable, CAP) or not (real.charged + real.held)
            assert real.charged <= real.proof_maximum
        journal = await store.read_journal(CHANNEL_BUCKET, "0-0", 1_000)
        assert sum(int(fields["amount"]) for _, fields in journal) == total
        assert [int(fields["seq"]) for _, fields in journal] == list(range(1, len(journal) + 1))

    with_redis(store_url, scenario)


CHANNEL_BUCKET = 0xAB % 64


@pytest.mark.parametrize("parallel", [2, 32, 256])
def test_many_keyed_calls_in_flight_are_served_as_far_as_the_ceiling_covers(store_url: str, parallel: int) -> None:
    async def scenario(store: RedisStore) -> None:
        other = RedisStore(store_url, exposure_cap=10**9)
        await opened(store, 10**6)
        covered = parallel // 2
        requests = [ask(f"c{i}", f"t{i}", 10, min(10 * (i + 1), 10 * covered)) for i in reversed(range(parallel))]
        answers = await asyncio.gather(
            *(s.hold(request) for request, s in zip(requests, [store, other] * parallel, strict=False))
        )
        await other.close()
        accepted = [a for a in answers if a.outcome is Outcome.ACCEPTED]
        assert len(accepted) == covered
        assert {a.outcome for a in answers} <= {Outcome.ACCEPTED, Outcome.MISMATCH}

    with_redis(store_url, scenario, cap=10**9)


def test_one_key_on_two_replicas_runs_once_and_is_charged_once(store_url: str) -> None:
    async def scenario(store: RedisStore) -> None:
        await opened(store)
        first, second = ask("k", "t1", 10, 10), ask("k", "t2", 10, 10)
        results = await asyncio.gather(store.hold(first), store.hold(second))
        assert sorted(a.outcome for a in results) == [Outcome.ACCEPTED, Outcome.IN_PROGRESS]
        owner = first if results[0].outcome is Outcome.ACCEPTED else second
        thief = second if owner is first else first
        assert (await store.charge(thief, 10, "{}", b"x", 1_000)).outcome is Outcome.REFUSED
        assert (await store.release(thief.attempt)).outcome is Outcome.NOT_OWNER
        assert (await store.charge(owner, 10, "{}", b"mine", 60_000)).outcome is Outcome.CHARGED
        again = await store.hold(thief)
        assert (again.outcome, again.stored, again.charged) == (Outcome.REPLAYED, b"mine", 10)
        other = await store.hold(ask("k", "t3", 10, 20, digest="else"))
        assert other.outcome is Outcome.OTHER_REQUEST

    with_redis(store_url, scenario)


def test_a_reply_that_comes_too_late_is_never_taken_for_another_calls(store_url: str) -> None:
    async def run() -> None:
        store = RedisStore(store_url, exposure_cap=CAP, timeout_s=0.1)
        await opened(store)
        await store.hold(ask("first", "t", 10, 10))
        with redis.Redis.from_url(store_url) as client:
            client.execute_command("CLIENT", "PAUSE", "400", "ALL")
            with pytest.raises(NotReady):
                await store.hold(ask("late", "t", 10, 20))  # its reply would be "accepted"
            client.ping()  # answered after the pause
        assert (await store.hold(ask("uncovered", "t", 40, 20))).outcome is Outcome.MISMATCH
        assert (await store.hold(ask("late", "t", 10, 20))).outcome is Outcome.ACCEPTED
        await store.close()

    asyncio.run(run())


def test_an_expired_answer_is_gone_but_its_key_never_runs_again(store_url: str) -> None:
    async def scenario(store: RedisStore) -> None:
        await opened(store)
        request = ask("k", "t", 10, 10)
        await store.hold(request)
        await store.charge(request, 10, "{}", b"answer", 1)
        await asyncio.sleep(0.02)
        again = await store.hold(ask("k", "t2", 10, 30))
        assert (again.outcome, again.stored, again.charged) == (Outcome.REPLAYED, None, 10)
        assert again.record is None, "little is kept for ever"

    with_redis(store_url, scenario)


def test_an_expired_hold_gives_its_amount_back_and_may_be_charged_late_only_while_covered(store_url: str) -> None:
    async def scenario(store: RedisStore) -> None:
        await opened(store)
        slow = ask("slow", "t", 10, 10, ttl_ms=1)
        await store.hold(slow)
        await asyncio.sleep(0.02)
        assert (await store.renew(slow.attempt, 1_000)).outcome is Outcome.NOT_OWNER
        quick = await store.hold(ask("quick", "t", 10, 10))
        assert (quick.outcome, quick.held) == (Outcome.ACCEPTED, 10)
        assert (await store.charge(slow, 10, "{}", b"", 1)).outcome is Outcome.REFUSED
        await store.hold(ask("more", "t", 10, 40))
        assert (await store.charge(slow, 10, "{}", b"", 1)).outcome is Outcome.CHARGED

    with_redis(store_url, scenario)


def test_a_stock_client_that_lost_an_answer_gets_it_again(store_url: str) -> None:
    async def scenario(store: RedisStore) -> None:
        await opened(store)
        first = ask("u1", "t1", 10, 10, keyed=False, digest="same")
        await store.hold(first)
        await store.charge(first, 7, "{}", b"answer", 60_000)
        again = await store.hold(ask("u2", "t2", 10, 10, keyed=False, digest="same"))
        assert (again.outcome, again.stored) == (Outcome.REPLAYED, b"answer")
        fresh = await store.hold(ask("u3", "t3", 10, 10, keyed=False, digest="another"))
        assert fresh.outcome is Outcome.MISMATCH

    with_redis(store_url, scenario)


def test_a_zero_charge_lets_the_same_ceiling_pay_again(store_url: str) -> None:
    async def scenario(store: RedisStore) -> None:
        await opened(store)
        first = ask("u1", "t1", 10, 10, keyed=False)
        await store.hold(first)
        assert (await store.charge(first, 0, "{}", b"free", 60_000)).outcome is Outcome.CHARGED
        again = await store.hold(ask("u2", "t2", 10, 10, keyed=False))
        assert again.outcome is Outcome.ACCEPTED

    with_redis(store_url, scenario)


def test_nothing_is_served_from_memory_that_was_not_reconciled(store_url: str) -> None:
    async def scenario(store: RedisStore) -> None:
        with pytest.raises(NotReady):
            await store.hold(ask("k", "t", 1, 1))
        await opened(store)
        assert (await store.hold(ask("k", "t", 1, 1))).outcome is Outcome.ACCEPTED
        await store.client.flushall()
        with pytest.raises(NotReady):
            await store.hold(ask("k2", "t", 1, 2))
        assert await store.begin_reconcile(2)
        await store.restore(ChannelSnapshot(CHANNEL, 30, 3, 40, b"\1" * 65, {"old": "d"}), 2)
        await store.mirror(LedgerSnapshot(CHANNEL, 100, 0, False, 0, 1), 2)
        await store.open_for_service(2)
        spent = await store.hold(ask("old", "t", 10, 40))
        assert spent.outcome is Outcome.REPLAYED
        refused = await store.hold(ask("k3", "t", 11, 40))
        assert (refused.outcome, refused.charged, refused.proof_maximum) == (Outcome.MISMATCH, 30, 40)
        await store.mirror(LedgerSnapshot(CHANNEL, 1, 0, False, 0, 0), 2)
        assert (await store.hold(ask("k4", "t", 5, 40))).usable == 100
        with pytest.raises(NotReady):
            await store.begin_reconcile(1)

    with_redis(store_url, scenario)


def test_a_refund_under_way_is_off_the_usable_balance_until_the_ledger_has_passed_its_nonce(store_url: str) -> None:
    async def scenario(store: RedisStore) -> None:
        await opened(store, 100)
        assert await store.reserve_refund(CHANNEL, 60, 0, 0, 1) == "ok"
        assert await store.reserve_refund(CHANNEL, 60, 0, 0, 1) == "ok"
        assert await store.reserve_refund(CHANNEL, 10, 0, 0, 1) == "in_progress"
        assert (await store.hold(ask("k", "t", 41, 41))).outcome is Outcome.EXCEEDS_BALANCE
        await store.mirror(LedgerSnapshot(CHANNEL, 40, 0, False, 1, 2), 1)
        held = await store.hold(ask("k", "t", 40, 40))
        assert (held.outcome, held.usable) == (Outcome.ACCEPTED, 40)
        assert await store.reserve_refund(CHANNEL, 1, 1, 0, 1) == "in_progress"

    with_redis(store_url, scenario)


@pytest.mark.parametrize(
    ("price", "maximum", "keyed", "outcome"),
    [
        pytest.param(10, 9, True, Outcome.MISMATCH, id="ceiling below the price"),
        pytest.param(10, 11, False, Outcome.MISMATCH, id="stock ceiling above the price"),
        pytest.param(10, 10, False, Outcome.ACCEPTED, id="stock ceiling exact"),
        pytest.param(60, 60, True, Outcome.EXPOSURE, id="more than may be owed"),
        pytest.param(1_001, 1_001, True, Outcome.EXCEEDS_BALANCE, id="more than the balance"),
    ],
)
def test_refusals(store_url: str, price: int, maximum: int, keyed: bool, outcome: Outcome) -> None:
    async def scenario(store: RedisStore) -> None:
        await opened(store)
        result = await store.hold(ask("k", "t", price, maximum, keyed))
        assert (result.outcome, result.charged) == (outcome, 0)
        if outcome is not Outcome.ACCEPTED:
            assert result.held == 0

    with_redis(store_url, scenario)


def test_calls_without_a_key_that_are_hung_up_on_are_counted_for_a_minute(store_url: str) -> None:
    async def scenario(store: RedisStore | MemoryStore) -> None:
        await opened(store)
        for number in range(3):
            call = ask(f"u{number}", "t", 10, 10, keyed=False)
            assert (await store.hold(call)).outcome is Outcome.ACCEPTED
            await store.release(call.attempt, abandoned=True)
            assert (await store.release(call.attempt, abandoned=True)).outcome is Outcome.NOT_OWNER, "counted once"
        assert (await store.hold(ask("u3", "t", 10, 10, keyed=False))).outcome is Outcome.ABANDONED
        assert (await store.hold(ask("u3", "t", 10, 10, keyed=False), dry=True)).outcome is Outcome.ABANDONED
        assert (await store.hold(ask("k", "t", 10, 10))).outcome is Outcome.ACCEPTED, "a call with a key is not refused"

    async def on_redis() -> None:
        store = RedisStore(store_url, exposure_cap=CAP, abandoned_limit=3)
        try:
            await scenario(store)
            assert 0 < await store.client.pttl(keys.abandoned(CHANNEL)) <= ABANDONED_WINDOW_MS
        finally:
            await store.close()

    async def in_memory() -> None:
        now = [0]
        store = MemoryStore(CAP, lambda: now[0], abandoned_limit=3)
        await scenario(store)
        now[0] = ABANDONED_WINDOW_MS
        await store.release(ask("k", "t", 10, 10).attempt)
        assert (await store.hold(ask("u4", "t", 10, 10, keyed=False))).outcome is Outcome.ACCEPTED

    asyncio.run(on_redis())
    asyncio.run(in_memory())


def test_an_old_ceiling_buys_nothing_after_a_withdrawal_and_another_deposit(store_url: str) -> None:
    async def scenario(store: RedisStore | MemoryStore) -> None:
        await opened(store, balance=100)
        first = ask("k1", "t1", 10, 100)
        assert (await store.hold(first)).outcome is Outcome.ACCEPTED
        assert (await store.charge(first, 10, "{}", b"", 60_000)).outcome is Outcome.CHARGED
        await store.mirror(LedgerSnapshot(CHANNEL, 100, 10, True, 0, 2), 1)
        assert (await store.hold(ask("k2", "t2", 10, 100))).outcome is Outcome.WITHDRAWING
        await store.mirror(LedgerSnapshot(CHANNEL, 10, 10, False, 0, 3), 1)  # all the rest is back with the payer
        await store.mirror(LedgerSnapshot(CHANNEL, 60, 10, False, 0, 4), 1)
        assert (await store.hold(ask("k3", "t3", 10, 0))).outcome is Outcome.MISMATCH
        assert (await store.hold(ask("k4", "t4", 10, 20))).outcome is Outcome.ACCEPTED

    asyncio.run(scenario(MemoryStore(exposure_cap=CAP)))
    with_redis(store_url, scenario)


def test_a_full_store_still_replays_what_was_charged(store_url: str) -> None:
    async def scenario(store: RedisStore) -> None:
        await opened(store)
        request = ask("k", "t", 10, 10, ttl_ms=1)
        await store.hold(request)
        await store.charge(request, 10, "{}", b"answer", 60_000)
        await asyncio.sleep(0.02)  # now the holds are due, and the next step writes the new due time
        await store.client.config_set("maxmemory", 1)
        try:
            again = await store.hold(ask("k", "t2", 10, 10))
            assert (again.outcome, again.stored, again.charged) == (Outcome.REPLAYED, b"answer", 10)
            assert (await store.charge(request, 10, "{}", b"answer", 60_000)).outcome is Outcome.REPLAYED
            with pytest.raises(NotReady):
                await store.hold(ask("new", "t", 10, 20))
        finally:
            await store.client.config_set("maxmemory", 0)

    with_redis(store_url, scenario)


@pytest.mark.parametrize("denied", ["pexpire", "incr"])
def test_a_denied_command_leaves_no_half_step(store_url: str, denied: str) -> None:
    async def scenario(store: RedisStore) -> None:
        await opened(store)
        await store.client.execute_command(
            "ACL", "SETUSER", "less", "reset", "on", "nopass", "~*", "+@all", f"-{denied}"
        )
        less = RedisStore(f"{store_url}?username=less&password=x", exposure_cap=CAP)
        try:
            request, stock = ask("k", "t", 10, 10), ask("u", "t", 10, 20, keyed=False)
            await less.hold(request)
            assert (await less.charge(request, 10, "{}", b"answer", 60_000)).outcome is Outcome.CHARGED
            await less.hold(stock)
            assert (await less.release(stock.attempt, abandoned=True)).outcome is Outcome.RELEASED
        finally:
            await less.close()
        after = await store.hold(ask("next", "t", 10, 20), dry=True)
        assert (after.charged, after.held) == (10, 0)
        assert [entry["seq"] for _, entry in await store.read_journal(keys.bucket(CHANNEL), "0-0", 10)] == ["1"]

    with_redis(store_url, scenario)


def test_many_calls_of_a_channel_are_restored_in_parts(store_url: str) -> None:
    async def scenario(store: RedisStore) -> None:
        await opened(store)
        await store.client.flushall()
        await store.begin_reconcile(2)
        sent: list[int] = []
        run = store.pipeline.run

        async def counted(script: str, names: Any, values: Any) -> Any:
            sent.append(len(values))
            return await run(script, names, values)

        store.pipeline.run = counted  # type: ignore[method-assign]
        calls = {f"k{n}": "d" for n in range(2 * MAX_CALLS_RESTORED + 1)}
        await store.restore(ChannelSnapshot(CHANNEL, 30, 3, 40, b"\1" * 65, calls), 2)
        assert len(sent) == 3 and max(sent) == 5 + 2 * MAX_CALLS_RESTORED
        await store.mirror(LedgerSnapshot(CHANNEL, 100, 0, False, 0, 1), 2)
        await store.open_for_service(2)
        for n in (0, MAX_CALLS_RESTORED, 2 * MAX_CALLS_RESTORED):
            assert (await store.hold(ask(f"k{n}", "t", 1, 40))).outcome is Outcome.REPLAYED

    with_redis(store_url, scenario)


def test_a_new_connection_reads_the_servers_run_id_again(store_url: str) -> None:
    """Redis 6.2 still knew our scripts after a restart that had lost the last charges: NOSCRIPT is not enough."""

    async def scenario(store: RedisStore) -> None:
        await opened(store)
        with redis.Redis.from_url(store_url) as client:

            def loads() -> int:
                return int(client.info("commandstats")["cmdstat_script|load"]["calls"])

            before = loads()
            await store.hold(ask("a", "t", 1, 1))
            assert loads() == before
            client.client_kill_filter(_type="normal", skipme=True)
            while store.pipeline.connected:
                await asyncio.sleep(0.01)
            assert (await store.hold(ask("b", "t", 1, 2))).outcome is Outcome.ACCEPTED, "the first step is served"
            assert loads() == before + len(script_loader.names())

    with_redis(store_url, scenario)
