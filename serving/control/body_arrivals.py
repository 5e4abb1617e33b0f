"""Bounds how many request bodies of the control application are arriving at once.

Health, catalogue and reads share this process with the routes that take a body. Without this bound, callers who begin a
body and never end it would take every place that Serve gives the application.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.errors import CallError

MAX_ARRIVING = 64
GRACE_S = 1.0
"""How long a body may take while others come and all places are taken; these bodies have some kilobytes."""


@dataclass(slots=True, eq=False)
class _Arrival:
    """A body that is arriving: since when, and the timeout of the part that it waits for now."""

    since_s: float
    timeout: asyncio.Timeout | None = None
    displaced: bool = False


class BodyArrivals:
    """ASGI middleware: a body takes a place until it is complete.

    Nobody waits for a place: the wait would take one of Serve's. When all are taken, the oldest body gives way
    if it has had its grace, and is refused as `slow_body`; else the newcomer is refused as `busy`.

    Args:
        app: what is called, with exception handlers for `CallError`.
        max_arriving: places.
        grace_s: seconds that a body is given in any case.
    """

    def __init__(self, app: ASGIApp, max_arriving: int = MAX_ARRIVING, grace_s: float = GRACE_S) -> None:
        self._app, self._max_arriving, self._grace_s = app, max_arriving, grace_s
        self._arrivals: dict[_Arrival, None] = {}
        """Oldest first."""

    @property
    def arriving(self) -> int:
        """How many bodies are arriving now."""
        return len(self._arrivals)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Calls the application, with a `receive` that raises `CallError` where the body has no place."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        arrival: _Arrival | None = None
        complete = False

        async def receive_in_place() -> Message:
            nonlocal arrival, complete
            if complete:
                return await receive()
            if arrival is None:
                arrival = self._enter()
            message = await self._part(arrival, receive)
            if not message.get("more_body", False):
                complete = True
                self._arrivals.pop(arrival, None)
            return message

        try:
            await self._app(scope, receive_in_place, send)
        finally:
            if arrival is not None:
                self._arrivals.pop(arrival, None)

    async def _part(self, arrival: _Arrival, receive: Receive) -> Message:
        try:
            async with asyncio.timeout(0 if arrival.displaced else None) as arrival.timeout:
                return await receive()
        except TimeoutError as error:
            raise CallError("slow_body", "the body arrives too slowly while many others do") from error

    def _enter(self) -> _Arrival:
        now_s = asyncio.get_running_loop().time()
        if len(self._arrivals) >= self._max_arriving:
            oldest = next(iter(self._arrivals))
            if now_s - oldest.since_s < self._grace_s:
                raise CallError("busy", "too much is being sent at once: try again shortly")
            del self._arrivals[oldest]
            oldest.displaced = True
            if oldest.timeout is not None and not oldest.timeout.expired():
                oldest.timeout.reschedule(now_s)
        arrival = _Arrival(now_s)
        self._arrivals[arrival] = None
        return arrival
