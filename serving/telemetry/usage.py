"""`Execution` and `Usage`: what one run of the device was, and what one call has used of it.

The batcher tells both; statistics add up the first, and the price by the second of the device is made of the other.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Execution:
    """One batch that ran: for statistics.

    Attributes:
        rows: its size.
        calls: how many calls it answered.
        queued_ns: how long they had waited, added up.
        took_ns: how long it ran.
    """

    rows: int
    calls: int
    queued_ns: int
    took_ns: int


@dataclass(slots=True)
class Usage:
    """What one call has used of the device, added up over its submissions.

    Attributes:
        device_ns: of each batch that answered it, the time in proportion to its rows; a run that failed is no use.
        began_ns: wall clock at which the last batch that answered it went to the device.
        ended_ns: and when its answer was there.
    """

    device_ns: int = 0
    began_ns: int = 0
    ended_ns: int = 0
