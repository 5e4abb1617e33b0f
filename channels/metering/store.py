"""`Store`: the atomic steps of metering, and the values they take and give.

The consumer's view: the meter and the treasury need these, Redis (`store_redis.py`) and a dictionary
(`store_memory.py`) provide them. There is deliberately no "get" followed by "set": each step reads, decides and writes
in one go. Times are the store's own.
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
    """One try at one call. `token` owns the hold; `digest` is a keyed digest of the whole request."""

    channel_id: str
    call_id: str
    token: str
    keyed: bool
    digest: str


@dataclass(frozen=True, slots=True)
class HoldRequest:
    """What an attempt asks to hold: `price` under the ceiling `maximum` signed by `signature`, for `ttl_ms`."""

    attempt: Attempt
    price: int
    maximum: int
    signature: bytes = field(repr=False)
    ttl_ms: int = 6_000


@dataclass(frozen=True, slots=True)
class ChargeRecord:
    """A charged call as the journal has it; amounts in atomic units, `body` the receipt's fixed part as JSON."""

    call_id: str
    incarnation: int
    seq: int
    before: int
    after: int
    at_ms: int
    body: str

    @property
    def amount(self) -> int:
        """What was charged."""
        return self.after - self.before


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step did, with the channel's amounts after it (zeros where the channel is unknown).

    `stored` is an earlier run's answer, never the one that was just given: the sender has that.
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
    """What the ledger says of a channel; `version` only grows, and an older mirror changes nothing."""

    channel_id: str
    balance: int
    claimed: int
    withdrawing: bool
    refund_nonce: int
    version: int


@dataclass(frozen=True, slots=True)
class ChannelSnapshot:
    """A channel's durable copy, to raise a store to after it restarted: never lowers anything."""

    channel_id: str
    charged: int
    seq: int
    proof_maximum: int
    proof_signature: bytes = field(repr=False)
    charged_calls: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Of each call charged under a key, its id and the digest of its request."""


class Store(Protocol):
    """The steps. Each is one atomic move; each may be repeated with the same token without moving twice."""

    async def hold(self, ask: HoldRequest, extra: int = 0, dry: bool = False) -> StepResult:
        """Takes a hold if the rules admit it; `dry` only asks, counting `extra` as a deposit already made."""

    async def charge(self, ask: HoldRequest, actual: int, body: str, answer: bytes, answer_ttl_ms: int) -> StepResult:
        """Turns the hold of `ask` into a charge of `actual`, journals it and stores the answer, all in one step."""

    async def release(self, attempt: Attempt, abandoned: bool = False) -> StepResult:
        """Gives the attempt's hold back; `abandoned` counts it as hung up on while it ran."""

    async def renew(self, attempt: Attempt, ttl_ms: int) -> StepResult:
        """Lets the attempt's hold live `ttl_ms` from now."""

    async def mirror(self, mirror: LedgerSnapshot, token: int) -> None:
        """Writes what the ledger says, forward only.

        Raises:
            NotReady: `token` is not the newest treasury's; nothing was written.
        """

    async def reserve_refund(self, channel_id: str, amount: int, nonce: int, charged: int, token: int) -> str:
        """Takes a refund off the usable balance before the ledger is asked: ``ok`` or the reason it cannot be."""

    async def begin_reconcile(self, token: int) -> bool:
        """True if the server was restarted, emptied or replaced since it was last reconciled; claims `token`."""

    async def restore(self, copy: ChannelSnapshot, token: int) -> None:
        """Raises a channel to its durable copy and drops its holds; from here on its numbers are of a new incarnation.

        Raises:
            NotReady: `token` is not the newest treasury's; nothing was written.
        """

    async def open_for_service(self, token: int, drained: Sequence[str] = ()) -> None:
        """Opens the gate: the store has been reconciled, its journals read up to the stream ids `drained`.

        Raises:
            NotReady: the memory was lost again meanwhile: reconcile once more.
        """

    async def read_journal(self, bucket: int, after: str, count: int) -> list[Entry]:
        """Up to `count` journal entries of a bucket behind stream id `after`, in order."""

    async def trim_journal(self, bucket: int, upto: str) -> None:
        """Forgets entries up to and including `upto`; called only after they are committed elsewhere."""
