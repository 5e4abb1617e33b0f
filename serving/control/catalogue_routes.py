"""Serves the catalogue: as JSON to programs, as pages to people. Every route is free and changes nothing.

`/` answers a request that accepts HTML with the page, and every other one with links.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response as HttpResponse
from starlette.routing import Route

from serving.catalogue import listed, with_current_offer
from serving.control.http_json import json_response
from serving.control.models import Models
from serving.control.pages import HEADERS, Pages, asset
from serving.control.schemas import catalogue as schemas
from serving.errors import CallError
from serving.protocol import Response

Json = dict[str, Any]
SAMPLE_TIMEOUT_S = 60.0
ASSETS = {"style.css": "text/css", "icon.svg": "image/svg+xml"}


class CatalogueRoutes:
    """The routes.

    Args:
        version: of the mesh.
        mesh: its address, network, asset and who signs its receipts.
        rows: the DApps that are served, as `catalogue.entry` describes them.
        unserved: the DApps that are not, each with the reason.
        models: reaches their replicas, for their health, their offer and the answers to their samples.
    """

    def __init__(
        self, version: str, mesh: dict[str, str], rows: list[Json], unserved: list[Json], models: Models
    ) -> None:
        self._version, self._unserved, self._models = version, unserved, models
        self._mesh = schemas.Mesh.model_validate(mesh)
        self._rows = {row["name"]: row for row in rows}
        self._pages = Pages(version, mesh)
        self._assets = {name: asset(name) for name in ASSETS}
        self._looks: dict[str, asyncio.Future[Json]] = {}

    def routes(self) -> list[Route]:
        """All routes of the catalogue."""
        gets: dict[str, Callable[[Request], Any]] = {
            "/": self._home,
            "/v1/catalogue": self._catalogue,
            "/v1/dapps": self._list,
            "/v1/dapps/{name}": self._dapp,
            "/dapps/{name}": self._page,
            "/dapps/{name}/try": self._try,
            "/dapps/{name}/picture": self._picture,
            "/style.css": self._asset,
            "/icon.svg": self._asset,
        }
        return [Route(path, endpoint, methods=["GET"]) for path, endpoint in gets.items()]

    async def _home(self, request: Request) -> HttpResponse:
        if "text/html" in request.headers.get("accept", ""):
            return _html(await asyncio.to_thread(self._pages.home, await self._healthy(), self._unserved))
        links = {"catalogue": "/v1/dapps", "ready": "/v2/health/ready", "protocol": "/v2", "openapi": "/openapi.json"}
        return _json(schemas.Home(name="Leben Mesh", version=self._version, links=links))

    async def _catalogue(self, request: Request) -> HttpResponse:
        dapps = [schemas.DApp.model_validate(listed(row)) for row in self._rows.values()]
        return _json(schemas.Catalogue(mesh=self._mesh, dapps=dapps))

    async def _list(self, request: Request) -> HttpResponse:
        dapps = [schemas.DAppWithHealth.model_validate(listed(row)) for row in await self._healthy()]
        unserved = [schemas.UnservedDApp.model_validate(row) for row in self._unserved]
        return _json(schemas.DApps(mesh=self._mesh, dapps=dapps, unserved=unserved))

    async def _dapp(self, request: Request) -> HttpResponse:
        row = await self._with_health(self._row(request)["name"])
        return _json(schemas.DAppDetails.model_validate(row))

    async def _page(self, request: Request) -> HttpResponse:
        row = await self._with_health(self._row(request)["name"])
        return _html(await asyncio.to_thread(self._pages.dapp, row))

    async def _try(self, request: Request) -> HttpResponse:
        row, sample = self._sample(request)
        answer = await self._answer(row, sample, "markdown")
        text = answer.body.decode(errors="replace")
        if answer.status != 200:
            return _html(self._pages.answer(row, sample, text, markdown=False, picture=False), answer.status)
        picture = row["diagnose"] and (await self._answer(row, sample, "png")).status == 200
        return _html(await asyncio.to_thread(self._pages.answer, row, sample, text, row["diagnose"], picture))

    async def _picture(self, request: Request) -> HttpResponse:
        row, sample = self._sample(request)
        answer = await self._answer(row, sample, "png")
        if answer.status != 200 or answer.headers.get("content-type") != "image/png":
            raise CallError("not_found", "this sample has no picture")
        return HttpResponse(answer.body, 200, HEADERS, media_type="image/png")

    async def _asset(self, request: Request) -> HttpResponse:
        name = request.url.path.rpartition("/")[2]
        headers = HEADERS | {"cache-control": "public, max-age=300"}
        return HttpResponse(self._assets[name], 200, headers, media_type=ASSETS[name])

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

    async def _answer(self, row: Json, sample: str, view: str) -> Response:
        replica = await self._models.replica(row["name"])
        try:
            async with asyncio.timeout(SAMPLE_TIMEOUT_S):
                answer: Response = await replica.sampled.remote(sample, view)
        except CallError as error:
            raise CallError(error.code, error.message) from None
        except Exception as error:
            raise CallError("busy", "no replica of this model answers: try again shortly") from error
        return answer

    async def _healthy(self) -> list[Json]:
        return list(await asyncio.gather(*map(self._with_health, self._rows)))

    async def _with_health(self, name: str) -> Json:
        """A row with its DApp's health. Visitors at once share one look: the page is free, and replicas are busy."""
        look = self._looks.get(name)
        if look is None:
            look = self._looks[name] = asyncio.ensure_future(self._look(name))
            look.add_done_callback(lambda done: self._looks.pop(name, None))
        return await asyncio.shield(look)

    async def _look(self, name: str) -> Json:
        state = await self._models.state(name)
        return await self._with_current_offer(
            self._rows[name] | {"health": {"state": state.state, "reason": state.reason}}
        )

    async def _with_current_offer(self, row: Json) -> Json:
        """The row with the operator's changes since the start of the mesh, which only a replica has."""
        if row["health"]["state"] != "READY":
            return row
        with suppress(CallError):
            return with_current_offer(row, await self._models.facts(row["name"], "offer"))
        return row


def _html(page: str, status: int = 200) -> HttpResponse:
    return HttpResponse(page.encode(), status, HEADERS, media_type="text/html")


def _json(answer: BaseModel) -> HttpResponse:
    return json_response(answer, headers={"vary": "accept"})
