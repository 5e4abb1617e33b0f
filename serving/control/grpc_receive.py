"""`Reading`: receives the messages of gRPC calls, a bounded number at once and each within a bounded time.

gRPC announces no size and hands a message over when it is whole. Until then a caller who sends slowly, or nothing,
would keep its place for ever, and memory for as much as it has sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from serving.errors import CallError

READ_TIMEOUT_S = 20.0
"""As long as a body has over HTTP."""
PLACES = 32
PATIENCE_S = 2.0
"""How long a message may take while others wait for its place: 64 MiB pass in a fraction of it."""


class Reading:
    """Places for messages that are on their way.

    Args:
        timeout_s: a message takes at most so long.
        places: so many are received at once; what comes in excess is held back by the protocol's flow control.
        patience_s: when all places are taken, the oldest message gives way once it has taken so long.
    """

    def __init__(self, timeout_s: float = READ_TIMEOUT_S, places: int = PLACES, patience_s: float = PATIENCE_S) -> None:
        self._timeout_s, self._places, self._patience_s = timeout_s, places, patience_s
        self._readers: dict[asyncio.Future[None], float] = {}
        """Since when each receives, oldest first; a future is done once its place is free."""

    async def message(self, messages: AsyncIterator[bytes]) -> bytes:
        """The one message of a call.

        Raises:
            CallError: `slow_body`, or `bad_request`: there is none.
        """
        place = await self._place()
        # Never cancelled: what receives ends with its call, and a refusal ends the call.
        reading = asyncio.ensure_future(_first(messages))
        try:
            either: set[asyncio.Future[Any]] = {reading, place}
            await asyncio.wait(either, timeout=self._timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._leave(place)
        if not reading.done():
            reading.add_done_callback(_forget)
            raise CallError("slow_body", f"a message has {self._timeout_s:.0f} s to arrive, and less when many do")
        if (body := reading.result()) is None:
            raise CallError("bad_request", "the call ends without a message")
        return body

    async def _place(self) -> asyncio.Future[None]:
        loop = asyncio.get_running_loop()
        while len(self._readers) >= self._places:
            oldest, since_s = next(iter(self._readers.items()))
            spare_s = since_s + self._patience_s - loop.time()
            if spare_s <= 0:
                self._leave(oldest)
            else:
                await asyncio.wait(set(self._readers), timeout=spare_s, return_when=asyncio.FIRST_COMPLETED)
        place: asyncio.Future[None] = loop.create_future()
        self._readers[place] = loop.time()
        return place

    def _leave(self, place: asyncio.Future[None]) -> None:
        self._readers.pop(place, None)
        if not place.done():
            place.set_result(None)


async def _first(messages: AsyncIterator[bytes]) -> bytes | None:
    async for message in messages:
        return message
    return None


def _forget(reading: asyncio.Future[bytes | None]) -> None:
    if not reading.cancelled():
        reading.exception()
