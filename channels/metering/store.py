"""Defines `Store`, the atomic steps of metering, and the values that go in and come out.

Redis (`channels.redis_store`) and a dictionary (`memory_store.py`) implement it. No "get" is ever followed by a "set":
each step reads, decides and writes at once. All times are the store's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from channels.metering.channel import Outcome

Entry = tuple[str, dict[str, str]]
"""A journal entry: its stream id and fields."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try at one call.

    Attributes:
        channel_id: the channel that pays.
        call_id: identifies the call: derived from its key, or random; ids of the two kinds never meet.
        token: owns the hold; random for each attempt.
        keyed: True if the call has an Idempotency-Key.
        digest: keyed digest of the whole request.
    """

    channel_id: str
    call_id: str
    token: str
    keyed: bool
    digest: str


@dataclass(frozen=True, slots=True)
class HoldRequest:
    """Asks to hold `price` for `ttl_ms` under the ceiling `maximum`, which the payer signed with `signature`."""

    attempt: Attempt
    price: int
    maximum: int
    signature: bytes = field(repr=False)
    ttl_ms: int = 6_000


@dataclass(frozen=True, slots=True)
class ChargeRecord:
    """A charged call as the journal has it.

    Attributes:
        call_id: the call.
        incarnation: counts the rebuilds of the channel after losses; numbers are unique within one.
        seq: the charge's number in its incarnation.
        before: the channel's total charged before this charge, in atomic units.
        after: the same after it.
        at_ms: when it was charged, Unix milliseconds of the store's clock.
        body: the receipt's fixed part as JSON.
    """

    call_id: str
    incarnation: int
    seq: int
    before: int
    after: int
    at_ms: int
    body: str

    @property
    def amount(self) -> int:
        """What this call was charged, in atomic units."""
        return self.after - self.before


@dataclass(frozen=True, slots=True)
class StepResult:
    """A step's outcome, with the channel's amounts after it (zeros where the channel is unknown).

    `record` and `stored` come with REPLAYED: the record and the encrypted answer of the run that was charged. CHARGED
    has a `record` alone, for the caller has the answer.
    """

    outcome: Outcome
    charged: int = 0
    held: int = 0
    usable: int = 0
    claimed: int = 0
    refund_nonce: int = 0
    proof_maximum: int = 0
    proof_signature: bytes = b""
    record: ChargeRecord | None = None
    stored: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class LedgerSnapshot:
    """A channel as the ledger has it; `version` only grows, and an older snapshot changes nothing."""

    channel_id: str
    balance: int
    claimed: int
    withdrawing: bool
    refund_nonce: int
    version: int


@dataclass(frozen=True, slots=True)
class ChannelSnapshot:
    """A channel as SQL has it, to raise a restarted store to: it never lowers anything.

    `charged_calls` maps the id of each call charged under a key to the digest of its request.
    """

    channel_id: str
    charged: int
    seq: int
    proof_maximum: int
    proof_signature: bytes = field(repr=False)
    charged_calls: Mapping[str, str] = field(default_factory=dict, repr=False)


class Store(Protocol):
    """The steps. Each is atomic, and repeating it with the same token moves no money twice."""

    async def hold(self, request: HoldRequest, extra: int = 0, dry: bool = False) -> StepResult:
        """Takes a hold if the rules admit it.

        Args:
            request: what to hold.
            extra: atomic units to count as a deposit that is already made.
            dry: only decide; change nothing.
        """

    async def charge(
        self, request: HoldRequest, actual: int, body: str, answer: bytes, answer_ttl_ms: int
    ) -> StepResult:
        """Turns the hold of `request` into a charge of `actual`, journals it and stores the answer, all in one step."""

    async def release(self, attempt: Attempt, abandoned: bool = False) -> StepResult:
        """Gives the attempt's hold back; `abandoned` counts the call as one whose caller left while it ran."""

    async def renew(self, attempt: Attempt, ttl_ms: int) -> StepResult:
        """Lets the attempt's hold live for `ttl_ms` from now; changes nothing else of it."""

    async def amounts(self, channel_id: str) -> StepResult:
        """The channel's amounts now, without the holds that have ended: READ, or UNKNOWN_CHANNEL."""

    async def mirror(self, snapshot: LedgerSnapshot, token: int) -> None:
        """Writes the ledger's state of a channel, forward only.

        Raises:
            NotReady: `token` is not the newest treasury's; nothing was written.
        """

    async def reserve_refund(self, channel_id: str, amount: int, nonce: int, charged: int, token: int) -> str:
        """Takes a refund off the usable balance before the ledger pays it.

        Returns:
            ``ok``, or why not: ``stale``, ``unknown_channel``, ``in_progress``, ``mismatch``, ``withdrawing`` or
            ``exceeds_balance``.
        """

    async def begin_reconcile(self, token: int) -> bool:
        """Claims the store for treasury `token`; True if the server was restarted, emptied or replaced.

        Raises:
            NotReady: a newer treasury has claimed the store.
        """

    async def restore(self, snapshot: ChannelSnapshot, token: int) -> None:
        """Raises a channel to its durable state, drops its holds and starts a new incarnation of its numbers.

        Raises:
            NotReady: `token` is not the newest treasury's; nothing was written.
        """

    async def open_for_service(self, token: int, drained: Sequence[str] = ()) -> None:
        """Lets calls in: the store is reconciled, and its journals are drained up to the stream ids `drained`.

        Raises:
            NotReady: the memory was lost again meanwhile: reconcile once more.
        """

    async def read_journal(self, bucket: int, after: str, count: int) -> list[Entry]:
        """Up to `count` journal entries of a bucket after stream id `after`, in order."""

    async def trim_journal(self, bucket: int, upto: str) -> None:
        """Forgets entries up to and including `upto`; called only after they are committed to SQL."""
