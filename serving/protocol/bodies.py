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
READ_TIMEOUT_S = 10.0
KEPT_BODIES = 8
"""How many bodies of the largest size a replica keeps at once; small ones fit in great number."""


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

    def fits(self, size: int) -> bool:
        """True if `size` more bytes can be kept."""
        return self.kept_bytes + size <= self.maximum_body_bytes * KEPT_BODIES

    @asynccontextmanager
    async def body(self, request: HttpRequest, keep: bool) -> AsyncIterator[bytes]:
        """A call's body, read to its end and kept for the block; empty if it is not to be kept.

        Raises:
            CallError: `slow_body`, `bad_request`, `body_too_large`, or `busy`: too much is kept already.
        """
        parts: list[bytes] = []
        try:
            await self._drain(request, parts if keep else None)
            yield b"".join(parts)
        finally:
            self.kept_bytes -= sum(map(len, parts))

    async def _drain(self, request: HttpRequest, parts: list[bytes] | None) -> None:
        limit, size, full = self.maximum_body_bytes, 0, False

        def take(part: bytes) -> bool:
            nonlocal size, full
            size += len(part)
            full = full or not self.fits(len(part))
            if parts is not None and size <= limit and not full:
                parts.append(part)
                self.kept_bytes += len(part)
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
    try:
        async with asyncio.timeout(timeout_s):
            async for part in request.stream():
                if not take(part):
                    return
    except TimeoutError as error:
        raise CallError("slow_body", f"the body took longer than {timeout_s:.0f} s to arrive") from error
    except ClientDisconnect as error:
        raise CallError("bad_request", "the body is shorter than it was announced") from error
