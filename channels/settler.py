"""`Settler`: from receipts to claims, splits and a published root."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from channels.journal import Journal
from channels.ledger import Credit, Ledger
from channels.voucher import Signer


class JournalSource(Protocol):
    """Where charges are journaled first."""

    async def read_journal(self, bucket: int, after: str, count: int) -> list[tuple[str, dict[str, str]]]:
        """Up to `count` entries behind stream id `after`, in order."""

    async def trim_journal(self, bucket: int, upto: str) -> None:
        """Forgets entries up to and including `upto`."""


@dataclass(frozen=True, slots=True)
class SettlePolicy:
    """When a settlement is due; amounts in atomic units."""

    interval_s: float = 3_600.0
    amount: int = 10_000_000
    exposure: int = 5_000_000
    rows: int = 100


@dataclass(frozen=True, slots=True)
class Settlement:
    """What one settlement did."""

    epoch: int | None = None
    claimed: int = 0
    root: str | None = None
    payouts: tuple[Credit, ...] = ()
    quarantined: tuple[str, ...] = ()


async def drain(source: JournalSource, journal: Journal, token: int, buckets: int = 64, count: int = 512) -> int:
    """Copies new entries into SQL."""
    raise NotImplementedError


class Settler:
    """Not built yet."""

    def __init__(
        self, journal: Journal, ledger: Ledger, authorizer: Signer, policy: SettlePolicy, now: Callable[[], float]
    ) -> None:
        raise NotImplementedError

    def due(self) -> str | None:
        """Why a settlement is due, or None."""
        raise NotImplementedError

    def settle(self, token: int, progress: Callable[[int, int], None] | None = None) -> Settlement:
        """Settles what is due."""
        raise NotImplementedError
