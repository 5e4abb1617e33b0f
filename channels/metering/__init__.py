"""Decides whether a voucher pays for a call, holds the price while the call runs and charges what was used.

May import protocol and errors; stores implement its `Store` protocol.
"""

from channels.metering.channel import ABANDONED_LIMIT, ABANDONED_WINDOW_MS, AMOUNT_LIMIT, Outcome
from channels.metering.clock_skew import CLOCK_LIMIT_S, ClockSkewMonitor
from channels.metering.hold import Call, Checked, Hold, RefusedAfterPayment
from channels.metering.memory_store import MemoryStore
from channels.metering.meter import Meter
from channels.metering.quote import Payee, Quote, Transfer, refund_header, response_header
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

__all__ = [
    "ABANDONED_LIMIT",
    "ABANDONED_WINDOW_MS",
    "AMOUNT_LIMIT",
    "CLOCK_LIMIT_S",
    "Attempt",
    "Call",
    "ChannelSnapshot",
    "ChargeRecord",
    "Checked",
    "ClockSkewMonitor",
    "Entry",
    "Hold",
    "HoldRequest",
    "LedgerSnapshot",
    "MemoryStore",
    "Meter",
    "Outcome",
    "Payee",
    "Quote",
    "RefusedAfterPayment",
    "StepResult",
    "Store",
    "Transfer",
    "refund_header",
    "response_header",
]
