"""Defines an epoch's values: the settlement itself, its selection of a channel's receipts, and the waiting sums."""

from __future__ import annotations

from dataclasses import dataclass

from channels.ledger import ClaimRow, Credit
from channels.protocol import ChannelConfig, Voucher


@dataclass(frozen=True, slots=True)
class ClaimSelection:
    """A channel's receipts in an epoch: those up to `last_seq`, which bring the claimed total to `total`."""

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
    """The sums that wait to be settled: in all, of the channel that owes most; the oldest charge and the channels."""

    amount: int
    largest: int
    oldest_ms: int | None
    channels: int = 0
