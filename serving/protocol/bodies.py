"""Reads request bodies within bounds, and limits how many bytes of them a replica keeps in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest

from serving.errors import CallError
from serving.protocol.compression import inflate
from serving.protocol.exchange import Request
from serving.protocol.offload import run_in_thread

DRAIN_FACTOR = 4
DRAIN_TIMEOUT_S = 20.0
STALL_S = 5.0
"""How long a body may stand still; arriving bytes earn this time again, at `MIN_BYTES_PER_S`."""
MIN_BYTES_PER_S = 64 << 10
READ_TIMEOUT_S = 10.0
KEPT_BODIES = 8
"""How many bodies of the largest size a replica keeps at once; small ones fit in great number."""
UNFUNDED_BODIES = 2
"""How many of these may be of channels that have no money yet."""


class BodyBudget:
    """Bounds the bytes of all bodies that a replica keeps together.

    A signature costs nothing, so many large calls by payers without a channel, or small ones that inflate to large
    ones, must not fill the memory of those who have one.

    Args:
        maximum_body_bytes: the longest body.
    """

    def __init__(self, maximum_body_bytes: int) -> None:
        self.maximum_body_bytes = maximum_body_bytes
        self.kept_bytes = 0
        self.unfunded_bytes = 0

    def fits(self, size: int, funded: bool = True) -> bool:
        """True if `size` more bytes can be kept."""
        if not funded and self.unfunded_bytes + size > self.maximum_body_bytes * UNFUNDED_BODIES:
            return False
        return self.kept_bytes + size <= self.maximum_body_bytes * KEPT_BODIES

    @asynccontextmanager
    async def body(self, request: HttpRequest, keep: bool, funded: bool = True) -> AsyncIterator[bytes]:
        """A call's body, read to its end and kept for the block; empty if it is not to be kept.

        Bodies that are not `funded`, whose channels have no money yet, have a part of the room only.

        Raises:
            CallError: `slow_body`, `bad_request`, `body_too_large`, or `busy`: too much is kept already.
        """
        parts: list[bytes] = []
        try:
            await self._drain(request, parts if keep else None, funded)
            yield b"".join(parts)
        finally:
            self._count(-sum(map(len, parts)), funded)

    def _count(self, size: int, funded: bool) -> None:
        self.kept_bytes += size
        self.unfunded_bytes += 0 if funded else size

    async def _drain(self, request: HttpRequest, parts: list[bytes] | None, funded: bool) -> None:
        limit, size, full = self.maximum_body_bytes, 0, False

        def take(part: bytes) -> bool:
            nonlocal size, full
            size += len(part)
            full = full or not self.fits(len(part), funded)
            if parts is not None and size <= limit and not full:
                parts.append(part)
                self._count(len(part), funded)
            return size <= limit * DRAIN_FACTOR

        await _read(request, take, DRAIN_TIMEOUT_S)
        if size > limit:
            raise CallError("body_too_large", f"a body is at most {limit} bytes")
        if parts is not None and full:
            raise CallError("busy", "too much is being sent at once: try again shortly")

    @asynccontextmanager
    async def inflated(self, request: Request) -> AsyncIterator[bytes]:
        """The uncompressed body of a call, kept for the block.

        Raises:
            CallError: as `inflate`, or `busy`: too much is kept already.
        """
        coding = request.headers.get("content-encoding", "").strip().lower()
        if not coding:
            yield request.body
            return
        body = await run_in_thread(len(request.body) * 64, inflate, request.body, coding, self.maximum_body_bytes)
        size = len(body) if body is not request.body else 0
        if not self.fits(size):
            raise CallError("busy", "too much is being sent at once: try again shortly")
        self.kept_bytes += size
        try:
            yield body
        finally:
            self.kept_bytes -= size


async def small_body(request: HttpRequest, limit: int) -> bytes:
    """The whole body of a request outside the paid routes.

    Args:
        request: not read yet.
        limit: bytes.

    Raises:
        CallError: the body is longer, takes more than ten seconds, or ends before its announced length.
    """
    body = bytearray()

    def take(part: bytes) -> bool:
        body.extend(part[: limit + 1 - len(body)])
        return len(body) <= limit

    await _read(request, take, READ_TIMEOUT_S)
    if len(body) > limit:
        raise CallError("body_too_large", f"this body is at most {limit} bytes")
    return bytes(body)


async def _read(request: HttpRequest, take: Callable[[bytes], bool], timeout_s: float) -> None:
    """Passes the parts of a body to `take` until it returns False."""
    loop = asyncio.get_running_loop()
    end_s = loop.time() + timeout_s
    due_s = loop.time() + STALL_S
    try:
        async with asyncio.timeout_at(min(due_s, end_s)) as timeout:
            async for part in request.stream():
                if not take(part):
                    return
                due_s = min(loop.time() + STALL_S, due_s + len(part) / MIN_BYTES_PER_S)
                timeout.reschedule(min(due_s, end_s))
    except TimeoutError as error:
        text = f"a body has {timeout_s:.0f} s to arrive, and less when it stands still"
        raise CallError("slow_body", text) from error
    except ClientDisconnect as error:
        raise CallError("bad_request", "the body is shorter than it was announced") from error
