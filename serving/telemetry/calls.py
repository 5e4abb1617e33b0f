"""Defines `CallRecord`: what one call did and cost, filled on the call's way and read once at its end.

Statistics, metrics, traces and the audit log read it, so that none of them decodes the response again. It holds ids,
sizes, times, amounts and codes, and nothing that a caller wrote.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

Outcome = Literal["charged", "replayed", "free", "refused", "failed"]
"""How a call ends for its caller; alerts and dashboards query these words."""


@dataclass(frozen=True, slots=True)
class Money:
    """What a call's payment moved.

    Attributes:
        payer: address of the payer.
        channel: id of its channel.
        moved: atomic units deposited or refunded with this call, as a decimal; empty: none.
        charged: atomic units.
        transaction: of the deposit or refund on the ledger.
        receipt: the public id of the receipt; empty without one.
        seq: the receipt's number in its channel.
    """

    payer: str
    channel: str
    moved: str = ""
    charged: int = 0
    transaction: str = ""
    receipt: str = ""
    seq: int = 0


@dataclass(slots=True)
class CallRecord:
    """One call.

    Attributes:
        route: `infer`, `diagnose`, or another way in that has statistics but no line in the audit log.
        call_id: the payment's identity of the call; empty until its money is held.
        outcome: how it ended for its caller; None: it was not answered.
        code: stable code of a refusal.
        money: what it moved; None: nothing.
        hold_s: how long it took to hold its price; None: no hold was taken or refused.
        computed: whether the DApp answered it; None: the call did not get so far, or its caller has gone.
        work_ns: from the hold to the result.
        input_ns: part of it that read the inputs.
        output_ns: part of it that wrote the outputs.
    """

    route: str
    call_id: str = ""
    outcome: Outcome | None = None
    code: str = ""
    money: Money | None = None
    hold_s: float | None = None
    computed: bool | None = None
    work_ns: int = 0
    input_ns: int = 0
    output_ns: int = 0
    _running: bool = field(default=False, repr=False)
    _readers: list[Callable[[CallRecord], None]] = field(default_factory=list, repr=False)

    def begin(self) -> None:
        """Marks the call as running: it may outlive the connection that brought it."""
        self._running = True

    def finish(self) -> None:
        """Marks the call as ended and hands the record to its readers."""
        self._running = False
        for reader in self._readers:
            reader(self)
        self._readers.clear()

    def when_finished(self, reader: Callable[[CallRecord], None]) -> None:
        """Hands the record to a reader once the call has ended; at once if it does not run."""
        if self._running:
            self._readers.append(reader)
        else:
            reader(self)
