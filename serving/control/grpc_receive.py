"""Receives the messages of gRPC calls: a bounded number at once, each within a bounded time.

gRPC announces no size and hands a message over when it is complete. Without these bounds, a caller who sends slowly or
not at all would hold its slot, and the memory of what has arrived, for ever.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

from serving.errors import CallError

READ_TIMEOUT_S = 20.0
"""The same time as a body has over HTTP."""
MAX_RECEIVING = 32
MAX_PER_PEER = 64
"""A quarter of the calls that the server takes: one address cannot fill it with calls that never send a message."""
GRACE_S = 2.0
"""How long a message may take while others wait for its slot; 64 MiB arrive in a fraction of it."""


class MessageReceiver:
    """Slots for messages that are arriving.

    Args:
        timeout_s: the longest that a message may take.
        max_receiving: messages received at once; HTTP/2 flow control holds the others back.
        grace_s: when all slots are taken, the oldest message loses its slot after this time.
        max_per_peer: calls of one address whose message is arriving or waits for a slot.
    """

    def __init__(
        self,
        timeout_s: float = READ_TIMEOUT_S,
        max_receiving: int = MAX_RECEIVING,
        grace_s: float = GRACE_S,
        max_per_peer: int = MAX_PER_PEER,
    ) -> None:
        self._max_per_peer = max_per_peer
        self._peers: Counter[str] = Counter()
        self._timeout_s, self._max_receiving, self._grace_s = timeout_s, max_receiving, grace_s
        self._slots: dict[asyncio.Future[None], float] = {}
        """When each slot was taken, oldest first; the future is done once the slot is free."""

    @property
    def receiving(self) -> int:
        """How many messages are arriving now."""
        return len(self._slots)

    @property
    def begun(self) -> int:
        """How many messages are arriving or wait for a slot."""
        return self._peers.total()

    async def message(self, messages: AsyncIterator[bytes], peer: str = "") -> bytes:
        """Returns the one message of a call.

        Args:
            messages: the call's.
            peer: the address that sends them; one address has a share of what may arrive or wait.

        Raises:
            CallError: `slow_body`, `busy`: the peer's share is taken, or `bad_request`: the call has no message.
        """
        if self._peers[peer] >= self._max_per_peer:
            raise CallError("busy", f"at most {self._max_per_peer} messages of one address arrive at once")
        self._peers[peer] += 1
        try:
            return await self._message(messages)
        finally:
            self._peers[peer] -= 1
            if not self._peers[peer]:
                del self._peers[peer]

    async def _message(self, messages: AsyncIterator[bytes]) -> bytes:
        slot = await self._take_slot()
        # Never cancelled: the task ends with its call, and a refusal ends the call.
        task = asyncio.ensure_future(_first(messages))
        try:
            either: set[asyncio.Future[Any]] = {task, slot}
            await asyncio.wait(either, timeout=self._timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._free(slot)
        if not task.done():
            task.add_done_callback(_retrieve_exception)
            raise CallError("slow_body", f"a message has {self._timeout_s:.0f} s to arrive, and less when many do")
        if (body := task.result()) is None:
            raise CallError("bad_request", "the call ends without a message")
        return body

    async def _take_slot(self) -> asyncio.Future[None]:
        loop = asyncio.get_running_loop()
        while len(self._slots) >= self._max_receiving:
            oldest, since_s = next(iter(self._slots.items()))
            left_s = since_s + self._grace_s - loop.time()
            if left_s <= 0:
                self._free(oldest)
            else:
                await asyncio.wait(set(self._slots), timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
        slot: asyncio.Future[None] = loop.create_future()
        self._slots[slot] = loop.time()
        return slot

    def _free(self, slot: asyncio.Future[None]) -> None:
        self._slots.pop(slot, None)
        if not slot.done():
            slot.set_result(None)


async def _first(messages: AsyncIterator[bytes]) -> bytes | None:
    async for message in messages:
        return message
    return None


def _retrieve_exception(task: asyncio.Future[bytes | None]) -> None:
    if not task.cancelled():
        task.exception()
