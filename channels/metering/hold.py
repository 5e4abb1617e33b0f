"""Defines the values of a paid call: its identity, its checked payment and the hold on its price."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from channels.errors import ChannelError
from channels.metering.quote import Quote, Transfer
from channels.metering.store import HoldRequest, StepResult
from channels.protocol import Payment


@dataclass(frozen=True, slots=True)
class Call:
    """A call's identity: its Idempotency-Key, if it has one, and a keyed digest of the whole request."""

    key: str | None = field(repr=False)
    digest: str


@dataclass(frozen=True, slots=True)
class Checked:
    """A payment that `Meter.check` accepted for a quote; nothing else makes one, so no unchecked payment is held."""

    payment: Payment
    quote: Quote


@dataclass(slots=True)
class Hold:
    """The price of one call, set aside while the call runs.

    Attributes:
        request: what is held, and for which attempt.
        result: of the store's last step for this call.
        settled: the deposit that came with the call, if it was settled.
        done: True once the hold is charged, released or replayed.
        renewed_s: when it was last renewed, by the monotonic clock.
        stored: the answer of an earlier run of the same call: send it again, charge nothing.
    """

    request: HoldRequest
    result: StepResult
    settled: Transfer | None = None
    done: bool = False
    renewed_s: float = field(default_factory=time.monotonic)
    stored: bytes | None = field(default=None, repr=False)


class RefusedAfterPayment(Exception):
    """The call is refused although a deposit or an earlier charge stands; without notice the client would pay twice.

    Args:
        error: the refusal.
        hold: what was paid: its `settled` deposit, or the record of the charge in its `result`.
    """

    def __init__(self, error: ChannelError, hold: Hold) -> None:
        super().__init__(error.code, error.message)
        self.error, self.hold = error, hold
