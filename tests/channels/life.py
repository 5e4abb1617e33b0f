"""Models three channels of one payer with two stores, a journal, a ledger and a treasury that may fail.

Defines the steps of the treasury and the invariants; `test_state_machine.py` adds the steps of calls and their orders.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant

from channels.errors import LedgerError
from channels.ledger.ledger import LedgerChannel
from channels.metering.channel import ABANDONED_WINDOW_MS, AMOUNT_LIMIT, Outcome
from channels.metering.store import Attempt, ChannelSnapshot, ChargeRecord, HoldRequest, LedgerSnapshot
from channels.protocol.signer import Signer
from channels.receipts import split_charge
from channels.redis_store import keys
from channels.settlement.settler import drain
from serving.treasury.transfers import mirror_of
from tests.channels.twins import START_MS, Memories, Twins

BUCKETS = (0, 0, 1)
"""The bucket of each channel: two share a journal."""
TTL_MS, ANSWER_MS, DELAY_MS = 6_000, 600_000, 900_000
PAYER, MESH, OWNER = (Signer(bytes([number] * 32)) for number in (2, 1, 3))


def word32(number: int) -> str:
    return "0x" + number.to_bytes(32, "big").hex()


def body(amount: int) -> str:
    shares = split_charge(amount, [("knowledge", OWNER.address, 3_000), ("compute", MESH.address, 7_000)])
    fixed = {"dapp": "chdr", "version": "1.0", "units": 1}
    fixed |= {name: word32(place) for place, name in enumerate(("model", "request", "result"))}
    return json.dumps(fixed | {"shares": [[share.carrier, share.owner, share.amount] for share in shares]})


@dataclass
class Line:
    """A channel as the test knows it."""

    salt: int
    id: str
    ledger: LedgerChannel | None = None
    deposits: int = 0
    refunded: int = 0
    withdrawn: int = 0
    mirrors: list[LedgerSnapshot] = field(default_factory=list)
    intent: tuple[int, int] | None = None
    charges: dict[str, ChargeRecord] = field(default_factory=dict)
    paid: int = 0
    """Highest ceiling that paid without a key since the store last lost memory."""
    before: int = 0
    """What was charged at the step before."""


class Life(RuleBasedStateMachine):
    """The world before the first step, the treasury's doings, and the invariants."""

    url: str
    make_world: Callable[[], Any]
    steps = 0
    seen: dict[str, int]

    @initialize(
        scale=st.sampled_from(["small", "small", "exact"]), cap=st.sampled_from([1, 2, 8]), rich=st.sampled_from([2, 3])
    )
    def start(self, scale: str, cap: int, rich: int) -> None:
        self.runner = asyncio.Runner()
        self.world = self.make_world()
        self.world.clock.now_s = START_MS / 1000
        # Eight units make the largest balance: just below 2^53, where a Lua number ends being exact.
        self.unit = 8 if scale == "small" else AMOUNT_LIMIT // 8
        self.cap = min(self.unit * cap, AMOUNT_LIMIT - 1)
        self.world.ledger.fund(PAYER.address, AMOUNT_LIMIT - 1)
        self.twins = Twins(self.url, self.cap)
        self.lines = self.opened_lines()
        self.tries: list[HoldRequest] = []
        self.held: set[str] = set()
        self.calls = 0
        self.open = False
        self.saved: Memories | None = None
        self.copies = {copy.channel_id: copy for copy in self.world.journal.channels()}
        self.reconcile(False)
        for line in self.lines[:rich]:
            self.fund(line, self.unit * (4 if scale == "small" else 2) - 1, True)

    def opened_lines(self) -> list[Line]:
        lines: list[Line] = []
        for salt in range(100_000):
            identity = self.world.identity(salt)
            if keys.bucket(identity) == BUCKETS[len(lines)]:
                lines.append(Line(salt, identity))
                self.world.journal.remember_channel(self.world.config(salt), identity, self.world.token)
            if len(lines) == len(BUCKETS):
                break
        return lines

    def at(self, now_ms: int) -> None:
        """One clock for the stores and the ledger."""
        self.twins.server.at(now_ms)
        self.world.clock.now_s = now_ms / 1000

    def run(self, step: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(step)

    def twin(self, step: str, *words: Any, **named: Any) -> Any:
        return self.run(self.twins(step, *words, **named))

    def state(self, line: Line) -> Any:
        account = self.twins.model.accounts.get(line.id)
        return account.state if account else None

    def amount(self, eighths: int, off: int) -> int:
        return max(0, self.unit * eighths // 8 + off)

    def moved(self, line: Line, after: LedgerChannel) -> None:
        """The ledger changed a channel; mirroring the change is another step."""
        line.ledger = after
        line.mirrors.append(mirror_of(after))

    def mirror(self, line: Line, mirror: LedgerSnapshot) -> None:
        self.twin("mirror", mirror, self.world.token)
        if line.intent and mirror.refund_nonce > line.intent[1]:
            line.intent = None

    def note(self, what: str) -> None:
        self.seen[what] = self.seen.get(what, 0) + 1

    def fund(self, line: Line, much: int, mirrored: bool) -> None:
        try:
            authorised = self.world.authorise(much, line.salt, self.calls)
            self.calls += 1
            done = self.world.ledger.deposit(self.world.config(line.salt), authorised)
        except LedgerError:
            return
        line.deposits += much
        self.moved(line, done.channel)
        if mirrored:
            self.mirror(line, line.mirrors[-1])

    def drained(self) -> None:
        self.run(drain(self.twins.real, self.world.journal, self.world.token, buckets=2))
        self.copies = {copy.channel_id: copy for copy in self.world.journal.channels()}
        self.positions = self.world.journal.positions()
        for bucket in set(BUCKETS):
            after = self.positions.get(bucket, "0-0")
            assert not self.run(self.twins.real.read_journal(bucket, after, 1)), "the journal cannot be drained"

    def settled(self, mirrored: bool) -> None:
        self.drained()
        done = self.world.settler().settle(self.world.token)
        withdrawn = {line.id for line in self.lines if line.withdrawn}
        assert set(done.quarantined) <= withdrawn, "a charge that no voucher or balance covers"
        for line in self.lines:
            after = self.world.ledger.channel(line.id)
            if after is not None and after != line.ledger:
                self.note("claimed")
                self.moved(line, after)
                if mirrored:
                    self.mirror(line, line.mirrors[-1])

    def old_treasury_steps(self, channel: int, step: str) -> None:
        old, line = self.world.token - 1, self.lines[channel]
        if step == "mirror" and line.mirrors:
            spoilt = replace(line.mirrors[-1], balance=AMOUNT_LIMIT - 1, version=line.mirrors[-1].version + 100)
            self.twin("mirror", spoilt, old)
        if step == "reserve_refund":
            assert self.twin("reserve_refund", line.id, 1, 0, line.before, old) == "stale"
        if step == "restore":
            self.twin("restore", ChannelSnapshot(line.id, 8 * self.unit, 99, 8 * self.unit, bytes(65)), old)
        if step in ("begin_reconcile", "open_for_service"):
            assert self.twin(step, old) == "stale_treasury"

    def memory_lost(self, how: str, at_once: bool, twice: bool) -> None:
        self.note(f"lost {how}")
        memory = {"restart": self.twins.snapshot(), "older": self.saved, "nothing": None}[how]
        self.twins.lose(memory)
        self.open = False
        if at_once:
            self.reconcile(twice)

    def reconcile(self, twice: bool) -> None:
        token = self.world.token = self.world.journal.acquire("next")
        assert self.twin("begin_reconcile", token) is True
        self.drained()
        for copy in self.copies.values():
            calls = self.world.journal.charged_keys(copy.channel_id)
            proof = (copy.proof_maximum, copy.proof_signature)
            self.twin("restore", ChannelSnapshot(copy.channel_id, copy.charged, copy.seq, *proof, dict(calls)), token)
        if twice:
            self.twins.lose(None)
            assert self.twin("open_for_service", token) == "not_ready", "opened over a memory that nobody reconciled"
            return
        for line in self.lines:
            if line.ledger is None:
                continue
            self.mirror(line, mirror_of(line.ledger))
            if line.intent:
                charged = self.copies[line.id].charged
                reply = self.twin("reserve_refund", line.id, *line.intent, charged, token)
                assert reply == "ok" or line.ledger.withdraw_amount or line.withdrawn, reply
                line.intent = line.intent if reply == "ok" else None
        drained = [self.positions.get(number, "0-0") for number in range(keys.BUCKETS)]
        assert self.twin("open_for_service", token, drained) is None
        self.open = True
        for line in self.lines:
            now = self.copies[line.id].charged
            assert line.before - now <= self.cap, "lost more than the cap"
            stored = {receipt.call_id for receipt in self.world.journal.receipts(line.id)}
            line.charges = {call: record for call, record in line.charges.items() if call in stored}
            line.before, line.paid = now, 0

    def refund_executed(self, line: Line, mirrored: bool) -> None:
        if line.intent is None or line.ledger is None or line.ledger.refund_nonce != line.intent[1]:
            return
        amount, nonce = line.intent
        try:
            signature = self.world.sign_refund(amount, nonce, line.salt)
            done = self.world.ledger.refund(self.world.config(line.salt), amount, nonce, signature)
        except LedgerError:
            assert line.withdrawn, "only a withdrawal may take what a refund has set aside"
            return
        line.refunded += amount
        self.moved(line, done.channel)
        self.note("refund executed")
        if mirrored:
            self.mirror(line, line.mirrors[-1])

    # What holds after every step

    @invariant()
    def both_remember_the_same(self) -> None:
        type(self).steps += 1
        self.twins.agree([line.id for line in self.lines])

    @invariant()
    def money_is_whole(self) -> None:
        if not self.open:
            return
        for line in self.lines:
            account = self.twins.model.accounts.get(line.id)
            if account is None:
                continue
            state, proof = account.state, account.proof[0]
            assert 0 <= state.claimed <= state.charged <= proof < AMOUNT_LIMIT
            assert state.highest <= proof and state.charged >= line.before, "charged fell"
            assert state.held == sum(hold.amount for hold in account.holds.values()) >= 0
            assert state.charged == sum(record.amount for record in line.charges.values())
            if not line.withdrawn:
                assert state.charged + state.held <= state.usable
            line.before = state.charged
            if line.ledger is not None:
                assert line.ledger.balance == line.deposits - line.refunded - line.withdrawn
                assert state.charged - line.ledger.total_claimed <= self.cap

    @invariant()
    def receipts_are_whole(self) -> None:
        """What SQL has and what waits in the journal are, number by number, what is charged."""
        if not self.open:
            return
        after = {line.id: (self.copies[line.id].seq, self.copies[line.id].charged) for line in self.lines}
        for bucket in sorted(set(BUCKETS)):
            begin = self.positions.get(bucket, "0-0")
            for _, fields in self.run(self.twins.real.read_journal(bucket, begin, 1_000)):
                seq, charged = after[fields["channel"]]
                assert (int(fields["seq"]), int(fields["before"])) == (seq + 1, charged)
                assert int(fields["amount"]) == int(fields["after"]) - charged
                assert int(fields["proof_max"]) >= int(fields["after"])
                after[fields["channel"]] = seq + 1, int(fields["after"])
        for line in self.lines:
            state = self.state(line)
            assert after[line.id][1] == (state.charged if state else 0)

    def teardown(self) -> None:
        if not hasattr(self, "twins"):
            return
        try:
            if sys.exc_info()[0] is None:  # report the step's own failure
                self.ends_well()
        finally:
            self.run(self.twins.close())
            self.runner.close()
            self.world.close()

    def ends_well(self) -> None:
        """An honest payer with money is served in the end, and the books are whole."""
        if not self.open:
            self.reconcile(False)
        self.at(self.twins.server.now_ms + ABANDONED_WINDOW_MS)
        for line in self.lines:
            self.refund_executed(line, True)
        while True:
            seen = [line.ledger for line in self.lines]
            self.settled(True)
            if seen == [line.ledger for line in self.lines]:
                break
        for line in self.lines:
            if line.ledger is None:
                continue
            self.mirror(line, mirror_of(line.ledger))
            state = self.state(line)
            if state.withdrawing or state.usable <= state.charged or line.withdrawn:
                continue
            assert state.claimed == state.charged
            for keyed in (True, False):
                self.calls += 1
                call = Attempt(line.id, word32(2_000_000 + self.calls), "honest", keyed, word32(0))
                ask = HoldRequest(
                    call, 1, state.charged + 1, self.world.voucher(state.charged + 1, line.salt).signature
                )
                assert self.twin("hold", ask).outcome is Outcome.ACCEPTED
                assert self.twin("release", call).outcome is Outcome.RELEASED
        self.both_remember_the_same()
        self.money_is_whole()
        self.world.ledger.verify()
        self.world.journal.verify()
