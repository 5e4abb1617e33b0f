"""Runs the control application at `/`: everything that is not a paid call and runs no model.

Health, the catalogue, the ledger's views, signed reads and withdrawals, and the gRPC server. It also refuses calls of
unknown models, in the words that stock clients look for. The treasury is bound under it.
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
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from serving.cluster import HEAD_NODE
from serving.control.account_routes import AccountRoutes
from serving.control.body_arrivals import BodyArrivals
from serving.control.catalogue_routes import CatalogueRoutes
from serving.control.grpc_server import GrpcServer
from serving.control.http_json import PRIVATE, canonical_url, json_response, read_json
from serving.control.json_rpc import MAX_BODY_BYTES, LedgerRpc
from serving.control.models import ModelRef, Models
from serving.control.openapi import document
from serving.control.schemas import v2
from serving.control.schemas.base import Body, Empty
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


PING_TIMEOUT_S = 5.0
MAX_ONGOING = 1_000
"""Serve's own limit is five: as many stalled requests would keep health and catalogue from answering."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlSpec:
    """What the control application is started with.

    `catalogue` and `unserved` are rows of `serving.catalogue.entry`, `mesh` the facts that `/v1/catalogue` shows,
    `versions` every version of every DApp, `grpc` an address `HOST:PORT` or empty for no gRPC.
    """

    version: str
    catalogue: list[dict[str, Any]]
    chain_id: int
    mesh: dict[str, str]
    versions: tuple[ModelRef, ...]
    server_name: str
    grpc: str
    maximum_body_bytes: int
    unserved: list[dict[str, Any]] = field(default_factory=list)


@serve.deployment(name="Control", ray_actor_options=HEAD_NODE, max_surge_percent=100, max_ongoing_requests=MAX_ONGOING)
@serve.ingress()
class Control:
    """The deployment of the control application."""

    async def __init__(self, spec: ControlSpec, treasury: Any, loader: Any = None) -> None:  # type: ignore[misc]
        self._spec, self._treasury = spec, treasury
        self._models = Models(spec.versions, loader)
        self._server_metadata = v2.ServerMetadata(name=spec.server_name, version=spec.version, extensions=EXTENSIONS)
        url = spec.mesh.get("url", "/")
        self._page = orjson.dumps(document(spec.version, url, spec.catalogue, loader is not None))
        self._grpc = GrpcServer(
            self._server_metadata.model_dump(), self._models, self._is_ready, spec.maximum_body_bytes
        )
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
        routes += AccountRoutes(spec.chain_id, spec.mesh["receipts"], self._treasury).routes()
        posts: dict[str, Callable[[Request], Any]] = {
            "/v1/rpc": self._rpc,
            "/v2/repository/index": self._index,
            "/v2/repository/models/{name}/load": self._load,
            "/v2/repository/models/{name}/unload": self._unload,
        }
        routes += [Route(path, endpoint, methods=["POST"]) for path, endpoint in posts.items()]
        routes.append(Route("/v2/models/{name}{rest:path}", self._unknown, methods=["GET", "POST"]))
        handlers: Any = {HTTPException: refused, CallError: refused}
        app = Starlette(routes=routes, middleware=[cors(), Middleware(BodyArrivals)], exception_handlers=handlers)
        app.router.redirect_slashes = False
        return app

    @property
    def docs_path(self) -> str:
        """Serve shows it beside the application."""
        return "/openapi.json"

    async def __del__(self) -> None:
        """Serve awaits this at a replica's end: calls over gRPC finish first."""
        await self._grpc.stop()

    async def _server(self, request: Request) -> Response:
        return json_response(self._server_metadata)

    async def _openapi(self, request: Request) -> Response:
        return Response(self._page, media_type="application/json", headers=PRIVATE)

    async def _live(self, request: Request) -> Response:
        return json_response(v2.Live(live=True))

    async def _ready(self, request: Request) -> Response:
        ready = await self._is_ready()
        return json_response(v2.Ready(ready=ready), 200 if ready else 503)

    async def _is_ready(self) -> bool:
        try:
            async with asyncio.timeout(PING_TIMEOUT_S):
                return bool(await self._treasury.ping.remote())
        except Exception:  # whatever is wrong with the treasury: this route is there to report it
            return False

    async def _statistics(self, request: Request) -> Response:
        return json_response(v2.Statistics.model_validate(await self._models.statistics()))

    async def _index(self, request: Request) -> Response:
        body = await read_json(request, v2.IndexRequest, MAX_BODY_BYTES)
        return json_response(await self._models.index(body.ready))

    async def _load(self, request: Request) -> Response:
        body = await read_json(request, v2.LoadRequest, MAX_BODY_BYTES)
        await self._models.load(request.path_params["name"], body.parameters)
        return json_response(Empty())

    async def _unload(self, request: Request) -> Response:
        await read_json(request, Body, MAX_BODY_BYTES)
        await self._models.unload(request.path_params["name"])
        return json_response(Empty())

    async def _rpc(self, request: Request) -> Response:
        body = await small_body(request, MAX_BODY_BYTES)
        rpc = LedgerRpc(self._spec.chain_id, self._treasury.state.remote)
        return Response(await rpc.answer(body), media_type="application/json")

    async def _unknown(self, request: Request) -> Response:
        name: str = request.path_params["name"]
        if name == "stats" and not request.path_params["rest"]:
            raise HTTPException(405, headers={"Allow": "GET"})
        await self._models.replica(name)
        if canonical := canonical_url(request):
            return RedirectResponse(canonical, 308)  # which keeps method and body
        raise CallError(
            "unknown_model", "Request for unknown model: it is being started, or its route is not known yet"
        )
