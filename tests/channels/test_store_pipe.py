"""The connection to the store, spoken to by a server of the test's: no reply ever meets a round that it was not for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import UnixDomainSocketConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ResponseError

from channels.redis_store.connection import RedisConnection

PATIENCE_S = 5.0


class Server:
    """Says what the test wants, whatever it is asked."""

    def __init__(self, writer: asyncio.StreamWriter, reader: asyncio.StreamReader) -> None:
        self.writer, self.reader = writer, reader

    async def says(self, text: bytes) -> None:
        self.writer.write(text)
        await self.writer.drain()


@asynccontextmanager
async def pipe(folder: Path) -> AsyncIterator[tuple[RedisConnection, Server]]:
    accepted: asyncio.Queue[Server] = asyncio.Queue()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await accepted.put(Server(writer, reader))

    server = await asyncio.start_unix_server(accept, folder / "s")
    connection = UnixDomainSocketConnection(path=str(folder / "s"))
    connection._reader, connection._writer = await asyncio.open_unix_connection(folder / "s")
    own = RedisConnection(connection)
    assert not connection.is_connected, "the library holds it for closed"
    theirs = await accepted.get()
    try:
        yield own, theirs
    finally:
        own.close()
        theirs.writer.close()
        server.close()


def run(scene: Any, folder: Path) -> None:
    async def whole() -> None:
        async with pipe(folder) as both:
            await scene(*both)

    asyncio.run(whole())


def test_replies_come_in_order_in_whatever_pieces(tmp_path: Path) -> None:
    async def scene(own: RedisConnection, server: Server) -> None:
        for _ in range(2):
            asked = asyncio.create_task(own.ask(b"x", 3, PATIENCE_S))
            for piece in (b":1\r", b"\n*2\r\n:2\r\n$3\r\n", b"abc\r\n-NOSC", b"RIPT no\r\n"):
                await asyncio.sleep(0.01)
                await server.says(piece)
            one, two, three = await asked
            assert (one, two) == (1, [2, b"abc"]) and isinstance(three, NoScriptError)
        asked = asyncio.create_task(own.ask(b"x", 1, PATIENCE_S))
        await server.says(b"-OOM command not allowed\r\n")
        assert type((await asked)[0]) is ResponseError and own.open

    run(scene, tmp_path)


def test_what_a_server_says_of_itself_is_no_reply(tmp_path: Path) -> None:
    async def scene(own: RedisConnection, server: Server) -> None:
        await server.says(b">2\r\n+MOVING\r\n:1\r\n")
        asked = asyncio.create_task(own.ask(b"x", 1, PATIENCE_S))
        await asyncio.sleep(0.05)
        await server.says(b">2\r\n+MOVING\r\n:2\r\n:7\r\n")
        assert await asked == [7]

    run(scene, tmp_path)


@pytest.mark.parametrize("said", [b":1\r\n:2\r\n", b"?1\r\n"], ids=["one too many", "no protocol"])
def test_a_server_that_says_too_much_is_spoken_to_no_more(said: bytes, tmp_path: Path) -> None:
    async def scene(own: RedisConnection, server: Server) -> None:
        asked = asyncio.create_task(own.ask(b"x", 1, PATIENCE_S))
        await asyncio.sleep(0.05)
        await server.says(said)
        with pytest.raises(RedisConnectionError):
            await asked
        assert not own.open

    run(scene, tmp_path)


def test_a_reply_that_nobody_asked_for_closes_the_connection(tmp_path: Path) -> None:
    async def scene(own: RedisConnection, server: Server) -> None:
        await server.says(b":1\r\n")
        await asyncio.sleep(0.05)
        assert not own.open

    run(scene, tmp_path)


@pytest.mark.parametrize("how", ["late", "gone", "cancelled"])
def test_a_round_without_its_whole_answer_fails_and_its_connection_is_never_used_again(
    how: str, tmp_path: Path
) -> None:
    async def scene(own: RedisConnection, server: Server) -> None:
        asked = asyncio.create_task(own.ask(b"x", 2, 0.2 if how == "late" else PATIENCE_S))
        await asyncio.sleep(0.05)
        await server.says(b":1\r\n")
        if how == "gone":
            server.writer.close()
        if how == "cancelled":
            asked.cancel()
        with pytest.raises(asyncio.CancelledError if how == "cancelled" else RedisConnectionError):
            await asked
        assert not own.open

    run(scene, tmp_path)
