"""Writes one audit line for each call of a DApp: ids, sizes, times, amounts and codes, and nothing that a caller wrote.

Wraps the door's application, so that what is written is what was answered. No path, header or body of a request enters
a line: names of files and keys may be a patient's.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from channels.errors import ChannelError
from channels.protocol import Json, decode_header
from serving.telemetry import AuditLog

CODE = re.compile(r"[a-z][a-z_0-9]{0,99}", re.ASCII)
ERROR_BYTES = 4_096
ROUTES = ("infer", "diagnose")
REFUSED_A_SECOND = 20.0
"""Lines for calls that paid nothing: whoever floods a mesh with them must not push others' lines out of the log."""


class AuditMiddleware:
    """An ASGI application whose paid routes are audited.

    Args:
        app: the door's application.
        name: the DApp.
        log: where lines go.
        now_s: a clock that only moves forward.
    """

    def __init__(self, app: ASGIApp, name: str, log: AuditLog, now_s: Callable[[], float] = time.monotonic) -> None:
        self._app, self._name, self._log, self._now_s = app, name, log, now_s
        self._left, self._at_s, self._dropped = REFUSED_A_SECOND, now_s(), 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers, and writes a line when the answer has been sent or its caller has gone."""
        route = scope["path"].rpartition("/")[2] if scope["type"] == "http" else ""
        if route not in ROUTES:
            await self._app(scope, receive, send)
            return
        call = _Call()

        async def counted() -> Message:
            message = await receive()
            call.bytes_in += len(message.get("body", b""))
            return message

        async def noted(message: Message) -> None:
            call.note(message)
            await send(message)

        began = time.perf_counter()
        try:
            await self._app(scope, counted, noted)
        finally:
            self._write(route, call, time.perf_counter() - began)

    def told(self, route: str, bytes_in: int, status: int, headers: Json, body: bytes, took_s: float) -> None:
        """Writes the line of a call that came by another door than ASGI; status 0: its caller has gone."""
        call = _Call()
        call.bytes_in = bytes_in
        named = [(name.encode(), value.encode()) for name, value in headers.items()]
        call.note({"type": "http.response.start", "status": status, "headers": named})
        call.note({"type": "http.response.body", "body": body})
        self._write(route, call, took_s)

    def _write(self, route: str, call: _Call, took_s: float) -> None:
        paid = call.paid()
        if not paid and not self._may():
            self._dropped += 1
            return
        line = {"at_ms": int(time.time() * 1000), "dapp": self._name, "route": route, "status": call.status}
        line |= {"code": call.code(), "ms": round(took_s * 1000, 2), "in": call.bytes_in, "out": call.bytes_out}
        dropped = {"dropped": self._dropped} if self._dropped else {}
        self._dropped = 0
        self._log.write(line | paid | dropped)

    def _may(self) -> bool:
        now = self._now_s()
        self._left = min(REFUSED_A_SECOND, self._left + (now - self._at_s) * REFUSED_A_SECOND)
        self._at_s = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class _Call:
    """What passes by of one call."""

    def __init__(self) -> None:
        self.status = self.bytes_in = self.bytes_out = 0
        self._headers: dict[bytes, bytes] = {}
        self._error = b""

    def note(self, message: Message) -> None:
        """Counts a part of the answer."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self._headers = {name.lower(): value for name, value in message["headers"]}
        elif message["type"] == "http.response.body":
            body = message.get("body", b"")
            self.bytes_out += len(body)
            if self.status >= 400 and len(self._error) < ERROR_BYTES:
                self._error += body

    def code(self) -> str:
        """Our own code of a refusal, or nothing."""
        if self.status < 400:
            return ""
        try:
            code = orjson.loads(self._error)["code"]
        except (orjson.JSONDecodeError, LookupError, TypeError):
            return ""
        return code if isinstance(code, str) and CODE.fullmatch(code) else ""

    def paid(self) -> Json:
        """Who paid what, by the answer's own headers; empty if no money is concerned."""
        said, receipt = self._header(b"payment-response"), self._header(b"leben-receipt")
        if not said:
            return {}
        extra: dict[str, Any] = said.get("extra", {})
        state: dict[str, Any] = extra.get("channelState", {})
        facts = {"payer": said.get("payer"), "channel": state.get("channelId"), "moved": said.get("amount", "")}
        facts |= {"charged": extra.get("chargedAmount", "0"), "transaction": said.get("transaction", "")}
        return facts | {"receipt": receipt.get("receipt", ""), "seq": receipt.get("seq", 0)}

    def _header(self, name: bytes) -> Json:
        value = self._headers.get(name)
        try:
            return decode_header(value.decode("latin-1")) if value else {}
        except ChannelError:
            return {}
