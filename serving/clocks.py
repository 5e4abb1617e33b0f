"""`Clocks`: what the treasury and replicas do about a clock that is not the store's: refused at the start, told later.

A mesh that runs is not stopped over a clock: holds and receipts go by the store's alone, so nothing is charged wrongly.
The limit and why: `channels/clocks.py`.
"""

from __future__ import annotations

import logging
import socket
from typing import Protocol

from channels import clocks
from channels.errors import NotReady

log = logging.getLogger("leben.clocks")


class Clock(Protocol):
    """A store, as far as it has a clock."""

    async def ahead_s(self) -> float:
        """Seconds by which it is ahead of this machine's."""


class Clocks:
    """This machine's clock, compared with the store's."""

    def __init__(self, store: Clock) -> None:
        self._store = store
        self._begun = self._said = False

    async def first(self) -> None:
        """Refuses, until it has once been good, a clock that is too far from the store's.

        Raises:
            ClockSkew: it is.
            NotReady: the store does not answer.
        """
        if not self._begun:
            clocks.check(await self._store.ahead_s(), socket.gethostname())
            self._begun = True

    async def begin(self) -> None:
        """`first`, for who can start without the store: it answers 503 until there is one."""
        try:
            await self.first()
        except clocks.ClockSkew:
            raise
        except NotReady as error:
            log.warning("the clock of this machine was not compared with the store's: %s", error)

    async def skew_s(self) -> float:
        """How far the clocks are apart; one that has drifted since the start is told once, and the mesh goes on."""
        ahead = await self._store.ahead_s()
        far = abs(ahead) > clocks.CLOCK_LIMIT_S
        if far and not self._said:
            log.error(
                "ALARM: the clock of %s is %.1f s from the store's: a second treasury may take over too soon, and "
                "signed reads may be refused; let both machines follow one time server",
                socket.gethostname(),
                abs(ahead),
            )
        self._said = far
        return abs(ahead)
