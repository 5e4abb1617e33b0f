"""Writes one audit line for each call of a DApp: ids, sizes, times, amounts and codes.

Nothing that a caller wrote enters a line, neither path nor header nor body: names of files and keys may be a patient's.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from channels.protocol import Json
from serving.telemetry import AuditLog, CallRecord

ROUTES = ("infer", "diagnose")
REFUSED_A_SECOND = 20.0
"""Lines a second for calls that paid nothing: a flood of them must not push other lines out of the log."""


class AuditMiddleware:
    """An ASGI application whose paid routes are audited.

    Args:
        app: the DApp's application.
        name: the DApp.
        log: receives the lines.
        now_s: a clock that only moves forward, in seconds.
    """

    def __init__(self, app: ASGIApp, name: str, log: AuditLog, now_s: Callable[[], float] = time.monotonic) -> None:
        self._app, self._name, self._log, self._now_s = app, name, log, now_s
        self._allowance, self._at_s, self._dropped = REFUSED_A_SECOND, now_s(), 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers, and writes a line once the call has ended and its response is sent or its caller has gone.

        A keyed call whose caller goes away is still charged: its line waits for that.
        """
        route = scope["path"].rpartition("/")[2] if scope["type"] == "http" else ""
        if route not in ROUTES:
            await self._app(scope, receive, send)
            return
        record, bytes_in, bytes_out, status = CallRecord(route), 0, 0, 0
        state = scope.setdefault("state", {})
        state["call"] = record

        async def counted_receive() -> Message:
            nonlocal bytes_in
            message = await receive()
            bytes_in += len(message.get("body", b""))
            return message

        async def counted_send(message: Message) -> None:
            nonlocal bytes_out, status
            if message["type"] == "http.response.start":
                status = message["status"]
            elif message["type"] == "http.response.body":
                bytes_out += len(message.get("body", b""))
            await send(message)

        began_s = time.perf_counter()
        try:
            await self._app(scope, counted_receive, counted_send)
        finally:
            record.code = record.code or state.get("code", "")
            self.write(record, status, bytes_in, bytes_out, time.perf_counter() - began_s)

    def write(self, record: CallRecord, status: int, bytes_in: int, bytes_out: int, took_s: float) -> None:
        """Writes a call's line, now or when the call has ended.

        Args:
            record: what the call did and cost.
            status: of the response; 0: its caller has gone.
            bytes_in: length of its body, as far as it came.
            bytes_out: length of the response's body.
            took_s: from its arrival until its response was sent or its caller had gone.
        """
        facts: Json = {"status": status, "code": record.code if status >= 400 else ""}
        facts |= {"ms": round(took_s * 1000, 2), "in": bytes_in, "out": bytes_out}
        record.when_finished(lambda finished: self._write(finished, facts))

    def _write(self, record: CallRecord, facts: Json) -> None:
        money = _money(record)
        if not money and not self._allowed():
            self._dropped += 1
            return
        line = {"at_ms": int(time.time() * 1000), "dapp": self._name, "route": record.route}
        dropped = {"dropped": self._dropped} if self._dropped else {}
        self._dropped = 0
        self._log.write(line | facts | money | dropped)

    def _allowed(self) -> bool:
        now_s = self._now_s()
        self._allowance = min(REFUSED_A_SECOND, self._allowance + (now_s - self._at_s) * REFUSED_A_SECOND)
        self._at_s = now_s
        if self._allowance < 1:
            return False
        self._allowance -= 1
        return True


def _money(record: CallRecord) -> Json:
    """What the call's payment moved; empty if nothing."""
    money = record.money
    if money is None:
        return {}
    return {
        "payer": money.payer,
        "channel": money.channel,
        "moved": money.moved,
        "charged": str(money.charged),
        "transaction": money.transaction,
        "receipt": money.receipt,
        "seq": money.seq,
    }
