"""`RedisConnection`: one connection to the server; rounds of commands go out in one write, replies come back in order.

The library opens it, with its address, password and TLS, and hands it over: its own way to send and to read takes
several times what the server needs to answer. A reply can never meet another round's future: after anything unforeseen
the connection is closed, never used again.
"""

from __future__ import annotations

import asyncio
from typing import Any

import hiredis
from redis.asyncio import Connection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ResponseError

NOTHING = object()


class RedisConnection(asyncio.Protocol):
    """Takes over a connection of the library's that is open and idle; one round at a time."""

    def __init__(self, connection: Connection) -> None:
        if connection._writer is None:
            raise RedisConnectionError("the connection is closed")
        self._writer = connection._writer  # kept: it closes its transport when it is collected
        connection._reader = connection._writer = None  # the library holds this one for closed
        self._reader = hiredis.Reader(replyError=_error, notEnoughData=NOTHING)
        self._round: asyncio.Future[list[Any]] | None = None
        self._replies: list[Any] = []
        self._count = 0
        self._writer.transport.set_protocol(self)

    @property
    def open(self) -> bool:
        """True until it is closed by either side."""
        return not self._writer.transport.is_closing()

    async def ask(self, packed: bytes, count: int, timeout_s: float) -> list[Any]:
        """Sends `count` commands and returns their replies; what a command was refused with is one.

        Raises:
            ConnectionError: the connection ended, or no whole answer came within `timeout_s`.
        """
        loop = asyncio.get_running_loop()
        self._round, self._replies, self._count = loop.create_future(), [], count
        timer = loop.call_later(timeout_s, self.close)
        try:
            self._writer.transport.write(packed)
            return await self._round
        except BaseException:
            self.close()
            raise
        finally:
            timer.cancel()

    def close(self) -> None:
        """Closes the connection; a round that waits fails."""
        self._writer.transport.abort()
        self.connection_lost(None)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        try:
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not NOTHING:
                if not isinstance(reply, hiredis.PushNotification):  # news of the server's, no reply
                    self._replies.append(reply)
        except hiredis.ProtocolError:
            self.close()
        if len(self._replies) > self._count:
            self.close()
        elif self._round and len(self._replies) == self._count and not self._round.done():
            self._round.set_result(self._replies)

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        if self._round and not self._round.done():
            self._round.set_exception(RedisConnectionError("the store's connection ended before its answer came"))


def _error(text: str) -> ResponseError:
    return NoScriptError(text) if text.startswith("NOSCRIPT") else ResponseError(text)
