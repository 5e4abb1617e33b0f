"""Answers gRPC's health service, `grpc.health.v1.Health`, by which Kubernetes (`Check`) and clients (`Watch`) ask.

The two messages have one field each and are read and written here: a package for them would be a dependency more.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc

SERVICE = "grpc.health.v1.Health"
SERVING, NOT_SERVING, SERVICE_UNKNOWN = b"\x08\x01", b"\x08\x02", b"\x08\x03"
"""`HealthCheckResponse` with its field `status`."""
MAX_NAME_BYTES = 127
"""The longest name whose length has one byte; ours is shorter, and any other is unknown."""

MAX_WATCHES = 100
"""A watch stays open for as long as its client likes: more at once are refused."""
WATCH_S = 1.0
"""Time between two looks for a watch."""


def handlers(service: str, ready: Callable[[], Awaitable[bool]], watch_s: float = WATCH_S) -> Any:
    """The handlers of the health service.

    Args:
        service: the one service that is served; an empty name stands for the server as a whole.
        ready: returns whether paid calls can be taken.
        watch_s: time between two looks for a watch.
    """
    watches = 0

    async def check(body: bytes, context: Any) -> bytes:
        if _service_of(body) not in ("", service):
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        return SERVING if await ready() else NOT_SERVING

    async def watch(body: bytes, context: Any) -> AsyncIterator[bytes]:
        nonlocal watches
        if watches >= MAX_WATCHES:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many watches: use Check")
        watches += 1
        try:
            last = b""
            while True:
                is_ours = _service_of(body) in ("", service)
                status = SERVICE_UNKNOWN if not is_ours else SERVING if await ready() else NOT_SERVING
                if status != last:
                    yield status
                last = status
                await asyncio.sleep(watch_s)
        finally:
            watches -= 1

    methods = {
        "Check": grpc.unary_unary_rpc_method_handler(check),
        "Watch": grpc.unary_stream_rpc_method_handler(watch),
    }
    return grpc.method_handlers_generic_handler(SERVICE, methods)


def _service_of(body: bytes) -> str | None:
    """The field `service` of a `HealthCheckRequest`; None for a message that this server does not know."""
    if not body:
        return ""
    if len(body) < 2 or body[0] != 0x0A or body[1] > MAX_NAME_BYTES or len(body) != 2 + body[1]:
        return None
    return body[2:].decode("utf-8", "replace")
