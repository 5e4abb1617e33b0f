"""`Control`: the application at `/`: what a caller asks before and after calls. Takes no payment and runs no model.

Health, catalogue, and reading one's own channel and receipts by a signed request. It answers for unknown models too,
in the words that stock clients look for. The treasury is bound under it. Next: `treasury.py`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson
from ray import serve
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from channels.voucher import read_digest, recover
from serving.door import refused
from serving.errors import CallError
from serving.rpc import BODY_LIMIT_BYTES, LedgerRpc

READ_VALID_S = 300
EXTENSIONS = ["binary_tensor_data", "parameters"]


@dataclass(frozen=True, slots=True)
class ControlSpec:
    """What the control application is given: its version, the catalogue, and who may read everything."""

    version: str
    catalogue: list[dict[str, Any]]
    chain_id: int
    mesh: dict[str, str]
    readers: frozenset[str]


@serve.deployment(name="Control", ray_actor_options={"num_cpus": 0})
@serve.ingress()
class Control:
    """The deployment of the control application."""

    def __init__(self, spec: ControlSpec, treasury: Any) -> None:
        self._spec, self._treasury = spec, treasury

    def __serve_build_asgi_app__(self) -> Any:
        gets: dict[str, Callable[[Request], Any]] = {
            "/": self._home,
            "/v2": self._server,
            "/v2/": self._server,
            "/v2/health/live": self._live,
            "/v2/health/ready": self._ready,
            "/v1/catalogue": self._catalogue,
            "/v1/channels/{id}": self._channel,
            "/v1/receipts/{id}": self._receipt,
        }
        routes = [Route(path, endpoint, methods=["GET"]) for path, endpoint in gets.items()]
        routes.append(Route("/v1/rpc", self._rpc, methods=["POST"]))
        routes.append(Route("/v2/models/{name}{rest:path}", self._unknown, methods=["GET", "POST"]))
        return Starlette(routes=routes, exception_handlers={HTTPException: refused, CallError: refused})

    async def _home(self, request: Request) -> Response:
        links = {"catalogue": "/v1/catalogue", "ready": "/v2/health/ready", "protocol": "/v2"}
        return _json({"name": "Leben Mesh", "version": self._spec.version, "links": links})

    async def _server(self, request: Request) -> Response:
        return _json({"name": "leben-mesh", "version": self._spec.version, "extensions": EXTENSIONS})

    async def _live(self, request: Request) -> Response:
        return _json({"live": True})

    async def _ready(self, request: Request) -> Response:
        try:
            ready = bool(await asyncio.wait_for(_resolved(self._treasury.ping.remote()), 5))
        except Exception:  # a treasury that cannot be reached is what this route is there to report
            ready = False
        return _json({"ready": ready}, 200 if ready else 503)

    async def _catalogue(self, request: Request) -> Response:
        return _json({"mesh": self._spec.mesh, "dapps": self._spec.catalogue})

    async def _channel(self, request: Request) -> Response:
        reader = self._reader(request)
        found = await self._treasury.channel.remote(request.path_params["id"])
        if found is None or reader not in {found["payer"], found["receiver"], *self._spec.readers}:
            raise CallError("not_found", "no such channel, or not yours to read")
        return _json(found)

    async def _receipt(self, request: Request) -> Response:
        reader = self._reader(request)
        found = await self._treasury.receipt.remote(request.path_params["id"])
        if found is not None:
            channel = await self._treasury.channel.remote(found["channelId"])
            owners = {share["owner"] for share in found["shares"]}
            if reader in {channel["payer"], channel["receiver"], *owners, *self._spec.readers}:
                return _json(found)
        raise CallError("not_found", "no such receipt, or not yours to read")

    async def _rpc(self, request: Request) -> Response:
        body = bytearray()
        async for part in request.stream():
            body += part[: BODY_LIMIT_BYTES + 1 - len(body)]
        if len(body) > BODY_LIMIT_BYTES:
            raise CallError("body_too_large", f"a JSON-RPC body is at most {BODY_LIMIT_BYTES} bytes")
        rpc = LedgerRpc(self._spec.chain_id, lambda channel: _resolved(self._treasury.state.remote(channel)))
        return Response(await rpc.answer(bytes(body)), media_type="application/json")

    def _reader(self, request: Request) -> str:
        """The address that signed EIP-712 `Read(path, issued)`; a stranger cannot tell "not yours" from "not there"."""
        issued = request.headers.get("leben-read-issued", "")
        signature = request.headers.get("leben-read-signature", "")
        try:
            age_s = time.time() - int(issued)
            digest = read_digest(self._spec.chain_id, request.url.path, int(issued))
            key = recover(digest, bytes.fromhex(signature.removeprefix("0x")))
        except (ValueError, OverflowError) as error:
            raise CallError("read_unsigned", "sign Read(path, issued) to read this") from error
        if key is None or not -60 <= age_s <= READ_VALID_S:
            raise CallError("read_unsigned", f"a signed Read is valid for {READ_VALID_S} s")
        return str(key.to_checksum_address())

    async def _unknown(self, request: Request) -> Response:
        known = ", ".join(row["name"] for row in self._spec.catalogue)
        raise CallError(
            "unknown_model", f"Request for unknown model: none of this name is served here; there are: {known}"
        )


async def _resolved(response: Any) -> Any:
    return await response


def _json(value: object, status: int = 200) -> Response:
    return Response(orjson.dumps(value), status, media_type="application/json", headers={"cache-control": "no-store"})
