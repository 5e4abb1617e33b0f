"""Asks again for an answer that was lost, under the same Idempotency-Key, so that the call is never charged twice.

`RepeatTransport` and `AsyncRepeatTransport` do it for httpx; `tritonclient.py` does it with `Repeats` itself.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import httpx

from channels.payer.flow import refusal_code

MAX_LOSSES = 2
"""How often a call whose answer was lost is sent again."""
PAUSE_S = 0.5
DEADLINE_S = 120.0
"""For a caller who names no time: the longest call, and a margin."""


class Repeats:
    """Decides when one keyed call is sent again.

    The mesh answers a key that is running with `in_progress`, and one that was charged with the stored answer.

    Args:
        timeout_s: the caller's own time for the call; None if there is none.
        now: seconds that never go back.
    """

    def __init__(self, timeout_s: float | None = None, now: Callable[[], float] = time.monotonic) -> None:
        self._now, self._timeout_s = now, timeout_s
        self._end_s = now() + (DEADLINE_S if timeout_s is None else timeout_s)
        self._losses = 0

    @property
    def timeout_s(self) -> float | None:
        """What is left of the caller's time; None if the caller named none."""
        return None if self._timeout_s is None else max(self._end_s - self._now(), 0.001)

    def after_loss(self) -> bool:
        """True if the call is sent again because no answer came."""
        self._losses += 1
        return self._losses <= MAX_LOSSES and self._in_time()

    def after_answer(self, status: int, code: str) -> bool:
        """True if the call is sent again although an answer came: it is not the call's own."""
        if code == "outcome_unknown":
            return self.after_loss()
        return self._losses > 0 and (status, code) == (409, "in_progress") and self._in_time()

    def _in_time(self) -> bool:
        return self._now() + PAUSE_S < self._end_s


class RepeatTransport(httpx.BaseTransport):
    """Sends a paid call of `httpx.Client` again after a lost answer.

    Args:
        inner: carries the requests; `httpx.HTTPTransport()` by default.
    """

    def __init__(self, inner: httpx.BaseTransport | None = None) -> None:
        self._inner = inner or httpx.HTTPTransport()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Returns the first answer that is the call's own, or raises the last loss."""
        if not is_paid(request):
            return self._inner.handle_request(request)
        repeats = Repeats(_timeout_s(request))
        while True:
            try:
                response = self._inner.handle_request(request)
                stream: Any = response.stream
                raw = b"".join(stream)
                response.close()
            except httpx.TransportError as error:
                if isinstance(error, httpx.TimeoutException) or not repeats.after_loss():
                    raise
            else:
                if not repeats.after_answer(response.status_code, _code(response, raw)):
                    return _whole(response, raw)
            time.sleep(PAUSE_S)
            _shorten(request, repeats.timeout_s)

    def close(self) -> None:
        """Closes the inner transport."""
        self._inner.close()


class AsyncRepeatTransport(httpx.AsyncBaseTransport):
    """Sends a paid call of `httpx.AsyncClient` again after a lost answer.

    Args:
        inner: carries the requests; `httpx.AsyncHTTPTransport()` by default.
    """

    def __init__(self, inner: httpx.AsyncBaseTransport | None = None) -> None:
        self._inner = inner or httpx.AsyncHTTPTransport()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Returns the first answer that is the call's own, or raises the last loss."""
        if not is_paid(request):
            return await self._inner.handle_async_request(request)
        repeats = Repeats(_timeout_s(request))
        while True:
            try:
                response = await self._inner.handle_async_request(request)
                stream: Any = response.stream
                raw = b"".join([part async for part in stream])
                await response.aclose()
            except httpx.TransportError as error:
                if isinstance(error, httpx.TimeoutException) or not repeats.after_loss():
                    raise
            else:
                if not repeats.after_answer(response.status_code, _code(response, raw)):
                    return _whole(response, raw)
            await asyncio.sleep(PAUSE_S)
            _shorten(request, repeats.timeout_s)

    async def aclose(self) -> None:
        """Closes the inner transport."""
        await self._inner.aclose()


def is_paid(request: httpx.Request) -> bool:
    """True if a request is paid under a key: only such a one is safe to send again."""
    return "payment-signature" in request.headers and "idempotency-key" in request.headers


def _whole(response: httpx.Response, raw: bytes) -> httpx.Response:
    """The same response with a body that has arrived: an answer may be lost in the middle of it too."""
    stream = httpx.ByteStream(raw)
    return httpx.Response(response.status_code, headers=response.headers, stream=stream, extensions=response.extensions)


def _code(response: httpx.Response, raw: bytes) -> str:
    if response.status_code < 400:
        return ""
    refusal = _whole(response, raw)
    refusal.read()
    return refusal_code(refusal)


def _timeout_s(request: httpx.Request) -> float | None:
    read_s: float | None = request.extensions.get("timeout", {}).get("read")
    return read_s


def _shorten(request: httpx.Request, timeout_s: float | None) -> None:
    """Gives a repeated request what is left of the caller's time."""
    if timeout_s is not None:
        timeout = request.extensions["timeout"] | {"read": timeout_s}
        request.extensions = {**request.extensions, "timeout": timeout}
