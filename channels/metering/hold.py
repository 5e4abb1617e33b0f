"""`Call`, `Checked` and `Hold`: what the meter is asked for, what it found good, and the money set aside for it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from channels.errors import ChannelError
from channels.metering.quote import Quote, Transfer
from channels.metering.store import HoldRequest, StepResult
from channels.protocol import Payment


@dataclass(frozen=True, slots=True)
class Call:
    """A call's identity: its Idempotency-Key if it has one, and a keyed digest of everything it asks."""

    key: str | None = field(repr=False)
    digest: str


@dataclass(frozen=True, slots=True)
class Checked:
    """A payment that `Meter.check` found good for a quote; nothing else makes one, so nothing is held unchecked."""

    payment: Payment
    quote: Quote


@dataclass(slots=True)
class Hold:
    """Money set aside for one call while it runs."""

    request: HoldRequest
    result: StepResult
    settled: Transfer | None = None
    done: bool = False
    renewed_s: float = field(default_factory=time.monotonic)
    stored: bytes | None = field(default=None, repr=False)
    """The answer of an earlier run of the same call: give it again, charge nothing."""


class RefusedAfterPayment(Exception):
    """The call is refused although a deposit or an earlier charge stands; a client that is not told so pays twice.

    Args:
        error: the refusal.
        hold: what was paid: its `settled` deposit, or the record of the charge in its `result`.
    """

    def __init__(self, error: ChannelError, hold: Hold) -> None:
        super().__init__(error.code, error.message)
        self.error, self.hold = error, hold
