"""A small JSON body of the control application, read within bounds of size and time."""

from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect, Request

from serving.errors import CallError

READ_TIMEOUT_S = 10.0


async def small_body(request: Request, limit: int) -> bytes:
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
