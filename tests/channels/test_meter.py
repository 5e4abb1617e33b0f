"""One paid call on a real Valkey: only needed deposits are settled, a key has one answer, and no hold is left."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import pytest
import redis

from channels.errors import CallConflict, NotReady, PaymentRefused
from channels.metering.channel import Outcome
from channels.metering.hold import Call, Hold, RefusedAfterPayment
from channels.metering.meter import MAX_ANSWER_BYTES, Meter
from channels.metering.quote import Payee, Quote, Transfer
from channels.metering.store import Attempt, ChannelSnapshot, ChargeRecord, HoldRequest, LedgerSnapshot, StepResult
from channels.protocol.digests import channel_id, voucher_digest
from channels.protocol.signer import Signer
from channels.protocol.x402 import ChannelConfig, Deposit, Payment, Voucher
from channels.redis_store.store import RedisStore

CHAIN = 31337
PAYER, MESH = Signer(b"\1" * 32), Signer(b"\2" * 32)
PAYEE = Payee(CHAIN, "0xDe70000000000000000000000000000000000001", "Dev", "1", MESH.address, MESH.address, 900)
QUOTE = Quote(PAYEE, 100, 1_000)
CONFIG = ChannelConfig(PAYER.address, PAYER.address, MESH.address, MESH.address, PAYEE.asset, 900, "0x" + "00" * 32)
NAME = channel_id(CHAIN, CONFIG)
BODY = '{"dapp": "d"}'


def payment(maximum: int, deposit: int = 0) -> Payment:
    voucher = Voucher(NAME, maximum, PAYER.sign(voucher_digest(CHAIN, NAME, maximum)))
    paid_in = Deposit(deposit, 0, 2**40, "0x" + "5a" * 32, bytes(65)) if deposit else None
    return Payment("deposit" if deposit else "voucher", QUOTE.requirement(), CONFIG, voucher, paid_in)


class Bench:
    def __init__(self, store: RedisStore, hold_ttl_ms: int, answer_ttl_ms: int) -> None:
        self.store = store
        self.deposits: list[int] = []
        self.version = 0
        self.meter = Meter(
            self.store,
            MESH,
            CHAIN,
            self.deposit,
            recall=self.recall,
            hold_ttl_ms=hold_ttl_ms,
            answer_ttl_ms=answer_ttl_ms,
        )
        self.drained: dict[str, ChargeRecord] = {}

    async def deposit(self, paid: Payment) -> Transfer:
        assert paid.deposit is not None
        self.deposits.append(paid.deposit.amount)
        self.version += 1
        await self.store.mirror(LedgerSnapshot(NAME, sum(self.deposits), 0, False, 0, self.version), 1)
        return Transfer("0x" + "ab" * 32, paid.deposit.amount)

    async def recall(self, call_id: str) -> ChargeRecord | None:
        """Stands for SQL."""
        return self.drained.get(call_id)

    def hold(self, paid: Payment, call: Call) -> AbstractAsyncContextManager[Hold]:
        return self.meter.hold(self.meter.check(paid, QUOTE), call)

    async def held(self) -> int:
        return (await self.store.amounts(NAME)).held


class On(Protocol):
    """Runs a scenario on a bench whose store is open."""

    def __call__(
        self,
        scenario: Callable[[Bench], Awaitable[None]],
        kind: type[RedisStore] = RedisStore,
        hold_ttl_ms: int = 6_000,
        answer_ttl_ms: int = 600_000,
    ) -> None: ...


@pytest.fixture
def on_bench(store_url: str) -> On:
    def run(
        scenario: Callable[[Bench], Awaitable[None]],
        kind: type[RedisStore] = RedisStore,
        hold_ttl_ms: int = 6_000,
        answer_ttl_ms: int = 600_000,
    ) -> None:
        async def whole() -> None:
            bench = Bench(kind(store_url, exposure_cap=10_000), hold_ttl_ms, answer_ttl_ms)
            assert await bench.store.begin_reconcile(1)
            await bench.store.open_for_service(1)
            try:
                await scenario(bench)
            finally:
                await bench.store.close()

        asyncio.run(whole())

    return run


def test_a_deposit_is_settled_only_if_the_ceiling_needs_it(on_bench: On) -> None:
    async def scenario(bench: Bench) -> None:
        async with bench.hold(payment(100, deposit=1_000), Call("a", "d")) as hold:
            assert hold.settled is not None
        async with bench.hold(payment(200, deposit=1_000), Call("b", "d")) as hold:
            assert hold.settled is None, "the balance covers it: served as a voucher"
        async with bench.hold(payment(1_100, deposit=1_000), Call("c", "d")) as hold:
            assert hold.settled is not None, "this client has signed for more than the balance"
        assert bench.deposits == [1_000, 1_000]

    on_bench(scenario)


def test_a_refusal_settles_nothing(on_bench: On) -> None:
    async def scenario(bench: Bench) -> None:
        for refused in (payment(99, deposit=1_000), payment(100, deposit=99)):
            with pytest.raises(PaymentRefused):
                async with bench.hold(refused, Call("a", "d")):
                    pass
        assert not bench.deposits

    on_bench(scenario)


@pytest.mark.parametrize("cause", ["a withdrawal begins", "the store is emptied"])
def test_a_call_refused_after_its_deposit_was_settled_says_so(cause: str, on_bench: On, store_url: str) -> None:
    async def scenario(bench: Bench) -> None:
        async def settle_then_fail(paid: Payment) -> Transfer:
            settled = await bench.deposit(paid)
            if cause == "a withdrawal begins":
                await bench.store.mirror(LedgerSnapshot(NAME, 1_000, 0, True, 0, 2), 1)
            else:
                with redis.Redis.from_url(store_url) as client:
                    client.flushall()
            return settled

        meter = Meter(bench.store, MESH, CHAIN, settle_then_fail)
        with pytest.raises(RefusedAfterPayment) as refused:
            async with meter.hold(meter.check(payment(100, deposit=1_000), QUOTE), Call("a", "d")):
                pass
        expected = {"a withdrawal begins": "withdrawal_pending", "the store is emptied": "not_ready"}
        assert refused.value.error.code == expected[cause]
        settled = refused.value.hold.settled
        assert settled is not None and settled.amount == 1_000 and refused.value.hold.result.usable == 1_000

    on_bench(scenario)


def test_leaving_without_a_charge_gives_the_money_back_however_it_is_left(on_bench: On) -> None:
    async def scenario(bench: Bench) -> None:
        with pytest.raises(ZeroDivisionError):
            async with bench.hold(payment(100, deposit=1_000), Call("a", "d")):
                raise ZeroDivisionError
        assert await bench.held() == 0

        async def hang() -> None:
            async with bench.hold(payment(100), Call("b", "d")):
                await asyncio.sleep(60)

        task = asyncio.create_task(hang())
        while await bench.held() != 100:
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert await bench.held() == 0

    on_bench(scenario)


def test_a_caller_cancelled_while_its_hold_is_taken_leaves_none(on_bench: On) -> None:
    async def scenario(bench: Bench) -> None:
        async with bench.hold(payment(100, deposit=1_000), Call("a", "d")):
            pass
        for turns in range(12):

            async def call(key: str) -> None:
                async with bench.hold(payment(100), Call(key, "d")):
                    await asyncio.sleep(60)

            task = asyncio.create_task(call(f"key-{turns}"))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert await bench.held() == 0

    on_bench(scenario)


def test_a_charged_key_gives_its_answer_and_an_expired_answer_its_receipt(on_bench: On) -> None:
    async def scenario(bench: Bench) -> None:
        async with bench.hold(payment(100, deposit=1_000), Call("a", "d")) as hold:
            await bench.meter.charge(hold, 70, BODY, b"the answer")
        async with bench.hold(payment(200), Call("a", "d")) as again:
            assert again.stored == b"the answer" and again.result.charged == 70
        long = b"x" * ((1 << 20) + 1)
        async with bench.hold(payment(200), Call("b", "d")) as hold:
            await bench.meter.charge(hold, 50, BODY, long)
        with pytest.raises(RefusedAfterPayment) as refused:
            async with bench.hold(payment(300), Call("b", "d")):
                pass
        record = refused.value.hold.result.record
        assert refused.value.error.code == "answer_expired" and record is not None and record.amount == 50

    on_bench(scenario)


def test_a_key_whose_answer_was_dropped_gives_the_receipt_that_sql_has(on_bench: On) -> None:
    async def scenario(bench: Bench) -> None:
        async with bench.hold(payment(100, deposit=1_000), Call("a", "d")) as hold:
            result = await bench.meter.charge(hold, 70, BODY, b"the answer")
        await asyncio.sleep(0.01)

        async def again() -> RefusedAfterPayment:
            with pytest.raises(RefusedAfterPayment) as refused:
                async with bench.hold(payment(200), Call("a", "d")):
                    pass
            return refused.value

        assert result.record is not None and result.record.amount == 70
        for drained, record in (({}, None), ({result.record.call_id: result.record}, result.record)):
            bench.drained = drained
            refused = await again()
            assert (refused.error.code, refused.hold.result.record) == ("answer_expired", record)
        with pytest.raises(CallConflict, check=lambda error: error.code == "other_request"):
            async with bench.hold(payment(200), Call("a", "another")):
                pass
        assert await bench.held() == 0

    on_bench(scenario, answer_ttl_ms=1)


def test_stored_answers_and_keys_are_not_readable_in_the_store(on_bench: On, store_url: str) -> None:
    async def scenario(bench: Bench) -> None:
        async with bench.meter.hold(
            bench.meter.check(payment(100, deposit=1_000), QUOTE), Call("patient-7", "d")
        ) as hold:
            await bench.meter.charge(hold, 70, BODY, b"haemorrhage found")

    on_bench(scenario)
    with redis.Redis.from_url(store_url) as client:
        dumped = b"".join(name + (client.dump(name) or b"") for name in client.keys("*"))
    assert b"patient-7" not in dumped and b"haemorrhage" not in dumped


def test_a_key_that_expired_and_was_charged_for_another_request_serves_nobody_else(on_bench: On) -> None:
    async def scenario(bench: Bench) -> None:
        async with bench.hold(payment(100, deposit=1_000), Call("a", "dear")) as slow:
            await bench.store.release(slow.request.attempt)
            async with bench.hold(payment(100), Call("a", "cheap")) as quick:
                await bench.meter.charge(quick, 1, BODY, b"cheap answer")
            with pytest.raises(NotReady):
                await bench.meter.charge(slow, 100, BODY, b"dear answer")

    on_bench(scenario)


def test_a_memory_that_was_emptied_while_it_was_reconciled_is_never_opened(on_bench: On) -> None:
    async def scenario(bench: Bench) -> None:
        store = bench.store
        await store.client.flushall()
        assert await store.begin_reconcile(2)
        await store.restore(ChannelSnapshot(NAME, 500, 7, 600, bytes(65)), 2)
        await store.client.flushall()
        with pytest.raises(NotReady):
            await store.open_for_service(2)
        assert await store.begin_reconcile(2)

    on_bench(scenario)


def test_charges_after_a_flush_are_drained_even_if_the_clock_went_back(on_bench: On) -> None:
    async def scenario(bench: Bench) -> None:
        store = bench.store
        await store.client.flushall()
        assert await store.begin_reconcile(2)
        far = "99999999999999-5"
        await store.mirror(LedgerSnapshot(NAME, 1_000, 0, False, 0, 1), 2)
        await store.open_for_service(2, [far] * 64)
        async with bench.hold(payment(100), Call("a", "d")) as hold:
            await bench.meter.charge(hold, 70, BODY, b"")
        assert len(await store.read_journal(int(NAME[2:4], 16) % 64, far, 10)) == 1

    on_bench(scenario)


def test_after_a_loss_one_unkeyed_ceiling_pays_once(on_bench: On) -> None:
    async def scenario(bench: Bench) -> None:
        store = bench.store
        await store.mirror(LedgerSnapshot(NAME, 10_000, 0, False, 0, 1), 2)
        await store.restore(ChannelSnapshot(NAME, 100, 1, 100, bytes(65)), 2)
        requests = [HoldRequest(Attempt(NAME, f"u{i}", f"t{i}", False, "d"), 100, 400, bytes(65)) for i in range(5)]
        outcomes = [(await store.hold(request)).outcome for request in requests]
        assert outcomes == [Outcome.ACCEPTED] + [Outcome.MISMATCH] * 4
        await store.release(requests[0].attempt)
        assert (await store.hold(requests[1])).outcome is Outcome.ACCEPTED

    on_bench(scenario)


class RepeatedCharge(RedisStore):
    """Charges twice, as if the reply to the first charge had been lost on its way."""

    async def charge(
        self, request: HoldRequest, actual: int, body: str, answer: bytes, answer_ttl_ms: int
    ) -> StepResult:
        await super().charge(request, actual, body, answer, answer_ttl_ms)
        return await super().charge(request, actual, body, answer, answer_ttl_ms)


@pytest.mark.parametrize("key", ["k", None])
def test_an_answer_too_large_to_keep_is_given_although_its_charges_first_reply_was_lost(
    on_bench: On, key: str | None
) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.deposit(payment(100, deposit=1_000))
        async with bench.hold(payment(100), Call(key, "d")) as hold:
            result = await bench.meter.charge(hold, 100, BODY, bytes(MAX_ANSWER_BYTES + 1))
        assert result.outcome is Outcome.REPLAYED and result.record is not None and result.record.amount == 100
        assert hold.stored is None, "the answer at hand is the one that was charged"
        assert (await bench.held(), hold.done) == (0, True)

    on_bench(scenario, RepeatedCharge)


def test_holds_are_renewed_together(on_bench: On) -> None:
    """One after the other, the last of many would end before its turn came."""
    begun: list[str] = []
    all_begun = asyncio.Event()

    class SlowRenewal(RedisStore):
        async def renew(self, attempt: Attempt, ttl_ms: int) -> StepResult:
            begun.append(attempt.call_id)
            if len(begun) == 3:
                all_begun.set()
            await all_begun.wait()
            return await super().renew(attempt, ttl_ms)

    async def scenario(bench: Bench) -> None:
        await bench.deposit(payment(100, deposit=1_000))

        async def call(key: str) -> None:
            async with bench.hold(payment(300), Call(key, "d")):
                await asyncio.wait_for(all_begun.wait(), 30)

        await asyncio.gather(*map(call, ("a", "b", "c")))
        assert len(set(begun)) == 3

    on_bench(scenario, SlowRenewal, hold_ttl_ms=300)
