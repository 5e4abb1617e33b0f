"""Locks a replica's configuration: calls share the lock, a change holds it alone.

A call sees one price and one set of thresholds from its quote to its receipt: a change waits for the running calls, and
calls that arrive meanwhile wait for the change. None is refused because of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType

EXCLUSIVE_TIMEOUT_S = 130.0
"""Longer than any call and its payment."""


class RWLock:
    """A readers-writer lock; `async with lock:` is a reader."""

    def __init__(self) -> None:
        self._readers, self._closed = 0, False
        self._changed = asyncio.Condition()

    @property
    def closed(self) -> bool:
        """True while a writer holds the lock or waits for the readers to end."""
        return self._closed

    async def __aenter__(self) -> None:
        while self._closed:
            async with self._changed:
                await self._changed.wait_for(lambda: not self._closed)
        self._readers += 1

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._readers -= 1
        if self._closed:
            await asyncio.shield(self._notify())

    @asynccontextmanager
    async def exclusive(self) -> AsyncIterator[None]:
        """Holds the lock alone for the block.

        Raises:
            TimeoutError: the readers do not end.
        """
        async with self._changed:
            await self._changed.wait_for(lambda: not self._closed)  # one writer at a time
            self._closed = True
        try:
            async with asyncio.timeout(EXCLUSIVE_TIMEOUT_S), self._changed:
                await self._changed.wait_for(lambda: self._readers == 0)
            yield
        finally:
            self._closed = False
            await asyncio.shield(self._notify())

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()
