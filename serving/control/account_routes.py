"""Routes by which payers, owners and the operator look at their money and take it out, each by a signed request.

A read carries EIP-712 `Read(path, issued)`; what moves money carries the ledger's own typed data, once a nonce, so that
a lost reply may be asked for again. A stranger cannot tell "not yours" from "not there".
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from channels.errors import X402, ChannelError
from channels.protocol import HASH, HEX, checksummed, parse_amount, read_digest, recover
from serving.errors import CallError
from serving.protocol import small_body

READ_VALID_S = 300
READ_AHEAD_S = 60
BODY_LIMIT_BYTES = 4_096
FAR_MS = 2**62


class AccountRoutes:
    """The routes, over a handle of the treasury.

    Args:
        chain_id: signatures are valid on this ledger alone.
        treasury: asked for everything.
        now: seconds since 1970.
    """

    def __init__(self, chain_id: int, treasury: Any, now: Callable[[], float] = time.time) -> None:
        self._chain_id, self._treasury, self._now = chain_id, treasury, now

    def routes(self) -> list[Route]:
        """All of them."""
        gets: dict[str, Callable[[Request], Any]] = {
            "/v1/channels/{id}": self._channel,
            "/v1/receipts/{id}": self._receipt,
            "/v1/epochs/{number}": self._epoch,
            "/v1/statements": self._statement,
            "/v1/earnings/{owner}": self._earnings,
        }
        posts: dict[str, Callable[[Request], Any]] = {
            "/v1/channels/{id}/withdraw/initiate": self._initiate,
            "/v1/channels/{id}/withdraw/finalize": self._finalize,
            "/v1/earnings/{owner}/withdraw": self._payout,
        }
        return [Route(path, endpoint, methods=["GET"]) for path, endpoint in gets.items()] + [
            Route(path, endpoint, methods=["POST"]) for path, endpoint in posts.items()
        ]

    async def _channel(self, request: Request) -> Response:
        reader = self._reader(request)
        return _found(await self._ask("channel", reader, _hash(request)), "channel")

    async def _receipt(self, request: Request) -> Response:
        reader = self._reader(request)
        return _found(await self._ask("receipt", reader, _hash(request)), "receipt")

    async def _epoch(self, request: Request) -> Response:
        reader, number = self._reader(request), request.path_params["number"]
        if not (number.isascii() and number.isdigit() and len(number) < 10):
            raise CallError("not_found", "an epoch is a number")
        return _found(await self._ask("epoch", reader, int(number)), "epoch")

    async def _earnings(self, request: Request) -> Response:
        reader = self._reader(request)
        return _found(await self._ask("earnings", reader, _address(request.path_params["owner"])), "account")

    async def _statement(self, request: Request) -> Response:
        reader, words = self._reader(request), request.query_params
        owner = _address(words.get("owner", reader))
        begins_ms, ends_ms = _time_ms(words.get("from", "0")), _time_ms(words.get("to", ""), FAR_MS)
        page = await self._ask("statement", reader, owner, begins_ms, ends_ms, _whole(words.get("after", "0")))
        if page is None:
            raise CallError("not_found", "no such account, or not yours to read")
        if words.get("format", "json") == "csv":
            following = {} if page.after is None else {"leben-next": str(page.after)}
            return Response(page.to_csv(), headers=following | PRIVATE, media_type="text/csv")
        return _json({"owner": owner} | page.to_json())

    async def _initiate(self, request: Request) -> Response:
        asked = await _body(request)
        words = _amount(asked, "amount"), _nonce(asked), _signature(asked)
        return _moved(await self._ask("initiate", _hash(request), *words))

    async def _finalize(self, request: Request) -> Response:
        asked = await _body(request)
        return _moved(await self._ask("finalize", _hash(request), _nonce(asked), _signature(asked)))

    async def _payout(self, request: Request) -> Response:
        asked = await _body(request)
        owner, to = _address(request.path_params["owner"]), _address(asked.get("to"))
        return _moved(await self._ask("payout", owner, to, _amount(asked, "amount"), _nonce(asked), _signature(asked)))

    async def _ask(self, verb: str, *words: Any) -> Any:
        try:
            return await getattr(self._treasury, verb).remote(*words)
        except Exception as error:  # whatever it is, the reader can only come back; the treasury has logged it
            raise CallError("not_ready", "the treasury cannot answer now: repeat the same request shortly") from error

    def _reader(self, request: Request) -> str:
        issued = request.headers.get("leben-read-issued", "")
        signature = request.headers.get("leben-read-signature", "")
        if not (issued.isascii() and issued.isdigit() and len(issued) < 13 and HEX.fullmatch(signature)):
            raise CallError("read_unsigned", "sign Read(path, issued) to read this")
        key = recover(read_digest(self._chain_id, request.url.path, int(issued)), bytes.fromhex(signature[2:]))
        if key is None or not -READ_AHEAD_S <= self._now() - int(issued) <= READ_VALID_S:
            raise CallError("read_unsigned", f"a signed Read is valid for {READ_VALID_S} s")
        return str(key.to_checksum_address())


MOVES = {"already_used": "nonce_used", X402 + "channel_not_found": "not_found"}
"""Refusals of the ledger that have another name, and status, where nothing is being paid."""
PRIVATE = {"cache-control": "no-store"}


def _json(value: object) -> Response:
    return Response(orjson.dumps(value), media_type="application/json", headers=PRIVATE)


def _found(value: object, what: str) -> Response:
    if value is None:
        raise CallError("not_found", f"no such {what}, or not yours to read")
    return _json(value)


def _moved(said: dict[str, Any] | tuple[str, str]) -> Response:
    if isinstance(said, dict):
        return _json(said)
    code, message = said
    raise CallError(MOVES.get(code, code), message)


def _hash(request: Request) -> str:
    name = request.path_params["id"]
    if not HASH.fullmatch(name):
        raise CallError("not_found", "an id is 0x and 64 lower-case hex digits")
    return str(name)


async def _body(request: Request) -> dict[str, Any]:
    body = await small_body(request, BODY_LIMIT_BYTES)
    try:
        asked = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise CallError("bad_request", "the body is not JSON") from error
    if not isinstance(asked, dict):
        raise CallError("bad_request", "the body is a JSON object")
    return asked


def _address(raw: object) -> str:
    address = checksummed(raw) if isinstance(raw, str) else None
    if address is None:
        raise CallError("bad_request", "an address is 0x and 40 hex digits")
    return address


def _amount(asked: dict[str, Any], name: str) -> int:
    try:
        return parse_amount(asked.get(name), name)
    except ChannelError as error:
        raise CallError("bad_request", f"{name} is a decimal string") from error


def _nonce(asked: dict[str, Any]) -> int:
    return _amount(asked, "nonce")


def _signature(asked: dict[str, Any]) -> bytes:
    raw = asked.get("signature")
    if not isinstance(raw, str) or not HEX.fullmatch(raw) or len(raw) != 132:
        raise CallError("bad_request", "signature is 65 bytes in hex")
    return bytes.fromhex(raw[2:])


def _whole(raw: str) -> int:
    if not (raw.isascii() and raw.isdigit() and len(raw) < 19):
        raise CallError("bad_request", "after is a whole number: the `next` of the page before")
    return int(raw)


def _time_ms(raw: str, default: int = 0) -> int:
    """Milliseconds since 1970 of seconds or an ISO 8601 date or time, UTC where it names no zone."""
    if raw == "":
        return default
    if raw.isascii() and raw.isdigit() and len(raw) < 13:
        return int(raw) * 1000
    try:
        when = datetime.fromisoformat(raw)
    except ValueError as error:
        raise CallError("bad_request", "from and to are ISO 8601 dates, or seconds since 1970") from error
    return int((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() * 1000)
