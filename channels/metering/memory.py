"""Defines what `MemoryStore` remembers of a channel: its account, its holds and its charged calls."""

from __future__ import annotations

from dataclasses import dataclass, field

from channels.metering.channel import Channel
from channels.metering.store import ChargeRecord


@dataclass(slots=True)
class HeldCall:
    """A hold: its owner's token, its amount, its request's digest and when it ends."""

    token: str
    amount: int
    digest: str
    ends_ms: int


@dataclass(frozen=True, slots=True)
class ChargedCall:
    """A charged call: kept for ever if it is keyed, its record and answer only until `ends_ms`."""

    digest: str
    record: ChargeRecord | None
    answer: bytes
    keyed: bool
    ends_ms: int


@dataclass(slots=True)
class Account:
    """All that the store remembers of a channel; the fields are those of the channel's hash in Redis."""

    state: Channel
    version: int = -1
    refund_nonce: int = 0
    refunding_nonce: int | None = None
    incarnation: int = 0
    seq: int = 0
    proof: tuple[int, bytes] = (0, b"")
    holds: dict[str, HeldCall] = field(default_factory=dict)
    charged: dict[str, ChargedCall] = field(default_factory=dict)
    last: tuple[str, int, str] = ("", 0, "")
    lossy_call: str = ""
    lossy_max: int = 0
    abandoned: int = 0
    abandoned_until_ms: int = 0


@dataclass(frozen=True, slots=True)
class Memory:
    """What a store remembered at one moment."""

    accounts: dict[str, Account] = field(default_factory=dict)
    token: int = 0
