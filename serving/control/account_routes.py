"""Serves signed requests by which payers, owners and the operator see their money and take it out.

A read carries EIP-712 `Read(mesh, path, query, issued)`. What moves money carries the ledger's own typed data with a
nonce that is used once, so a lost reply can be requested again. A stranger cannot tell "not yours" from "not there".
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from channels.errors import X402, ChannelError
from channels.protocol import HASH, HEX, READ, checksummed, read_digest, recover
from serving.cluster.liveness import NotAlive, while_alive
from serving.control.http_json import PRIVATE, json_response, read_json
from serving.control.schemas import money as schemas
from serving.control.schemas.requests import FinalizeRequest, InitiateRequest, PayoutRequest, address
from serving.errors import CallError

READ_VALID_S = 300
READ_AHEAD_S = 60
MAX_BODY_BYTES = 4_096
MAX_MS = 2**62


class AccountRoutes:
    """The routes, over a handle of the treasury.

    Args:
        chain_id: signatures are valid on this ledger alone.
        mesh: the address that signs receipts; signed reads are valid for it alone.
        treasury: handle of the treasury.
        now: seconds since 1970.
    """

    def __init__(self, chain_id: int, mesh: str, treasury: Any, now: Callable[[], float] = time.time) -> None:
        self._chain_id, self._mesh, self._treasury, self._now = chain_id, mesh, treasury, now

    def routes(self) -> list[Route]:
        """All routes about money."""
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
        return _seen(await self._ask("channel", reader, _hash(request)), schemas.Channel, "channel")

    async def _receipt(self, request: Request) -> Response:
        reader = self._reader(request)
        return _seen(await self._ask("receipt", reader, _hash(request)), schemas.ReceiptFile, "receipt")

    async def _epoch(self, request: Request) -> Response:
        reader, number = self._reader(request), request.path_params["number"]
        if not (number.isascii() and number.isdigit() and len(number) < 10):
            raise CallError("not_found", "an epoch is a number")
        return _seen(await self._ask("epoch", reader, int(number)), schemas.Epoch, "epoch")

    async def _earnings(self, request: Request) -> Response:
        reader, owner = self._reader(request), _address(request.path_params["owner"])
        return _seen(await self._ask("earnings", reader, owner), schemas.Earnings, "account")

    async def _statement(self, request: Request) -> Response:
        reader, query = self._reader(request), request.query_params
        owner = _address(query.get("owner", reader))
        from_ms, to_ms = _time_ms(query.get("from", "0")), _time_ms(query.get("to", ""), MAX_MS)
        page = await self._ask("statement", reader, owner, from_ms, to_ms, _whole(query.get("after", "0")))
        if page is None:
            raise _unseen("account")
        if query.get("format", "json") == "csv":
            following = {} if page.after is None else {"leben-next": str(page.after)}
            return Response(page.to_csv(), headers=following | PRIVATE, media_type="text/csv")
        return json_response(schemas.Statement.model_validate({"owner": owner} | page.to_json()))

    async def _initiate(self, request: Request) -> Response:
        body = await read_json(request, InitiateRequest, MAX_BODY_BYTES)
        moved = await self._ask("initiate", _hash(request), body.amount, body.nonce, body.signature)
        return json_response(schemas.Withdrawal.model_validate(moved))

    async def _finalize(self, request: Request) -> Response:
        body = await read_json(request, FinalizeRequest, MAX_BODY_BYTES)
        moved = await self._ask("finalize", _hash(request), body.nonce, body.signature)
        return json_response(schemas.Withdrawal.model_validate(moved))

    async def _payout(self, request: Request) -> Response:
        body = await read_json(request, PayoutRequest, MAX_BODY_BYTES)
        owner = _address(request.path_params["owner"])
        moved = await self._ask("payout", owner, body.to, body.amount, body.nonce, body.signature)
        return json_response(schemas.Payout.model_validate(moved))

    async def _ask(self, method: str, *arguments: Any) -> Any:
        try:
            return await while_alive(getattr(self._treasury, method).remote(*arguments), self._treasury.ping.remote)
        except NotAlive as error:
            message = "the treasury does not answer: repeat the same request shortly"
            raise CallError("treasury_unavailable", message) from error
        except (CallError, ChannelError) as error:
            raise CallError(CODES.get(error.code, error.code), error.message) from None
        except Exception as error:  # whatever it is, the reader can only come back; the treasury has logged it
            raise CallError("not_ready", "the treasury cannot answer now: repeat the same request shortly") from error

    def _reader(self, request: Request) -> str:
        issued = request.headers.get("leben-read-issued", "")
        signature = request.headers.get("leben-read-signature", "")
        mesh = checksummed(request.headers.get("leben-read-mesh", ""))
        # Any 65 bytes recover some address: only the header shows a signature that was made for another mesh, or for
        # none, as clients before 0.2 make it. Without this its reader would be a stranger, and be answered "not found".
        if mesh != self._mesh:
            what = "is signed for another mesh" if mesh else "names no mesh"
            text = f"this read {what}: sign {READ} with the mesh {self._mesh}, and send it as Leben-Read-Mesh"
            raise CallError("read_unsigned", f"{text}; leben-mesh does so from 0.2 on")
        if not (issued.isascii() and issued.isdigit() and len(issued) < 13 and HEX.fullmatch(signature)):
            raise CallError("read_unsigned", f"sign {READ} to read this")
        query = request.scope["query_string"].decode("latin-1")
        digest = read_digest(self._chain_id, mesh=self._mesh, path=request.url.path, query=query, issued_s=int(issued))
        key = recover(digest, bytes.fromhex(signature[2:]))
        if key is None or not -READ_AHEAD_S <= self._now() - int(issued) <= READ_VALID_S:
            raise CallError("read_unsigned", f"a signed Read is valid for {READ_VALID_S} s")
        return str(key.to_checksum_address())


CODES = {"already_used": "nonce_used", X402 + "channel_not_found": "not_found"}
"""Refusals of the ledger that have another name, and status, where nothing is being paid."""


def _unseen(noun: str) -> CallError:
    return CallError("not_found", f"no such {noun}, or not yours to read")


def _seen(fields: dict[str, Any] | None, kind: type[BaseModel], noun: str) -> Response:
    if fields is None:
        raise _unseen(noun)
    return json_response(kind.model_validate(fields))


def _hash(request: Request) -> str:
    name = request.path_params["id"]
    if not HASH.fullmatch(name):
        raise CallError("not_found", "an id is 0x and 64 lower-case hex digits")
    return str(name)


def _address(raw: str) -> str:
    try:
        return address(raw)
    except ValueError as error:
        raise CallError("bad_request", str(error)) from error


def _whole(raw: str) -> int:
    if not (raw.isascii() and raw.isdigit() and len(raw) < 19):
        raise CallError("bad_request", "after is a whole number: the `next` of the previous page")
    return int(raw)


def _time_ms(raw: str, default: int = 0) -> int:
    """Milliseconds since 1970, of seconds or an ISO 8601 date or time; UTC if it has no zone."""
    if raw == "":
        return default
    if raw.isascii() and raw.isdigit() and len(raw) < 13:
        return int(raw) * 1000
    try:
        when = datetime.fromisoformat(raw)
    except ValueError as error:
        raise CallError("bad_request", "from and to are ISO 8601 dates, or seconds since 1970") from error
    return int((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() * 1000)
