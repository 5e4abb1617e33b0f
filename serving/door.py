"""The HTTP door of one DApp: routes, body limits, and the way from bytes to the model and back.

Decoding starts inside the hold and off the event loop, so an unpaid caller cannot buy work and a large body cannot
stall a health check. Errors are always `{"error": …}`, or stock clients cannot read them. Next: `paywall.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.datastructures import URL
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from channels.errors import ChannelError
from dapps import DApp
from dapps.types import Inputs
from serving import oip
from serving.batcher import Batcher
from serving.diagnose import picture, read_case, read_view, render
from serving.errors import CallError, describe
from serving.offloop import off_loop
from serving.paywall import Asked, Paywall, Reply, Work

CALL_TIMEOUT_S = 100.0
"""Below the 120 s after which the proxy cuts a call at a reload."""
DRAIN_FACTOR = 4
KEPT_BODIES = 8
"""How many bodies of the largest size a replica keeps at once; small ones fit in great number."""
DRAIN_TIMEOUT_S = 20.0
URL_LIMIT = 1024


class Door:
    """The ASGI application of one DApp, mounted at ``/v2/models/<name>``."""

    def __init__(self, name: str, dapp: DApp, paywall: Paywall, batcher: Batcher, maximum_body_bytes: int) -> None:
        self._name, self._dapp = name, dapp
        self._paywall, self._batcher = paywall, batcher
        self._provenance = dapp.provenance  # reads the package's files: once, and not during a call
        self._maximum_body_bytes = maximum_body_bytes
        self._kept_bytes = 0

    def app(self) -> ASGIApp:
        """The routes; each stands with and without a version in the path."""
        routes: list[Route] = []
        for prefix in ("", "/versions/{version}"):
            routes += [
                Route(prefix or "/", self._metadata, methods=["GET"]),
                Route(f"{prefix}/ready", self._ready, methods=["GET"]),
                Route(f"{prefix}/infer", self._paid(self._infer), methods=["GET", "POST"]),
                Route(f"{prefix}/diagnose", self._paid(self._diagnose), methods=["GET", "POST"]),
            ]
        app = Starlette(routes=routes, exception_handlers={HTTPException: refused, CallError: refused})
        app.router.redirect_slashes = False

        async def rooted(scope: Scope, receive: Receive, send: Send) -> None:
            # Stock clients ask for the bare prefix, without a slash, and follow no redirect.
            if scope["type"] == "http" and scope["path"] == scope.get("root_path", ""):
                scope = {**scope, "path": scope["path"] + "/"}
            await app(scope, receive, send)

        return rooted

    async def _metadata(self, request: Request) -> Response:
        self._check_version(request)
        facts = oip.metadata(self._name, self._dapp.version, self._dapp.inputs, self._dapp.outputs)
        return Response(orjson.dumps(facts), media_type="application/json")

    async def _ready(self, request: Request) -> Response:
        self._check_version(request)
        return Response(orjson.dumps({"name": self._name, "ready": True}), media_type="application/json")

    def _paid(self, work: Callable[[Asked, str], Any]) -> Callable[[Request], Any]:
        async def endpoint(request: Request) -> Response:
            headers = dict(request.headers.items())
            where = (request.method, request.scope["path"], _address(request), headers)
            try:
                self._check_version(request)
                if len(request.headers.getlist("payment-signature")) > 1:
                    raise CallError("bad_request", "one PAYMENT-SIGNATURE header a call")
                if len(request.headers.getlist("idempotency-key")) > 1:
                    raise CallError("invalid_key", "one Idempotency-Key header a call")
                checked = self._paywall.payment(headers)
            except (CallError, ChannelError) as error:
                # An early answer breaks stock clients: what is refused is read to its end, and none of it kept.
                async with self._body(request, keep=False):
                    reply = self._paywall.refused(Asked(*where, b""), error)
            else:
                refund = checked.payment.kind == "refund"
                async with self._body(request, keep=not refund) as body:
                    asked = Asked(*where, body, request.scope["query_string"])
                    if refund:
                        reply = await self._paywall.refund(asked, checked)
                    else:
                        reply = await self._paywall.serve(
                            asked, checked, lambda payer: self._in_time(work(asked, payer))
                        )
            return Response(reply.body, reply.status, dict(reply.headers))

        return endpoint

    async def _in_time(self, work: Any) -> Work:
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                done: Work = await work
                return done
        except TimeoutError as error:
            raise CallError("deadline", "the call took too long; it costs nothing") from error

    async def _infer(self, asked: Asked, payer: str) -> Work:
        dapp = self._dapp
        length = asked.headers.get(oip.HEADER_LENGTH)
        wanted = (asked.body, length, dapp.inputs, dapp.outputs, dapp.price.maximum_items)
        request = await off_loop(len(asked.body), oip.decode, *wanted)
        outputs = await self._batcher.submit(request.tensors, payer)
        answer = (self._name, dapp.version, request, outputs, dapp.outputs)
        size = sum(array.nbytes for array in outputs.values())
        body, headers = await off_loop(size, oip.encode, *answer)
        return Work(Reply(200, body, headers), request.items)

    async def _diagnose(self, asked: Asked, payer: str) -> Work:
        dapp = self._dapp
        view = read_view(asked)
        case = await asyncio.to_thread(read_case, asked)
        prepared = await asyncio.to_thread(dapp.prepare, case)
        # A case that a guideline alone answers has no items for the model; it counts as one, at a price of its own.
        alone, items = not prepared.items, max(1, len(prepared.items))
        if items > dapp.price.maximum_items:
            raise CallError("bad_request", f"the case holds more than {dapp.price.maximum_items} items")
        outputs = await self._submit(prepared.items, payer)
        report = replace(await asyncio.to_thread(dapp.conclude, prepared, outputs), provenance=self._provenance)
        if view != "png":
            return Work(await asyncio.to_thread(render, view, self._name, dapp, report, items), items, alone=alone)
        png = await asyncio.to_thread(dapp.picture, prepared, outputs, report)
        return Work(picture(png), items, kept=render("json", self._name, dapp, report, items), alone=alone)

    async def _submit(self, items: Sequence[Inputs], payer: str) -> list[Inputs]:
        """Each item is a submission of its own, so that a long case cannot push others' calls out of a batch."""
        tasks = [asyncio.create_task(self._batcher.submit(item, payer)) for item in items]
        try:
            return list(await asyncio.gather(*tasks))
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise

    def _check_version(self, request: Request) -> None:
        version = request.path_params.get("version")
        if version is not None and version != self._dapp.version:
            raise CallError("unknown_version", f"this model is served in version {self._dapp.version}")

    @asynccontextmanager
    async def _body(self, request: Request, keep: bool) -> AsyncIterator[bytes]:
        """The body, read to its end within bounds; empty if it is not to be kept.

        All bodies of a replica together are bounded too: a signature costs nothing, so many large calls of payers
        without a channel must not fill the memory of those who have one.
        """
        parts: list[bytes] = []
        try:
            await self._read(request, parts if keep else None)
            yield b"".join(parts)
        finally:
            self._kept_bytes -= sum(map(len, parts))

    async def _read(self, request: Request, parts: list[bytes] | None) -> None:
        limit, size, full = self._maximum_body_bytes, 0, False
        try:
            async with asyncio.timeout(DRAIN_TIMEOUT_S):
                async for part in request.stream():
                    size += len(part)
                    if size > limit * DRAIN_FACTOR:
                        break
                    full = full or self._kept_bytes + len(part) > limit * KEPT_BODIES
                    if parts is not None and size <= limit and not full:
                        parts.append(part)
                        self._kept_bytes += len(part)
        except TimeoutError as error:
            raise CallError("slow_body", f"the body took longer than {DRAIN_TIMEOUT_S:.0f} s to arrive") from error
        except ClientDisconnect as error:
            raise CallError("bad_request", "the body is shorter than it was announced") from error
        if size > limit:
            raise CallError("body_too_large", f"a body is at most {limit} bytes")
        if parts is not None and full:
            raise CallError("busy", "too much is being sent at once: try again shortly")


def _address(request: Request) -> str:
    """The URL of a call as its 402 names it: without the query, whose bytes may be anything, a patient's name too.

    Bounded, for it is sent back in a header, and a client sends it again in one.
    """
    url = str(URL(scope={**request.scope, "query_string": b""}))
    return url if len(url) <= URL_LIMIT else str(request.scope["path"])[:URL_LIMIT]


async def refused(request: Request, error: Exception) -> Response:
    """Any refusal outside a paid call, as `{"error": …}`."""
    if isinstance(error, HTTPException):
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "bad_request")
        status, message = error.status_code, code.replace("_", " ")
    else:
        status, code, message = describe(error)
    return Response(orjson.dumps({"error": message, "code": code}), status, media_type="application/json")
