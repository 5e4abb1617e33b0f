"""`MemoryStore` runs the steps of metering in one process's memory, for tests and for developing a DApp.

It is the readable twin of the Lua scripts: a property test drives both with the same steps and requires the same
replies. It forgets everything when its process ends, so it never carries real money.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

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
from channels.metering.memory import Account, ChargedCall, HeldCall, Memory
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
NOBODY = -1
"""No treasury's token: nobody has begun to reconcile a memory that was lost."""


class MemoryStore:
    """The `Store` in a dictionary.

    `accounts` maps channel ids to what is remembered of them, `journal` lists the charges; both are for tests to read.

    Args:
        exposure_cap: atomic units that a channel may owe before its charges are claimed.
        now_ms: the clock, Unix milliseconds.
        abandoned_limit: how many unkeyed calls of a channel may be abandoned in a minute.
    """

    def __init__(
        self,
        exposure_cap: int,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        abandoned_limit: int = ABANDONED_LIMIT,
    ) -> None:
        self._cap, self._abandoned_limit = exposure_cap, abandoned_limit
        self._now_ms = now_ms
        self._open = False
        self._token = 0
        self._reconciler: int | None = None
        self.accounts: dict[str, Account] = {}
        self.journal: list[dict[str, str]] = []

    async def hold(self, request: HoldRequest, extra: int = 0, dry: bool = False) -> StepResult:
        """See `Store.hold`."""
        attempt, account = request.attempt, self._account(request.attempt.channel_id)
        if account is None:
            return StepResult(Outcome.UNKNOWN_CHANNEL)
        running = account.holds.get(attempt.call_id)
        if attempt.keyed:
            if running and running.digest != attempt.digest:
                return self._result(account, Outcome.OTHER_REQUEST)
            if charged := self._charged(account, attempt.call_id):
                return self._replayed(account, charged, attempt.digest)
        if running:
            owner = running.token == attempt.token
            return self._result(account, Outcome.ACCEPTED if owner else Outcome.IN_PROGRESS)
        repeated = not attempt.keyed and account.last[0] and account.last[1:] == (request.maximum, attempt.digest)
        if repeated and (charged := self._charged(account, account.last[0])):
            return self._replayed(account, charged, attempt.digest)
        waits = account.abandoned >= self._abandoned_limit and self._now_ms() < account.abandoned_until_ms
        if waits and not attempt.keyed and not account.state.withdrawing:
            return self._result(account, Outcome.ABANDONED)
        outcome = admit(account.state, request.price, request.maximum, attempt.keyed, self._cap, extra)
        exact = request.maximum == _required(account.state, request.price)
        lossy = outcome is Outcome.ACCEPTED and not attempt.keyed and not exact
        if lossy and (request.maximum <= account.lossy_max or account.lossy_call in account.holds):
            outcome = Outcome.MISMATCH
        if outcome is Outcome.ACCEPTED and not dry:
            account.lossy_call = attempt.call_id if lossy else account.lossy_call
            ends_ms = self._now_ms() + request.ttl_ms
            account.holds[attempt.call_id] = HeldCall(attempt.token, request.price, attempt.digest, ends_ms)
            highest = max(account.state.highest, request.maximum)
            account.state = replace(account.state, held=account.state.held + request.price, highest=highest)
            if request.maximum > account.proof[0]:
                account.proof = (request.maximum, request.signature)
        return self._result(account, outcome)

    async def charge(
        self, request: HoldRequest, actual: int, body: str, answer: bytes, answer_ttl_ms: int
    ) -> StepResult:
        """See `Store.charge`."""
        attempt, account = request.attempt, self._account(request.attempt.channel_id)
        if account is None:
            return StepResult(Outcome.UNKNOWN_CHANNEL)
        running = account.holds.get(attempt.call_id)
        if attempt.keyed and running and running.digest != attempt.digest:
            return self._result(account, Outcome.OTHER_REQUEST)
        if charged := self._charged(account, attempt.call_id):
            return self._replayed(account, charged, attempt.digest)
        if running and (running.token != attempt.token or actual > running.amount):
            return self._result(account, Outcome.REFUSED)
        if running:
            self._drop(account, attempt.call_id)
        elif admit_late(account.state, actual, attempt.keyed, self._cap) is not Outcome.CHARGED:
            return self._result(account, Outcome.REFUSED)
        before = account.state.charged
        account.state = replace(account.state, charged=before + actual)
        account.seq += 1
        record = ChargeRecord(
            attempt.call_id, account.incarnation, account.seq, before, before + actual, self._now_ms(), body
        )
        ends_ms = self._now_ms() + answer_ttl_ms
        account.charged[attempt.call_id] = ChargedCall(attempt.digest, record, answer, attempt.keyed, ends_ms)
        self.journal.append({"channel": attempt.channel_id, "call": attempt.call_id, "amount": str(actual)})
        if not attempt.keyed and actual > 0:
            account.last = (attempt.call_id, request.maximum, attempt.digest)
            account.lossy_max = max(account.lossy_max, request.maximum)
        return self._result(account, Outcome.CHARGED, record)

    async def release(self, attempt: Attempt, abandoned: bool = False) -> StepResult:
        """See `Store.release`."""
        account = self._account(attempt.channel_id)
        if account is None:
            return StepResult(Outcome.UNKNOWN_CHANNEL)
        if refused := self._not_owner(account, attempt):
            return refused
        self._drop(account, attempt.call_id)
        if abandoned:
            fresh = self._now_ms() >= account.abandoned_until_ms
            account.abandoned = 1 if fresh else account.abandoned + 1
            account.abandoned_until_ms = self._now_ms() + ABANDONED_WINDOW_MS if fresh else account.abandoned_until_ms
        return self._result(account, Outcome.RELEASED)

    async def renew(self, attempt: Attempt, ttl_ms: int) -> StepResult:
        """See `Store.renew`."""
        account = self._account(attempt.channel_id)
        if account is None:
            return StepResult(Outcome.UNKNOWN_CHANNEL)
        if refused := self._not_owner(account, attempt):
            return refused
        hold = account.holds[attempt.call_id]
        hold.ends_ms = self._now_ms() + ttl_ms
        return self._result(account, Outcome.RENEWED)

    async def amounts(self, channel_id: str) -> StepResult:
        """See `Store.amounts`."""
        account = self._account(channel_id)
        return StepResult(Outcome.UNKNOWN_CHANNEL) if account is None else self._result(account, Outcome.READ)

    async def mirror(self, snapshot: LedgerSnapshot, token: int) -> None:
        """See `Store.mirror`."""
        if token < self._token:
            raise NotReady("stale_treasury", REPLACED)
        account = self.accounts.setdefault(snapshot.channel_id, Account(Channel(0), incarnation=token))
        if snapshot.version < account.version:
            return
        balance = min(snapshot.balance, AMOUNT_LIMIT - 1)
        state = replace(account.state, balance=balance, claimed=snapshot.claimed, withdrawing=snapshot.withdrawing)
        if balance < account.state.balance and snapshot.refund_nonce == account.refund_nonce:
            # Withdrawn: a new epoch of the cover begins, as after a full refund.
            state, account.last = replace(state, highest=state.charged), ("", 0, "")
        if account.refunding_nonce is not None and snapshot.refund_nonce > account.refunding_nonce:
            state, account.refunding_nonce = replace(state, refunding=0), None
        account.state, account.version, account.refund_nonce = state, snapshot.version, snapshot.refund_nonce

    async def reserve_refund(self, channel_id: str, amount: int, nonce: int, charged: int, token: int) -> str:
        """See `Store.reserve_refund`."""
        if token < self._token:
            return "stale"
        account = self.accounts.get(channel_id)
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

    async def restore(self, snapshot: ChannelSnapshot, token: int) -> None:
        """See `Store.restore`."""
        if token < self._token:
            raise NotReady("stale_treasury", REPLACED)
        account = self.accounts.setdefault(snapshot.channel_id, Account(Channel(0)))
        state = account.state
        highest = max(state.highest, snapshot.proof_maximum)
        charged = max(state.charged, snapshot.charged)
        account.state = replace(state, held=0, lossy=True, charged=charged, highest=highest)
        account.seq, account.incarnation = max(account.seq, snapshot.seq), token
        if snapshot.proof_maximum > account.proof[0]:
            account.proof = (snapshot.proof_maximum, snapshot.proof_signature)
        account.holds.clear()
        for call_id, digest in snapshot.charged_calls.items():
            account.charged.setdefault(call_id, ChargedCall(digest, None, b"", True, 0))

    async def read_journal(self, bucket: int, after: str, count: int) -> list[Entry]:
        """See `Store.read_journal`: always empty, for nothing here outlives the process."""
        return []

    async def trim_journal(self, bucket: int, upto: str) -> None:
        """See `Store.trim_journal`."""

    def memory(self) -> Memory:
        """A copy of what the store remembers now."""
        return Memory(copy.deepcopy(self.accounts), self._token)

    def restart(self, memory: Memory | None = None) -> None:
        """Restarts as a server does that comes back with `memory`: nothing is served until it is reconciled."""
        restored = copy.deepcopy(memory or Memory())
        self.accounts, self._token = restored.accounts, restored.token
        self._open, self._reconciler = False, NOBODY

    def _account(self, channel_id: str) -> Account | None:
        """A channel that the ledger knows, its ended holds given back; None for any other."""
        if not self._open:
            raise NotReady("not_ready", "the store is being reconciled with the ledger; nothing was charged, retry")
        account = self.accounts.get(channel_id)
        if account is None or account.version < 0:
            return None
        for call_id in [name for name, hold in account.holds.items() if hold.ends_ms <= self._now_ms()]:
            self._drop(account, call_id)
        return account

    def _not_owner(self, account: Account, attempt: Attempt) -> StepResult | None:
        running = account.holds.get(attempt.call_id)
        if attempt.keyed and running and running.digest != attempt.digest:
            return self._result(account, Outcome.OTHER_REQUEST)
        owner = running is not None and running.token == attempt.token
        return None if owner else self._result(account, Outcome.NOT_OWNER)

    def _charged(self, account: Account, call_id: str) -> ChargedCall | None:
        """A call that counts as charged: for ever with a key, until its answer ends without."""
        charged = account.charged.get(call_id)
        return charged if charged and (charged.keyed or charged.ends_ms > self._now_ms()) else None

    def _replayed(self, account: Account, charged: ChargedCall, digest: str) -> StepResult:
        if charged.digest != digest:
            return self._result(account, Outcome.OTHER_REQUEST)
        if charged.ends_ms <= self._now_ms():
            return self._result(account, Outcome.REPLAYED)
        return self._result(account, Outcome.REPLAYED, charged.record, charged.answer or None)

    def _take_over(self, token: int) -> None:
        if token < self._token:
            raise NotReady("stale_treasury", REPLACED)
        self._token = token

    @staticmethod
    def _drop(account: Account, call_id: str) -> None:
        hold = account.holds.pop(call_id)
        account.state = replace(account.state, held=account.state.held - hold.amount)

    @staticmethod
    def _result(
        account: Account, outcome: Outcome, record: ChargeRecord | None = None, stored: bytes | None = None
    ) -> StepResult:
        state, (proof_maximum, proof_signature) = account.state, account.proof
        return StepResult(
            outcome=outcome,
            charged=state.charged,
            held=state.held,
            usable=state.usable,
            claimed=state.claimed,
            refund_nonce=account.refund_nonce,
            proof_maximum=proof_maximum,
            proof_signature=proof_signature,
            record=record,
            stored=stored,
        )


def _required(state: Channel, price: int) -> int:
    return state.charged + state.held + price


def _fits(store: MemoryStore) -> Store:
    return store
