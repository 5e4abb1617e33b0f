"""`MemoryStore`: the steps of metering in one process's memory, for tests and for developing a DApp.

It is the readable twin of the Lua scripts: a property test drives both with the same steps and demands the same
answers. It forgets everything when its process ends, so it never carries real money.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from channels.errors import NotReady
from channels.metering.channel import (
    ABANDONED_LIMIT,
    ABANDONED_WINDOW_MS,
    AMOUNT_LIMIT,
    Channel,
    Outcome,
    admit,
    admit_late,
)
from channels.metering.store import (
    Attempt,
    ChannelSnapshot,
    ChargeRecord,
    Entry,
    HoldRequest,
    LedgerSnapshot,
    StepResult,
    Store,
)

REPLACED = "a newer treasury has taken over this store"


@dataclass(slots=True)
class _Hold:
    token: str
    amount: int
    digest: str
    ends_ms: int


@dataclass(frozen=True, slots=True)
class _Charged:
    digest: str
    record: ChargeRecord | None
    answer: bytes
    keyed: bool
    ends_ms: int


@dataclass(slots=True)
class _Account:
    state: Channel
    version: int = -1
    refund_nonce: int = 0
    refunding_nonce: int | None = None
    incarnation: int = 0
    seq: int = 0
    proof: tuple[int, bytes] = (0, b"")
    holds: dict[str, _Hold] = field(default_factory=dict)
    charged: dict[str, _Charged] = field(default_factory=dict)
    last: tuple[str, int, str] = ("", 0, "")
    lossy_call: str = ""
    lossy_max: int = 0
    abandoned: int = 0
    abandoned_until_ms: int = 0


class MemoryStore:
    """The `Store` in a dictionary; `now_ms` is its clock."""

    def __init__(
        self,
        exposure_cap: int,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        abandoned_limit: int = ABANDONED_LIMIT,
    ) -> None:
        self._cap, self._abandoned_limit = exposure_cap, abandoned_limit
        self._now_ms = now_ms
        self._accounts: dict[str, _Account] = {}
        self._open = False
        self._token = 0
        self._reconciler: int | None = None
        self.journal: list[dict[str, str]] = []

    async def hold(self, ask: HoldRequest, extra: int = 0, dry: bool = False) -> StepResult:
        """See `Store.hold`."""
        attempt, account = ask.attempt, self._account(ask.attempt)
        if isinstance(account, StepResult):
            return account
        running = account.holds.get(attempt.call_id)
        if attempt.keyed:
            if running and running.digest != attempt.digest:
                return self._answer(account, Outcome.OTHER_REQUEST)
            if charged := self._charged(account, attempt.call_id):
                return self._replayed(account, charged, attempt.digest)
        if running:
            owner = running.token == attempt.token
            return self._answer(account, Outcome.ACCEPTED if owner else Outcome.IN_PROGRESS)
        repeated = not attempt.keyed and account.last[0] and account.last[1:] == (ask.maximum, attempt.digest)
        if repeated and (charged := self._charged(account, account.last[0])):
            return self._replayed(account, charged, attempt.digest)
        waits = account.abandoned >= self._abandoned_limit and self._now_ms() < account.abandoned_until_ms
        if waits and not attempt.keyed and not account.state.withdrawing:
            return self._answer(account, Outcome.ABANDONED)
        said = admit(account.state, ask.price, ask.maximum, attempt.keyed, self._cap, extra)
        lossy = said is Outcome.ACCEPTED and not attempt.keyed and ask.maximum != _required(account.state, ask.price)
        if lossy and (ask.maximum <= account.lossy_max or account.lossy_call in account.holds):
            said = Outcome.MISMATCH
        if said is Outcome.ACCEPTED and not dry:
            account.lossy_call = attempt.call_id if lossy else account.lossy_call
            ends_ms = self._now_ms() + ask.ttl_ms
            account.holds[attempt.call_id] = _Hold(attempt.token, ask.price, attempt.digest, ends_ms)
            highest = max(account.state.highest, ask.maximum)
            account.state = replace(account.state, held=account.state.held + ask.price, highest=highest)
            if ask.maximum > account.proof[0]:
                account.proof = (ask.maximum, ask.signature)
        return self._answer(account, said)

    async def charge(self, ask: HoldRequest, actual: int, body: str, answer: bytes, answer_ttl_ms: int) -> StepResult:
        """See `Store.charge`."""
        attempt, account = ask.attempt, self._account(ask.attempt)
        if isinstance(account, StepResult):
            return account
        running = account.holds.get(attempt.call_id)
        if attempt.keyed and running and running.digest != attempt.digest:
            return self._answer(account, Outcome.OTHER_REQUEST)
        if charged := self._charged(account, attempt.call_id):
            return self._replayed(account, charged, attempt.digest)
        if running and (running.token != attempt.token or actual > running.amount):
            return self._answer(account, Outcome.REFUSED)
        if running:
            self._drop(account, attempt.call_id)
        elif admit_late(account.state, actual, attempt.keyed, self._cap) is not Outcome.CHARGED:
            return self._answer(account, Outcome.REFUSED)
        before = account.state.charged
        account.state = replace(account.state, charged=before + actual)
        account.seq += 1
        record = ChargeRecord(
            attempt.call_id, account.incarnation, account.seq, before, before + actual, self._now_ms(), body
        )
        ends_ms = self._now_ms() + answer_ttl_ms
        account.charged[attempt.call_id] = _Charged(attempt.digest, record, answer, attempt.keyed, ends_ms)
        self.journal.append({"channel": attempt.channel_id, "call": attempt.call_id, "amount": str(actual)})
        if not attempt.keyed and actual > 0:
            account.last = (attempt.call_id, ask.maximum, attempt.digest)
            account.lossy_max = max(account.lossy_max, ask.maximum)
        return self._answer(account, Outcome.CHARGED, record)

    async def release(self, attempt: Attempt, abandoned: bool = False) -> StepResult:
        """See `Store.release`."""
        account = self._account(attempt)
        if isinstance(account, StepResult):
            return account
        refused = self._not_owner(account, attempt)
        if refused:
            return refused
        self._drop(account, attempt.call_id)
        if abandoned:
            fresh = self._now_ms() >= account.abandoned_until_ms
            account.abandoned = 1 if fresh else account.abandoned + 1
            account.abandoned_until_ms = self._now_ms() + ABANDONED_WINDOW_MS if fresh else account.abandoned_until_ms
        return self._answer(account, Outcome.RELEASED)

    async def renew(self, attempt: Attempt, ttl_ms: int) -> StepResult:
        """See `Store.renew`."""
        account = self._account(attempt)
        if isinstance(account, StepResult):
            return account
        refused = self._not_owner(account, attempt)
        if refused:
            return refused
        hold = account.holds[attempt.call_id]
        hold.ends_ms = self._now_ms() + ttl_ms
        return self._answer(account, Outcome.RENEWED)

    async def mirror(self, mirror: LedgerSnapshot, token: int) -> None:
        """See `Store.mirror`."""
        if token < self._token:
            raise NotReady("stale_treasury", REPLACED)
        account = self._accounts.setdefault(mirror.channel_id, _Account(Channel(0), incarnation=token))
        if mirror.version < account.version:
            return
        balance = min(mirror.balance, AMOUNT_LIMIT - 1)
        state = replace(account.state, balance=balance, claimed=mirror.claimed, withdrawing=mirror.withdrawing)
        if balance < account.state.balance and mirror.refund_nonce == account.refund_nonce:
            # Withdrawn: a new epoch of the cover begins, as after a full refund.
            state, account.last = replace(state, highest=state.charged), ("", 0, "")
        if account.refunding_nonce is not None and mirror.refund_nonce > account.refunding_nonce:
            state, account.refunding_nonce = replace(state, refunding=0), None
        account.state, account.version, account.refund_nonce = state, mirror.version, mirror.refund_nonce

    async def reserve_refund(self, channel_id: str, amount: int, nonce: int, charged: int, token: int) -> str:
        """See `Store.reserve_refund`."""
        if token < self._token:
            return "stale"
        account = self._accounts.get(channel_id)
        if account is None or account.version < 0:
            return "unknown_channel"
        if account.refunding_nonce is not None:
            return "ok" if (account.refunding_nonce, account.state.refunding) == (nonce, amount) else "in_progress"
        if account.state.charged != charged:
            return "mismatch"
        if account.state.held:
            return "in_progress"
        if account.state.withdrawing:
            return "withdrawing"
        rest = account.state.balance - account.state.charged
        if rest < amount:
            return "exceeds_balance"
        account.state, account.refunding_nonce = replace(account.state, refunding=amount), nonce
        if rest == amount:
            account.state, account.last = replace(account.state, highest=account.state.charged), ("", 0, "")
        return "ok"

    async def begin_reconcile(self, token: int) -> bool:
        """See `Store.begin_reconcile`."""
        self._take_over(token)
        if not self._open:
            self._reconciler = token
        return not self._open

    async def open_for_service(self, token: int, drained: Sequence[str] = ()) -> None:
        """See `Store.open_for_service`."""
        self._take_over(token)
        if not self._open and self._reconciler not in (None, token):
            raise NotReady("not_ready", "the store was emptied while it was reconciled")
        self._open = True

    async def restore(self, copy: ChannelSnapshot, token: int) -> None:
        """See `Store.restore`."""
        if token < self._token:
            raise NotReady("stale_treasury", REPLACED)
        account = self._accounts.setdefault(copy.channel_id, _Account(Channel(0)))
        state = account.state
        highest = max(state.highest, copy.proof_maximum)
        charged = max(state.charged, copy.charged)
        account.state = replace(state, held=0, lossy=True, charged=charged, highest=highest)
        account.seq, account.incarnation = max(account.seq, copy.seq), token
        if copy.proof_maximum > account.proof[0]:
            account.proof = (copy.proof_maximum, copy.proof_signature)
        account.holds.clear()
        for call_id, digest in copy.charged_calls.items():
            account.charged.setdefault(call_id, _Charged(digest, None, b"", True, 0))

    async def read_journal(self, bucket: int, after: str, count: int) -> list[Entry]:
        """See `Store.read_journal`: nothing to drain, because nothing here outlives the process."""
        return []

    async def trim_journal(self, bucket: int, upto: str) -> None:
        """See `Store.trim_journal`."""

    def _account(self, attempt: Attempt) -> _Account | StepResult:
        if not self._open:
            raise NotReady("not_ready", "the store is being reconciled with the ledger; nothing was charged, retry")
        account = self._accounts.get(attempt.channel_id)
        if account is None or account.version < 0:
            return StepResult(Outcome.UNKNOWN_CHANNEL)
        for call_id in [name for name, hold in account.holds.items() if hold.ends_ms <= self._now_ms()]:
            self._drop(account, call_id)
        return account

    def _not_owner(self, account: _Account, attempt: Attempt) -> StepResult | None:
        running = account.holds.get(attempt.call_id)
        if attempt.keyed and running and running.digest != attempt.digest:
            return self._answer(account, Outcome.OTHER_REQUEST)
        owner = running is not None and running.token == attempt.token
        return None if owner else self._answer(account, Outcome.NOT_OWNER)

    def _charged(self, account: _Account, call_id: str) -> _Charged | None:
        """A charged call: kept for ever under its key; its record and answer for a while."""
        found = account.charged.get(call_id)
        return found if found and (found.keyed or found.ends_ms > self._now_ms()) else None

    def _replayed(self, account: _Account, charged: _Charged, digest: str) -> StepResult:
        if charged.digest != digest:
            return self._answer(account, Outcome.OTHER_REQUEST)
        kept = charged.ends_ms > self._now_ms()
        record, stored = (charged.record, charged.answer or None) if kept else (None, None)
        return self._answer(account, Outcome.REPLAYED, record, stored)

    def _take_over(self, token: int) -> None:
        if token < self._token:
            raise NotReady("stale_treasury", REPLACED)
        self._token = token

    @staticmethod
    def _drop(account: _Account, call_id: str) -> None:
        hold = account.holds.pop(call_id)
        account.state = replace(account.state, held=account.state.held - hold.amount)

    @staticmethod
    def _answer(
        account: _Account, outcome: Outcome, record: ChargeRecord | None = None, stored: bytes | None = None
    ) -> StepResult:
        state = account.state
        amounts = (state.charged, state.held, state.usable, state.claimed, account.refund_nonce)
        return StepResult(outcome, *amounts, *account.proof, record, stored)


def _required(state: Channel, price: int) -> int:
    return state.charged + state.held + price


def _fits(store: MemoryStore) -> Store:
    return store
