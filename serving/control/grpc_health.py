"""Answers gRPC's health service, `grpc.health.v1.Health/Check`, by which Kubernetes and load balancers ask.

The two messages have one field each and are read and written here: a package for them would be a dependency more.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc

SERVICE = "grpc.health.v1.Health"
SERVING, NOT_SERVING = b"\x08\x01", b"\x08\x02"
"""`HealthCheckResponse` with its field `status`."""
MAX_NAME_BYTES = 127
"""The longest name whose length has one byte; ours is shorter, and any other is unknown."""


def handlers(service: str, ready: Callable[[], Awaitable[bool]]) -> Any:
    """The handlers of the health service.

    Args:
        service: the one service that is served; an empty name stands for the server as a whole.
        ready: returns whether paid calls can be taken.
    """

    async def check(body: bytes, context: Any) -> bytes:
        if _service_of(body) not in ("", service):
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        return SERVING if await ready() else NOT_SERVING

    return grpc.method_handlers_generic_handler(SERVICE, {"Check": grpc.unary_unary_rpc_method_handler(check)})


def _service_of(body: bytes) -> str | None:
    """The field `service` of a `HealthCheckRequest`; None for a message that this server does not know."""
    if not body:
        return ""
    if len(body) < 2 or body[0] != 0x0A or body[1] > MAX_NAME_BYTES or len(body) != 2 + body[1]:
        return None
    return body[2:].decode("utf-8", "replace")
