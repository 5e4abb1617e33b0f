"""`Epoch` and its parts: one settlement, what it takes of a channel, what waits for the next, and a receipt's proof."""

from __future__ import annotations

from dataclasses import dataclass

from channels.ledger import ClaimRow, Credit
from channels.protocol import ChannelConfig, Voucher


@dataclass(frozen=True, slots=True)
class ClaimSelection:
    """What an epoch takes of a channel: its receipts up to `last_seq`, which bring its claimed total to `total`."""

    config: ChannelConfig
    voucher: Voucher
    total: int
    last_seq: int


@dataclass(frozen=True, slots=True)
class Epoch:
    """One settlement; `claimed` is the sum of its receipts and of its credits, in atomic units."""

    number: int
    status: str
    root: str
    receiver: str
    claimed: int
    rows: tuple[ClaimRow, ...]
    credits: tuple[Credit, ...]
    transactions: tuple[str, ...]
    closed_ms: int = 0


@dataclass(frozen=True, slots=True)
class Totals:
    """What waits to be settled: its sum, the largest channel's part, the oldest charge's time, how many channels."""

    amount: int
    largest: int
    oldest_ms: int | None
    channels: int = 0
