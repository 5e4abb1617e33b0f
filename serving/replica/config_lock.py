"""`RWLock`: lets calls through, and between two of them a change of what they cost or are answered by.

A call sees one price and one set of thresholds from its quote to its receipt: a change waits for the calls that run,
and calls that come meanwhile wait for the change. None is refused over it. Used by `paywall.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType

CLOSE_TIMEOUT_S = 130.0
"""Longer than any call and its payment."""


class RWLock:
    """As a context, it is passed by one call: `async with gate:`."""

    def __init__(self) -> None:
        self._running, self._closed = 0, False
        self._changed = asyncio.Condition()

    async def __aenter__(self) -> None:
        while self._closed:
            async with self._changed:
                await self._changed.wait_for(lambda: not self._closed)
        self._running += 1

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running -= 1
        if self._closed:
            await asyncio.shield(self._tell())

    @asynccontextmanager
    async def closed(self) -> AsyncIterator[None]:
        """Nothing runs in this block.

        Raises:
            TimeoutError: the calls that run do not end.
        """
        async with self._changed:
            await self._changed.wait_for(lambda: not self._closed)  # one change at a time
            self._closed = True
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S), self._changed:
                await self._changed.wait_for(lambda: self._running == 0)
            yield
        finally:
            self._closed = False
            await asyncio.shield(self._tell())

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()
