"""Takes the steps of a channel's life in any order on both stores: equal results, equal memory, no invariant broken.

Journal, ledger and settler are real. Every step may land at any time: an attempt is never over, an old ledger snapshot
may arrive again, an old treasury may still write. `--full` runs more and longer orders.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule, run_state_machine_as_test

from channels.errors import LedgerError
from channels.metering.channel import AMOUNT_LIMIT, Outcome
from channels.metering.store import Attempt, HoldRequest, StepResult
from channels.protocol.digests import finalize_digest, initiate_digest
from tests.channels.life import ANSWER_MS, DELAY_MS, PAYER, TTL_MS, Life, Line, body, word32

STEPS_LONG = 10_000
"""What the long profile takes at least; it also demands that everything in EXPECTED has happened."""

pick = st.integers(0, 40)
which = st.sampled_from([0, 0, 0, 1, 1, 2])
part = st.integers(0, 8)
cost = st.sampled_from([1, 1, 1, 2, 2, 3, 0, 8])
off = st.integers(-1, 1)
CEILINGS = st.sampled_from(
    ["exact", "exact", "exact", "short", "over", "ahead", "far", "last", "limit-1", "limit", "limit+1", "uint128"]
)


class AnyOrder(Life):
    """Calls, holds that end, mirrors that come late, refunds, withdrawals, and stores that forget."""

    # The payer and the replicas

    @rule(channel=which, key=st.integers(0, 2), body=st.sampled_from("aaab"), how=CEILINGS, price=cost, off=off)
    def call_with_a_key(self, channel: int, key: int, body: str, how: str, price: int, off: int) -> None:
        request = self.request(channel, key, body, how, self.amount(price, off))
        self.tries.append(request)
        self.take(request)

    @rule(channel=which, body=st.sampled_from("aaab"), how=CEILINGS, price=cost, off=off)
    def call_without(self, channel: int, body: str, how: str, price: int, off: int) -> None:
        request = self.request(channel, None, body, how, self.amount(price, off))
        self.tries.append(request)
        self.take(request)

    @rule(channel=which, key=st.none() | st.integers(0, 2), how=CEILINGS, price=cost, extra=st.sampled_from([0, 4]))
    def call_with_a_deposit_checked(self, channel: int, key: int | None, how: str, price: int, extra: int) -> None:
        before = self.state(self.lines[channel])
        request = self.request(channel, key, "a", how, self.amount(price, 0))
        result = self.twin("hold", request, self.amount(8 * extra, 0), dry=True)
        self.note(f"dry {result.outcome if isinstance(result, StepResult) else result}")
        after = self.state(self.lines[channel])
        assert after is before or replace(after, held=0) == replace(before, held=0), "a dry hold changes nothing"

    @rule(channel=which, key=st.none() | st.integers(0, 2), price=cost, share=st.sampled_from([0, 1, 2, 4, 4]))
    def call_served_at_once(self, channel: int, key: int | None, price: int, share: int) -> None:
        request = self.request(channel, key, "a", "exact", self.amount(price, 0))
        self.tries.append(request)
        self.take(request)
        self.charge(0, share, 0)

    @rule(channel=which, price=cost)
    def call_hung_up_on(self, channel: int, price: int) -> None:
        self.tries.append(self.request(channel, None, "a", "exact", self.amount(price, 0)))
        self.take(self.tries[-1])
        self.release(0, True)

    def request(self, channel: int, key: int | None, body: str, how: str, price: int) -> HoldRequest:
        line = self.lines[channel]
        self.calls += 1
        call = 1_000_000 + self.calls if key is None else 1_000 * channel + key
        attempt = Attempt(line.id, word32(call), f"t{self.calls}", key is not None, word32(ord(body)))
        maximum = self.ceiling(line, how, price)
        return HoldRequest(attempt, price, maximum, self.world.voucher(maximum, line.salt).signature, TTL_MS)

    def ceiling(self, line: Line, how: str, price: int) -> int:
        account = self.twins.model.accounts.get(line.id)
        if account is None:
            return price
        now = self.twins.server.now_ms
        held = sum(hold.amount for hold in account.holds.values() if hold.ends_ms > now)
        exact = account.state.charged + held + price
        limit = AMOUNT_LIMIT
        return {
            "exact": exact, "short": max(0, exact - 1), "over": exact + 1, "ahead": exact + price, "far": 8 * self.unit,
            "last": account.last[1], "limit-1": limit - 1, "limit": limit, "limit+1": limit + 1, "uint128": 2**128 - 1,
        }[how]  # fmt: skip

    def take(self, request: HoldRequest) -> None:
        attempt = request.attempt
        line = next(line for line in self.lines if line.id == attempt.channel_id)
        account = self.twins.model.accounts.get(line.id)
        was = None if account is None else account.holds.get(attempt.call_id)
        own = was is not None and was.token == attempt.token and was.ends_ms > self.twins.server.now_ms
        done = line.charges.get(attempt.call_id)
        result = self.twin("hold", request)
        self.note(f"hold {result.outcome if isinstance(result, StepResult) else result}")
        if not isinstance(result, StepResult) or result.outcome is not Outcome.ACCEPTED or own:
            return
        self.held.add(attempt.token)
        assert done is None or not attempt.keyed, "a charged key runs again"
        assert was is None or was.ends_ms <= self.twins.server.now_ms, "a running key runs twice"
        state = self.state(line)
        assert result.charged + result.held <= min(state.highest, result.usable)
        assert result.charged + result.held - result.claimed <= self.cap
        assert not state.withdrawing and result.proof_maximum >= request.maximum
        if not attempt.keyed:
            assert request.maximum <= result.usable
            if request.maximum != result.charged + result.held:
                self.note("hold ahead of lost memory")
                assert state.lossy and line.paid < request.maximum <= result.charged + result.held + self.cap

    @precondition(lambda self: self.tries)
    @rule(pick=pick)
    def hold_again(self, pick: int) -> None:
        request = self.tries[-1 - pick % len(self.tries)]
        # An unkeyed attempt asks once: its call id is its own, and a client that repeats it comes as another attempt.
        if request.attempt.keyed or request.attempt.token not in self.held:
            self.take(request)

    @precondition(lambda self: self.tries)
    @rule(share=st.sampled_from([0, 1, 2, 4, 4]), over=st.sampled_from([0, 0, 0, 1]))
    def charge_newest(self, share: int, over: int) -> None:
        self.charge(0, share, over)

    @precondition(lambda self: self.tries)
    @rule(pick=pick, share=st.sampled_from([0, 1, 2, 4, 4]), over=st.sampled_from([0, 0, 0, 1]))
    def charge(self, pick: int, share: int, over: int) -> None:
        request = self.tries[-1 - pick % len(self.tries)]
        attempt = request.attempt
        line = next(line for line in self.lines if line.id == attempt.channel_id)
        if attempt.token not in self.held:
            return  # no replica charges a call it never held
        account = self.twins.model.accounts.get(line.id)
        hold = None if account is None else account.holds.get(attempt.call_id)
        live = hold is not None and hold.ends_ms > self.twins.server.now_ms
        actual = request.price * share // 4 + (over if live else 0)
        result = self.twin("charge", request, actual, body(actual), attempt.token.encode(), ANSWER_MS)
        self.note(f"charge {result.outcome if isinstance(result, StepResult) else result}" + ("" if live else " late"))
        if not isinstance(result, StepResult):
            return
        if result.outcome is Outcome.REPLAYED:
            # A key is known for ever; what was charged under it, for as long as its answer is kept.
            forgotten = attempt.keyed and result.record is None and result.stored is None
            assert forgotten or result.record == line.charges[attempt.call_id]
        if result.outcome is Outcome.CHARGED:
            assert attempt.call_id not in line.charges, "charged twice"
            assert result.record is not None and result.record.amount == actual <= request.price
            line.charges[attempt.call_id] = result.record
            if not live:
                assert result.charged + result.held <= result.usable and not self.state(line).withdrawing
            if actual and not attempt.keyed:
                line.paid = max(line.paid, request.maximum)

    @precondition(lambda self: self.tries)
    @rule(pick=pick, gone=st.booleans())
    def release(self, pick: int, gone: bool) -> None:
        attempt = self.tries[-1 - pick % len(self.tries)].attempt
        result = self.twin("release", attempt, gone and not attempt.keyed)
        self.note(f"release {result.outcome if isinstance(result, StepResult) else result}")

    @precondition(lambda self: self.tries)
    @rule(pick=pick, ttl_ms=st.sampled_from([1, TTL_MS]))
    def renew(self, pick: int, ttl_ms: int) -> None:
        result = self.twin("renew", self.tries[-1 - pick % len(self.tries)].attempt, ttl_ms)
        self.note(f"renew {result.outcome if isinstance(result, StepResult) else result}")

    @precondition(lambda self: self.tries)
    @rule(
        how=st.sampled_from(["tick", "edge", "hold", "answer"]),
        step=st.sampled_from(["charge", "charge", "hold", "release", "renew"]),
        share=st.sampled_from([0, 1, 2]),
    )
    def all_old_tasks_step(self, how: str, step: str, share: int) -> None:
        self.wait(how, 0)
        for pick in range(min(6, len(self.tries))):
            if step == "charge":
                self.charge(pick, share, 0)
            elif step == "hold":
                self.hold_again(pick)
            elif step == "release":
                self.release(pick, share == 1)
            else:
                self.renew(pick, TTL_MS)

    @rule(how=st.sampled_from(["tick", "edge", "edge", "edge", "hold", "answer", "delay"]), off=off)
    def wait(self, how: str, off: int) -> None:
        now = self.twins.server.now_ms
        ends = [hold.ends_ms for account in self.twins.model.accounts.values() for hold in account.holds.values()]
        edge = min((end + off for end in ends if end + off >= now), default=now)
        then = {"tick": now + 1, "edge": edge, "hold": now + TTL_MS, "answer": now + ANSWER_MS, "delay": now + DELAY_MS}
        self.at(then[how])

    # The treasury and the ledger

    @rule(channel=which, amount=part, off=off, mirrored=st.sampled_from([True, True, False]))
    def deposit(self, channel: int, amount: int, off: int, mirrored: bool) -> None:
        self.fund(self.lines[channel], self.amount(8 * amount // 2, off), mirrored)

    @rule(channel=which, pick=pick, newest=st.booleans())
    def deliver(self, channel: int, pick: int, newest: bool) -> None:
        line = self.lines[channel]
        if line.mirrors:
            self.mirror(line, line.mirrors[-1 if newest else -1 - pick % len(line.mirrors)])

    @rule(
        channel=which,
        amount=part,
        all=st.booleans(),
        off=off,
        right=st.sampled_from([True, True, True, False]),
        mirrored=st.booleans(),
    )
    def refund(self, channel: int, amount: int, all: bool, off: int, right: bool, mirrored: bool) -> None:
        if self.lines[channel].intent and right:
            self.refund_executed(self.lines[channel], mirrored)
        else:
            self.refund_marked(channel, amount, all, off, right)

    def refund_marked(self, channel: int, amount: int, all: bool, off: int, right: bool) -> None:
        line = self.lines[channel]
        state = self.state(line)
        if line.ledger is None or state is None or not self.open:
            return
        much, nonce = self.amount(amount, off), line.ledger.refund_nonce
        if all:
            much = state.balance - state.charged + (0 if right else 1)
        if line.intent:
            much, nonce = line.intent
        if much <= 0:
            return
        result = self.twin(
            "reserve_refund", line.id, much, nonce, state.charged + (0 if right else 1), self.world.token
        )
        self.note(f"refund {result}")
        if result == "ok" and line.intent is None:
            line.intent = much, nonce
            after, proof = self.state(line), self.twins.model.accounts[line.id].proof[0]
            assert after.refunding == much and proof >= after.charged
            assert after.usable > after.charged or after.highest == after.charged, (
                "drained: an old ceiling buys nothing"
            )
        other = self.twin("reserve_refund", line.id, much + 1, nonce, state.charged, self.world.token)
        assert other != "ok" or line.intent is None
        if other == "ok":
            line.intent = much + 1, nonce

    def withdraw(self, channel: int, amount: int, notice: bool, mirrored: bool) -> None:
        line, ledger = self.lines[channel], self.world.ledger
        if line.ledger is None:
            return
        finalize = line.ledger.withdraw_amount > 0
        if finalize and notice:
            self.wait("delay", 0)
        self.calls += 1
        nonce, config, before = self.calls, self.world.config(line.salt), line.ledger.balance
        try:
            if finalize:
                signature = PAYER.sign(finalize_digest(self.world.chain_id, line.id, nonce))
                done = ledger.finalize_withdraw(config, nonce, signature)
            else:
                much = min(self.amount(8 * amount, 0), line.ledger.left)
                signature = PAYER.sign(initiate_digest(self.world.chain_id, line.id, much, nonce))
                done = ledger.initiate_withdraw(config, much, nonce, signature)
        except LedgerError:
            return
        line.withdrawn += before - done.channel.balance
        self.note("withdrawal finalized" if finalize else "withdrawal begun")
        self.moved(line, done.channel)
        if mirrored:
            self.mirror(line, line.mirrors[-1])

    @rule(claim=st.booleans(), mirrored=st.booleans())
    def settle(self, claim: bool, mirrored: bool) -> None:
        if claim:
            self.settled(mirrored)
        else:
            self.drained()

    @rule(
        what=st.sampled_from(["withdraw", "withdraw", "replaced", "stale", "stale", "saved", "saved", "lost", "lost"]),
        channel=which,
        number=part,
        mirrored=st.booleans(),
        notice=st.booleans(),
        step=st.sampled_from(["mirror", "reserve_refund", "begin_reconcile", "open_for_service", "restore"]),
        how=st.sampled_from(["restart", "older", "older", "nothing"]),
        at_once=st.sampled_from([True] * 7 + [False]),
        twice=st.sampled_from([False] * 5 + [True]),
    )
    def trouble(
        self,
        what: str,
        channel: int,
        number: int,
        mirrored: bool,
        notice: bool,
        step: str,
        how: str,
        at_once: bool,
        twice: bool,
    ) -> None:
        if what == "withdraw":
            self.withdraw(channel, number, notice, mirrored)
        elif not self.open:
            self.reconcile(twice)
        elif what == "replaced":
            self.treasury_replaced()
        elif what == "stale":
            self.old_treasury_steps(channel, step)
        elif what == "saved":
            self.saved = self.twins.snapshot()
        else:
            self.memory_lost(how, at_once, twice)

    def treasury_replaced(self) -> None:
        self.world.token = self.world.journal.acquire("next")
        assert self.twin("begin_reconcile", self.world.token) is False


EXPECTED = {
    "hold accepted", "hold replayed", "hold in_progress", "hold other_request", "hold mismatch",
    "hold exceeds_balance", "hold exposure", "hold withdrawing", "hold abandoned", "hold unknown_channel",
    "hold not_ready", "hold ahead of lost memory", "charge charged", "charge charged late", "charge refused",
    "charge refused late", "charge replayed late", "release released", "release not_owner", "renew renewed",
    "renew not_owner", "dry accepted", "claimed", "refund ok", "refund in_progress", "refund mismatch",
    "refund exceeds_balance", "refund withdrawing", "refund executed", "withdrawal begun", "withdrawal finalized",
    "lost restart", "lost older", "lost nothing",
}  # fmt: skip


@pytest.mark.timeout(3_600)
def test_both_stores_live_one_life(store_url: str, make_world: Callable[[], Any]) -> None:
    AnyOrder.url, AnyOrder.make_world, AnyOrder.steps, AnyOrder.seen = store_url, staticmethod(make_world), 0, {}
    full = settings.get_current_profile_name() == "full"
    size = {} if full else {"max_examples": 40, "stateful_step_count": 40}
    how = settings(**size, deadline=None, print_blob=True, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(AnyOrder, settings=how)
    for what, times in sorted(AnyOrder.seen.items()):
        print(f"{times:7} {what}")
    print(f"{AnyOrder.steps:7} steps")
    if full:
        assert AnyOrder.steps >= STEPS_LONG
        assert set(AnyOrder.seen) >= EXPECTED, f"never happened: {EXPECTED - set(AnyOrder.seen)}"
