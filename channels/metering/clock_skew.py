"""Measures clock skew against the store; refuses to start beyond the limit, then warns.

The store's clock alone ends holds and dates receipts, so no node's clock can lengthen a hold or age a charge. A node's
own clock counts for the treasury's lease, the windows of deposits and signed reads, and the notice of a withdrawal. A
drifting clock never stops a running mesh, because no charge would be wrong.
"""

from __future__ import annotations

import logging
import socket
from typing import Protocol

from channels.errors import NotReady

log = logging.getLogger("leben.clocks")

CLOCK_LIMIT_S = 2.0
"""Largest allowed skew between a node's clock and the store's; any two nodes may be twice as far apart.

A treasury renews its lease of 10 s every 3.3 s; a standby takes over when the lease has ended by its own clock. With
clocks 4 s apart, at least 2 s are left for a slow renewal; with clocks 6.7 s apart, two treasuries would take the lease
from each other for ever. The fencing token would keep the money right, but nothing would be settled in order. Every
other window is 60 s or wider.
"""


class ClockSkew(NotReady):
    """A node's clock and the store's are too far apart."""


class StoreClock(Protocol):
    """A store whose clock can be read."""

    async def ahead_s(self) -> float:
        """Seconds by which the store's clock is ahead of this machine's."""


class ClockSkewMonitor:
    """Compares this machine's clock with the store's.

    Args:
        store: has the reference clock.
    """

    def __init__(self, store: StoreClock) -> None:
        self._store = store
        self._passed = self._alarmed = False

    async def check_once(self) -> None:
        """Refuses a clock beyond the limit; after the first success it checks nothing more.

        Raises:
            ClockSkew: the clock is beyond the limit.
            NotReady: the store does not answer.
        """
        if not self._passed:
            check(await self._store.ahead_s(), socket.gethostname())
            self._passed = True

    async def check_at_start(self) -> None:
        """Like `check_once`, but only warns if the store does not answer: the process answers 503 until it does."""
        try:
            await self.check_once()
        except ClockSkew:
            raise
        except NotReady as error:
            log.warning("the clock of this machine could not be compared with the store's: %s", error)

    async def skew_s(self) -> float:
        """The skew in seconds; logs one alarm each time the clock drifts beyond the limit."""
        ahead_s = await self._store.ahead_s()
        beyond = abs(ahead_s) > CLOCK_LIMIT_S
        if beyond and not self._alarmed:
            log.error(
                "ALARM: the clock of %s is %.1f s from the store's: a second treasury may take over too soon, and "
                "signed reads may be refused; synchronise both machines with one time server",
                socket.gethostname(),
                abs(ahead_s),
            )
        self._alarmed = beyond
        return abs(ahead_s)


def ahead_s(before_s: float, store_s: float, after_s: float) -> float:
    """Seconds by which the store's clock is at least ahead of ours: the round trip counts for neither side.

    Args:
        before_s: our clock before the request.
        store_s: the store's clock.
        after_s: our clock after the reply.
    """
    if store_s > after_s:
        return store_s - after_s
    return min(0.0, store_s - before_s)


def check(ahead: float, node: str) -> None:
    """Refuses a clock that is too far from the store's.

    Args:
        ahead: seconds by which the store's clock is ahead.
        node: the machine's name, for the message.

    Raises:
        ClockSkew: the clocks are too far apart.
    """
    if abs(ahead) > CLOCK_LIMIT_S:
        offset = f"{abs(ahead):.1f} s {'behind' if ahead > 0 else 'ahead of'} the store's"
        raise ClockSkew(
            "clock_skew",
            f"the clock of {node} is {offset}, {CLOCK_LIMIT_S:g} s are allowed: synchronise both machines with one "
            "time server",
        )
