"""`Control`: the application at `/`: what a caller asks before and after calls. Takes no payment and runs no model.

Health, catalogue, the ledger's views, and what `money_routes.py` lets signers read and withdraw. It answers for unknown
models too, in the words that stock clients look for. The treasury is bound under it. Next: `treasury.py`.
"""

from __future__ import annotations

import asyncio
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

from serving.door import refused
from serving.errors import CallError
from serving.money_routes import MoneyRoutes
from serving.rpc import BODY_LIMIT_BYTES, LedgerRpc
from serving.small_body import small_body

EXTENSIONS = ["binary_tensor_data", "parameters"]


@dataclass(frozen=True, slots=True)
class ControlSpec:
    """What the control application is given: its version, the catalogue and the ledger's chain."""

    version: str
    catalogue: list[dict[str, Any]]
    chain_id: int
    mesh: dict[str, str]


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
        }
        routes = [Route(path, endpoint, methods=["GET"]) for path, endpoint in gets.items()]
        routes += MoneyRoutes(self._spec.chain_id, self._treasury).routes()
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

    async def _rpc(self, request: Request) -> Response:
        body = await small_body(request, BODY_LIMIT_BYTES)
        rpc = LedgerRpc(self._spec.chain_id, lambda channel: _resolved(self._treasury.state.remote(channel)))
        return Response(await rpc.answer(body), media_type="application/json")

    async def _unknown(self, request: Request) -> Response:
        known = ", ".join(row["name"] for row in self._spec.catalogue)
        raise CallError(
            "unknown_model", f"Request for unknown model: none of this name is served here; there are: {known}"
        )


async def _resolved(response: Any) -> Any:
    return await response


def _json(value: object, status: int = 200) -> Response:
    return Response(orjson.dumps(value), status, media_type="application/json", headers={"cache-control": "no-store"})
