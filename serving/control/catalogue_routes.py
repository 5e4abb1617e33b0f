"""Routes of the catalogue: for programs as JSON, and for people as pages. All of them cost nothing and change nothing.

`/` answers whoever asks for HTML with the page, and everybody else with where to go.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serving.catalogue import listed, with_current_offer
from serving.control.models import Models
from serving.control.pages import HEADERS, Pages, asset
from serving.errors import CallError

Json = dict[str, Any]
TRIAL_TIMEOUT_S = 60.0
ASSETS = {"style.css": "text/css", "icon.svg": "image/svg+xml"}


class CatalogueRoutes:
    """The routes.

    Args:
        version: of the mesh.
        mesh: its address, network, asset and who signs its receipts.
        rows: the DApps that are served, as `catalogue.entry` tells them.
        unserved: those that are not, and why.
        models: asked which of them answer now, and for the answers to their samples.
    """

    def __init__(
        self, version: str, mesh: dict[str, str], rows: list[Json], unserved: list[Json], models: Models
    ) -> None:
        self._version, self._mesh, self._unserved, self._models = version, mesh, unserved, models
        self._rows = {row["name"]: row for row in rows}
        self._pages = Pages(version, mesh)
        self._assets = {name: asset(name) for name in ASSETS}

    def routes(self) -> list[Route]:
        """All of them."""
        gets: dict[str, Callable[[Request], Any]] = {
            "/": self._home,
            "/v1/catalogue": self._catalogue,
            "/v1/dapps": self._list,
            "/v1/dapps/{name}": self._one,
            "/dapps/{name}": self._page,
            "/dapps/{name}/try": self._try,
            "/dapps/{name}/picture": self._picture,
            "/style.css": self._asset,
            "/icon.svg": self._asset,
        }
        return [Route(path, endpoint, methods=["GET"]) for path, endpoint in gets.items()]

    async def _home(self, request: Request) -> Response:
        if "text/html" in request.headers.get("accept", ""):
            return _html(await asyncio.to_thread(self._pages.home, await self._healthy(), self._unserved))
        links = {"catalogue": "/v1/dapps", "ready": "/v2/health/ready", "protocol": "/v2", "openapi": "/openapi.json"}
        return _json({"name": "Leben Mesh", "version": self._version, "links": links})

    async def _catalogue(self, request: Request) -> Response:
        return _json({"mesh": self._mesh, "dapps": [listed(row) for row in self._rows.values()]})

    async def _list(self, request: Request) -> Response:
        rows = [listed(row) for row in await self._healthy()]
        return _json({"mesh": self._mesh, "dapps": rows, "unserved": self._unserved})

    async def _one(self, request: Request) -> Response:
        return _json(await self._with_health(self._row(request)))

    async def _page(self, request: Request) -> Response:
        row = await self._with_health(self._row(request))
        return _html(await asyncio.to_thread(self._pages.dapp, row))

    async def _try(self, request: Request) -> Response:
        row, sample = self._sample(request)
        status, _, body = await self._tried(row, sample, "markdown")
        if status != 200:
            told = body.decode(errors="replace")
            return _html(self._pages.answer(row, sample, told, markdown=False, picture=False), status)
        drawn = row["diagnose"] and (await self._tried(row, sample, "png"))[0] == 200
        page = (row, sample, body.decode(errors="replace"), row["diagnose"], drawn)
        return _html(await asyncio.to_thread(self._pages.answer, *page))

    async def _picture(self, request: Request) -> Response:
        row, sample = self._sample(request)
        status, kind, body = await self._tried(row, sample, "png")
        if status != 200 or kind != "image/png":
            raise CallError("not_found", "this sample has no picture")
        return Response(body, 200, HEADERS, media_type=kind)

    async def _asset(self, request: Request) -> Response:
        name = request.url.path.rpartition("/")[2]
        headers = HEADERS | {"cache-control": "public, max-age=300"}
        return Response(self._assets[name], 200, headers, media_type=ASSETS[name])

    def _row(self, request: Request) -> Json:
        row = self._rows.get(request.path_params["name"])
        if row is None:
            raise CallError("not_found", "no DApp of this name is served here: see /v1/dapps")
        return row

    def _sample(self, request: Request) -> tuple[Json, str]:
        row, sample = self._row(request), request.query_params.get("sample", "")
        if sample not in row["samples"]:
            raise CallError("not_found", "there is no such sample: the DApp's page lists them")
        return row, sample

    async def _tried(self, row: Json, sample: str, view: str) -> tuple[int, str, bytes]:
        replica = await self._models.replica(row["name"])
        try:
            told: tuple[int, str, bytes] = await asyncio.wait_for(
                _resolved(replica.sampled.remote(sample, view)), TRIAL_TIMEOUT_S
            )
        except Exception as error:
            raise CallError("busy", "no replica of this model answers: try again shortly") from error
        return told

    async def _healthy(self) -> list[Json]:
        health = await self._health()
        rows = [row | {"health": health[name]} for name, row in self._rows.items()]
        return list(await asyncio.gather(*map(self._as_now, rows)))

    async def _with_health(self, row: Json) -> Json:
        return await self._as_now(row | {"health": (await self._health())[row["name"]]})

    async def _as_now(self, row: Json) -> Json:
        """With what its operator has changed since the mesh was started; a replica alone knows that."""
        if row["health"]["state"] != "READY":
            return row
        with suppress(CallError):
            return with_current_offer(row, await self._models.facts(row["name"], "offer"))
        return row

    async def _health(self) -> dict[str, Json]:
        index = {row["name"]: row for row in await self._models.index()}
        return {name: {key: index[name][key] for key in ("state", "reason")} for name in self._rows}


async def _resolved(response: Any) -> Any:
    return await response


def _html(page: str, status: int = 200) -> Response:
    return Response(page.encode(), status, HEADERS, media_type="text/html")


def _json(value: object) -> Response:
    headers = {"cache-control": "no-store", "vary": "accept"}
    return Response(orjson.dumps(value), media_type="application/json", headers=headers)
