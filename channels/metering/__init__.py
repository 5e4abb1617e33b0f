"""Decides whether a voucher pays for a call, holds the price while the call runs and charges what was used.

May import protocol and errors; stores implement its `Store` protocol.
"""

from channels.metering.channel import ABANDONED_LIMIT, ABANDONED_WINDOW_MS, AMOUNT_LIMIT, Outcome
from channels.metering.clock_skew import CLOCK_LIMIT_S, ClockSkewMonitor
from channels.metering.hold import Call, Checked, Hold
from channels.metering.memory_store import MemoryStore
from channels.metering.meter import Meter
from channels.metering.quote import Movement, Payee, Quote, refund_header, response_header
from channels.metering.store import Answer, Ask, Attempt, Copy, Entry, Mirror, Record, Store

__all__ = [
    "ABANDONED_LIMIT",
    "ABANDONED_WINDOW_MS",
    "AMOUNT_LIMIT",
    "CLOCK_LIMIT_S",
    "Answer",
    "Ask",
    "Attempt",
    "Call",
    "Checked",
    "ClockSkewMonitor",
    "Copy",
    "Entry",
    "Hold",
    "MemoryStore",
    "Meter",
    "Mirror",
    "Movement",
    "Outcome",
    "Payee",
    "Quote",
    "Record",
    "Store",
    "refund_header",
    "response_header",
]
