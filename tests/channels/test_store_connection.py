"""The connection to the store: its log-in, and that no reply ever reaches another round than its own."""

from __future__ import annotations

import asyncio
import datetime
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from redis.asyncio import ConnectionPool, UnixDomainSocketConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ResponseError

from channels.redis_store.connection import RedisConnection, pack

PATIENCE_S = 5.0


class Server:
    """Sends what the test wants, whatever it receives."""

    def __init__(self, writer: asyncio.StreamWriter, reader: asyncio.StreamReader) -> None:
        self.writer, self.reader = writer, reader

    async def send(self, text: bytes) -> None:
        self.writer.write(text)
        await self.writer.drain()


@asynccontextmanager
async def connected(folder: Path) -> AsyncIterator[tuple[RedisConnection, Server]]:
    accepted: asyncio.Queue[Server] = asyncio.Queue()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await accepted.put(Server(writer, reader))

    listener = await asyncio.start_unix_server(accept, folder / "s")
    connection = await RedisConnection.open(UnixDomainSocketConnection(path=str(folder / "s")), PATIENCE_S)
    server = await accepted.get()
    try:
        yield connection, server
    finally:
        connection.close()
        server.writer.close()
        listener.close()


def run(scene: Any, folder: Path) -> None:
    async def whole() -> None:
        async with connected(folder) as both:
            await scene(*both)

    asyncio.run(whole())


def test_replies_come_in_order_in_whatever_pieces(tmp_path: Path) -> None:
    async def scene(connection: RedisConnection, server: Server) -> None:
        for _ in range(2):
            round_ = asyncio.create_task(connection.exchange(b"x", 3, PATIENCE_S))
            for piece in (b":1\r", b"\n*2\r\n:2\r\n$3\r\n", b"abc\r\n-NOSC", b"RIPT no\r\n"):
                await asyncio.sleep(0.01)
                await server.send(piece)
            first, second, third = await round_
            assert (first, second) == (1, [2, b"abc"]) and isinstance(third, NoScriptError)
        round_ = asyncio.create_task(connection.exchange(b"x", 1, PATIENCE_S))
        await server.send(b"-OOM command not allowed\r\n")
        assert type((await round_)[0]) is ResponseError and connection.is_open

    run(scene, tmp_path)


def test_news_of_the_server_is_no_reply(tmp_path: Path) -> None:
    async def scene(connection: RedisConnection, server: Server) -> None:
        await server.send(b">2\r\n+MOVING\r\n:1\r\n")
        round_ = asyncio.create_task(connection.exchange(b"x", 1, PATIENCE_S))
        await asyncio.sleep(0.05)
        await server.send(b">2\r\n+MOVING\r\n:2\r\n:7\r\n")
        assert await round_ == [7]

    run(scene, tmp_path)


@pytest.mark.parametrize("text", [b":1\r\n:2\r\n", b"?1\r\n"], ids=["one reply too many", "no protocol"])
def test_a_server_that_sends_too_much_is_disconnected(text: bytes, tmp_path: Path) -> None:
    async def scene(connection: RedisConnection, server: Server) -> None:
        round_ = asyncio.create_task(connection.exchange(b"x", 1, PATIENCE_S))
        await asyncio.sleep(0.05)
        await server.send(text)
        with pytest.raises(RedisConnectionError):
            await round_
        assert not connection.is_open

    run(scene, tmp_path)


def test_a_reply_without_a_round_closes_the_connection(tmp_path: Path) -> None:
    async def scene(connection: RedisConnection, server: Server) -> None:
        await server.send(b":1\r\n")
        async with asyncio.timeout(PATIENCE_S):
            while connection.is_open:
                await asyncio.sleep(0.01)

    run(scene, tmp_path)


@pytest.mark.parametrize("how", ["late", "gone", "cancelled"])
def test_a_round_without_all_its_replies_fails_and_its_connection_is_never_used_again(how: str, tmp_path: Path) -> None:
    async def scene(connection: RedisConnection, server: Server) -> None:
        round_ = asyncio.create_task(connection.exchange(b"x", 2, 0.2 if how == "late" else PATIENCE_S))
        await asyncio.sleep(0.05)
        await server.send(b":1\r\n")
        if how == "gone":
            server.writer.close()
        if how == "cancelled":
            round_.cancel()
        with pytest.raises(asyncio.CancelledError if how == "cancelled" else RedisConnectionError):
            await round_
        assert not connection.is_open

    run(scene, tmp_path)


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "store")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "store.crt", folder / "store.key"
    paths[0].write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    form = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    paths[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, *form))
    return paths


def log_in(url: str, replies: bytes, listen: Callable[..., Any]) -> bytes:
    """Opens a connection by `url` to a server that sends `replies` to a log-in; what the server received."""
    received: list[bytes] = []

    async def whole() -> None:
        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            received.append(await reader.read(1_000))
            writer.write(replies)
            await writer.drain()
            await reader.read()
            writer.close()
            closed.set()

        closed = asyncio.Event()
        listener = await listen(accept)
        port = listener.sockets[0].getsockname()[1]
        target = ConnectionPool.from_url(url.format(port=port)).make_connection()
        try:
            connection = await RedisConnection.open(target, PATIENCE_S)
            connection.close()
        finally:
            if received:
                await closed.wait()
            listener.close()

    asyncio.run(whole())
    return b"".join(received)


@pytest.mark.parametrize("user", ["treasury:secret", ":secret"], ids=["user and password", "password alone"])
@pytest.mark.parametrize("tls", [True, False], ids=["TLS", "plain"])
def test_it_logs_in_as_the_url_says(tls: bool, user: str, tmp_path: Path) -> None:
    context = None
    url = f"redis://{user}@127.0.0.1:{{port}}/3"
    if tls:
        crt, key = certificate(tmp_path)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(crt, key)
        url = f"rediss://{user}@127.0.0.1:{{port}}/3?ssl_ca_certs={crt}"
    words = [word for word in user.split(":") if word]
    received = log_in(url, b"+OK\r\n+OK\r\n", lambda accept: asyncio.start_server(accept, "127.0.0.1", ssl=context))
    assert received == pack(["AUTH", *words]) + pack(["SELECT", "3"])


def test_a_server_of_another_certificate_is_refused(tmp_path: Path) -> None:
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    theirs.mkdir()
    ours.mkdir()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate(theirs))
    url = f"rediss://:secret@127.0.0.1:{{port}}/0?ssl_ca_certs={certificate(ours)[0]}"
    with pytest.raises(ssl.SSLCertVerificationError):
        log_in(url, b"+OK\r\n", lambda accept: asyncio.start_server(accept, "127.0.0.1", ssl=context))


def test_a_refused_user_is_reported() -> None:
    with pytest.raises(ResponseError, match="WRONGPASS"):
        log_in(
            "redis://treasury:wrong@127.0.0.1:{port}/0",
            b"-WRONGPASS invalid username-password pair\r\n",
            lambda accept: asyncio.start_server(accept, "127.0.0.1"),
        )
