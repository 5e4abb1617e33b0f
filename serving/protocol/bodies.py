"""Reads request bodies within bounds and limits how many bytes of them a replica keeps in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest

from serving.errors import CallError
from serving.protocol.compression import inflate
from serving.protocol.exchange import Request
from serving.protocol.offload import run_in_thread

DRAIN_FACTOR = 4
DRAIN_TIMEOUT_S = 20.0
KEPT_BODIES = 8
"""How many bodies of the largest size a replica keeps at once; small ones fit in great number."""


class BodyBudget:
    """How many bytes of bodies a replica may keep, all together.

    A signature costs nothing, so many large calls of payers without a channel, or small ones that open to large, must
    not fill the memory of those who have one.
    """

    def __init__(self, maximum_body_bytes: int) -> None:
        self.maximum_body_bytes = maximum_body_bytes
        self.kept_bytes = 0

    def fits(self, size: int) -> bool:
        """True if so many bytes more can be kept."""
        return self.kept_bytes + size <= self.maximum_body_bytes * KEPT_BODIES

    @asynccontextmanager
    async def body(self, request: HttpRequest, keep: bool) -> AsyncIterator[bytes]:
        """A call's body, read to its end within bounds and kept for the block; empty if it is not to be kept.

        Raises:
            CallError: `slow_body`, `bad_request`, `body_too_large`, or `busy`: too much is kept already.
        """
        parts: list[bytes] = []
        try:
            await self._read(request, parts if keep else None)
            yield b"".join(parts)
        finally:
            self.kept_bytes -= sum(map(len, parts))

    async def _read(self, request: HttpRequest, parts: list[bytes] | None) -> None:
        limit, size, full = self.maximum_body_bytes, 0, False
        try:
            async with asyncio.timeout(DRAIN_TIMEOUT_S):
                async for part in request.stream():
                    size += len(part)
                    if size > limit * DRAIN_FACTOR:
                        break
                    full = full or not self.fits(len(part))
                    if parts is not None and size <= limit and not full:
                        parts.append(part)
                        self.kept_bytes += len(part)
        except TimeoutError as error:
            raise CallError("slow_body", f"the body took longer than {DRAIN_TIMEOUT_S:.0f} s to arrive") from error
        except ClientDisconnect as error:
            raise CallError("bad_request", "the body is shorter than it was announced") from error
        if size > limit:
            raise CallError("body_too_large", f"a body is at most {limit} bytes")
        if parts is not None and full:
            raise CallError("busy", "too much is being sent at once: try again shortly")

    @asynccontextmanager
    async def inflated(self, asked: Request) -> AsyncIterator[bytes]:
        """The plain body of a call, for the block.

        Raises:
            CallError: as `inflate`, or `busy`: too much is kept already.
        """
        coding = asked.headers.get("content-encoding", "").strip().lower()
        body = await run_in_thread(
            len(asked.body) * 64 if coding else 0, inflate, asked.body, coding, self.maximum_body_bytes
        )
        size = len(body) if body is not asked.body else 0
        if not self.fits(size):
            raise CallError("busy", "too much is being sent at once: try again shortly")
        self.kept_bytes += size
        try:
            yield body
        finally:
            self.kept_bytes -= size


READ_TIMEOUT_S = 10.0


async def small_body(request: HttpRequest, limit: int) -> bytes:
    """The whole body.

    Args:
        request: not read yet.
        limit: bytes.

    Raises:
        CallError: it is longer, slower than ten seconds, or ends before it should.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(READ_TIMEOUT_S):
            async for part in request.stream():
                body += part[: limit + 1 - len(body)]
                if len(body) > limit:
                    raise CallError("body_too_large", f"this body is at most {limit} bytes")
    except TimeoutError as error:
        raise CallError("slow_body", f"this body has {READ_TIMEOUT_S:.0f} s to arrive") from error
    except ClientDisconnect as error:
        raise CallError("bad_request", "the body is shorter than it was announced") from error
    return bytes(body)
