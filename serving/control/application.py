"""`Control`: the application at `/`: what a caller asks before and after calls. Takes no payment and runs no model.

Health, catalogue, the ledger's views, and what `money_routes.py` lets signers read and withdraw. It answers for unknown
models too, in the words that stock clients look for. The treasury is bound under it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import orjson
from ray import serve
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serving.cluster import HEAD_NODE
from serving.control.account_routes import AccountRoutes
from serving.control.catalogue_routes import CatalogueRoutes
from serving.control.grpc_server import GrpcServer
from serving.control.json_rpc import BODY_LIMIT_BYTES, LedgerRpc
from serving.control.models import ModelRef, Models
from serving.control.openapi import document
from serving.errors import CallError
from serving.protocol import cors, refused, small_body

EXTENSIONS = [
    "binary_tensor_data",
    "model_configuration",
    "model_repository",
    "parameters",
    "schedule_policy",
    "statistics",
]


@dataclass(frozen=True, slots=True)
class ControlSpec:
    """What the control application is given: its version, the catalogue, the ledger's chain, and the gRPC address.

    `unserved` names the DApps that are installed and cannot be called, each with the reason.
    """

    version: str
    catalogue: list[dict[str, Any]]
    chain_id: int
    mesh: dict[str, str]
    known: tuple[ModelRef, ...]
    server_name: str
    grpc: str
    maximum_body_bytes: int
    unserved: list[dict[str, Any]] = field(default_factory=list)


@serve.deployment(name="Control", ray_actor_options=HEAD_NODE, max_surge_percent=100)
@serve.ingress()
class Control:
    """The deployment of the control application."""

    async def __init__(self, spec: ControlSpec, treasury: Any, loader: Any = None) -> None:  # type: ignore[misc]
        self._spec, self._treasury = spec, treasury
        self._models = Models(spec.known, loader)
        self._server_facts = {"name": spec.server_name, "version": spec.version, "extensions": EXTENSIONS}
        url = spec.mesh.get("url", "/")
        self._page = document(spec.version, url, spec.catalogue, loader is not None)
        self._grpc = GrpcServer(self._server_facts, self._models, self._is_ready, spec.maximum_body_bytes)
        if spec.grpc:
            await self._grpc.start(spec.grpc)

    def __serve_build_asgi_app__(self) -> Any:
        gets: dict[str, Callable[[Request], Any]] = {
            "/v2": self._server,
            "/v2/": self._server,
            "/v2/health/live": self._live,
            "/v2/health/ready": self._ready,
            "/v2/models/stats": self._statistics,
            "/openapi.json": self._openapi,
        }
        routes = [Route(path, endpoint, methods=["GET"]) for path, endpoint in gets.items()]
        spec = self._spec
        routes += CatalogueRoutes(spec.version, spec.mesh, spec.catalogue, spec.unserved, self._models).routes()
        routes += AccountRoutes(self._spec.chain_id, self._treasury).routes()
        posts: dict[str, Callable[[Request], Any]] = {
            "/v1/rpc": self._rpc,
            "/v2/repository/index": self._index,
            "/v2/repository/models/{name}/load": self._load,
            "/v2/repository/models/{name}/unload": self._unload,
        }
        routes += [Route(path, endpoint, methods=["POST"]) for path, endpoint in posts.items()]
        routes.append(Route("/v2/models/{name}{rest:path}", self._unknown, methods=["GET", "POST"]))
        handlers: Any = {HTTPException: refused, CallError: refused}
        app = Starlette(routes=routes, middleware=[cors()], exception_handlers=handlers)
        app.router.redirect_slashes = False
        return app

    @property
    def docs_path(self) -> str:
        """Serve tells it of the application."""
        return "/openapi.json"

    async def __del__(self) -> None:
        """Serve awaits it when it ends a replica: the calls that came by gRPC come to their end first."""
        await self._grpc.stop()

    async def _server(self, request: Request) -> Response:
        return _json(self._server_facts)

    async def _openapi(self, request: Request) -> Response:
        return _json(self._page)

    async def _live(self, request: Request) -> Response:
        return _json({"live": True})

    async def _ready(self, request: Request) -> Response:
        ready = await self._is_ready()
        return _json({"ready": ready}, 200 if ready else 503)

    async def _is_ready(self) -> bool:
        try:
            return bool(await asyncio.wait_for(_resolved(self._treasury.ping.remote()), 5))
        except Exception:  # a treasury that cannot be reached is what this is there to report
            return False

    async def _statistics(self, request: Request) -> Response:
        return _json(await self._models.statistics())

    async def _index(self, request: Request) -> Response:
        ready = (await _json_body(request)).get("ready", False)
        if type(ready) is not bool:
            raise CallError("bad_request", "`ready` is true or false")
        return _json(await self._models.index(ready))

    async def _load(self, request: Request) -> Response:
        parameters = (await _json_body(request)).get("parameters", {})
        if not isinstance(parameters, dict):
            raise CallError("bad_request", "`parameters` is a JSON object")
        await self._models.load(request.path_params["name"], parameters)
        return _json({})

    async def _unload(self, request: Request) -> Response:
        await _json_body(request)
        await self._models.unload(request.path_params["name"])
        return _json({})

    async def _rpc(self, request: Request) -> Response:
        body = await small_body(request, BODY_LIMIT_BYTES)
        rpc = LedgerRpc(self._spec.chain_id, lambda channel: _resolved(self._treasury.state.remote(channel)))
        return Response(await rpc.answer(body), media_type="application/json")

    async def _unknown(self, request: Request) -> Response:
        name: str = request.path_params["name"]
        if name == "stats" and not request.path_params["rest"]:
            raise HTTPException(405, headers={"Allow": "GET"})
        await self._models.replica(name)
        raise CallError(
            "unknown_model", "Request for unknown model: it is being started, or its route is not known yet"
        )


async def _resolved(response: Any) -> Any:
    return await response


async def _json_body(request: Request) -> dict[str, Any]:
    body = await small_body(request, BODY_LIMIT_BYTES)
    try:
        found = orjson.loads(body or b"{}")
    except ValueError as error:
        raise CallError("bad_request", "the body is JSON") from error
    if not isinstance(found, dict):
        raise CallError("bad_request", "the body is a JSON object")
    return found


def _json(value: object, status: int = 200) -> Response:
    return Response(orjson.dumps(value), status, media_type="application/json", headers={"cache-control": "no-store"})
