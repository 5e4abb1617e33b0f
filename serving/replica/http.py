"""The HTTP door of one DApp: routes, body limits, compression, and the way to the paywall.

What a call does behind it is in `calls.py`: nothing of a body is looked at before its payment. Errors are always
`{"error": …}`, or stock clients cannot read them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.datastructures import URL
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import RedirectResponse
from starlette.responses import Response as HttpResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from channels.errors import ChannelError
from channels.metering import Checked
from channels.receipts import MAX_PARTS
from dapps import ChildFailed, DApp
from serving.catalogue import entry, metadata
from serving.errors import CallError
from serving.execution import Batcher, ChildCall, ChildCaller, ChildResult, RemoteExecutor, UnbatchedExecutor
from serving.protocol import BodyBudget, Request, Response, compression, cors, describe, refused, rest, run_in_thread
from serving.replica import user_config
from serving.replica.inference import Inference
from serving.replica.paywall import Paywall
from serving.replica.samples import Samples
from serving.telemetry import Statistics, tracing

log = logging.getLogger("leben.door")
WARM_S = 20.0
URL_LIMIT = 1024


class Door:
    """The ASGI application of one DApp, mounted at ``/v2/models/<name>``."""

    def __init__(
        self,
        name: str,
        dapp: DApp,
        paywall: Paywall,
        batcher: Batcher | UnbatchedExecutor | RemoteExecutor,
        maximum_body_bytes: int,
        statistics: Statistics | None = None,
        maximum_batch: int = 0,
        reach: ChildCaller | None = None,
    ) -> None:
        self._name, self._dapp = name, dapp
        self._paywall, self._batcher = paywall, batcher
        self._maximum_batch = maximum_batch or dapp.maximum_batch
        self._room = BodyBudget(maximum_body_bytes)
        self._inference = Inference(name, dapp, batcher, self._room, statistics, reach)
        self.samples = Samples(name, dapp, self._inference)

    def app(self) -> ASGIApp:
        """The routes; each stands with and without a version in the path."""
        routes: list[Route] = []
        methods = ["GET", "POST"]
        for prefix in ("", "/versions/{version}"):
            routes += [  # in the order in which they are tried
                Route(f"{prefix}/infer", self._paid(self._inference.infer), methods=methods),
                Route(prefix or "/", self._metadata, methods=["GET"]),
                Route(f"{prefix}/ready", self._ready, methods=["GET"]),
                Route(f"{prefix}/config", self._config, methods=["GET"]),
                Route(f"{prefix}/stats", self._stats, methods=["GET"]),
                Route(f"{prefix}/docs", self._docs, methods=["GET"]),
                Route(f"{prefix}/diagnose", self._paid(self._inference.diagnose), methods=methods),
            ]
        handlers: Any = {HTTPException: refused, CallError: refused}
        app = Starlette(routes=routes, middleware=[cors()], exception_handlers=handlers)
        app.router.redirect_slashes = False

        async def rooted(scope: Scope, receive: Receive, send: Send) -> None:
            # Stock clients ask for the bare prefix, without a slash, and follow no redirect.
            if scope["type"] == "http" and scope["path"] == scope.get("root_path", ""):
                scope = {**scope, "path": scope["path"] + "/"}
            await app(scope, receive, send)

        return rooted

    async def grpc(self, headers: dict[str, str], body: bytes, version: str) -> Response:
        """A call that came through the gRPC door: its metadata as headers, its message as it was."""
        path = f"/v2/models/{self._name}/infer"
        asked = Request("GRPC", path, f"grpc:{path}", headers, body)
        try:
            self._check_version(version or None)
            checked = self._paywall.payment(headers)
            self._admit(path, checked)
        except (CallError, ChannelError) as error:
            return self._paywall.refused(asked, error)
        if checked is not None and checked.payment.kind == "refund":
            refund = await self._paywall.refund(asked, checked)
            return refund if refund.status != 200 else Response(200, b"", refund.headers)
        with tracing.call(headers, "ModelInfer"):
            reply = await self._paywall.serve(asked, checked, lambda payer: self._inference.infer_grpc(asked, payer))
            tracing.fact("status", reply.status)
            return reply

    def renew(self, maximum_batch: int) -> None:
        """After a change of the DApp, while the paywall's gate is closed: tells nothing of before it."""
        self._maximum_batch = maximum_batch
        self._inference.renew()
        self.samples.forget()

    async def warm(self) -> None:
        """Answers the example of a DApp that asks others; that these do not answer yet is no reason not to start."""
        example, most = self._dapp.example(), self._dapp.price.max_price
        try:
            await self._inference.errand(ChildCall(example, "start-up", (), most, MAX_PARTS + 1, WARM_S))
        except ChildFailed as error:
            log.warning("%s starts without an answer to its example: %s", self._name, error.code)

    async def errand(self, errand: ChildCall) -> ChildResult | tuple[str, str]:
        """What another DApp asks within the call of its own payer; a refusal is (code, message), and costs nothing."""
        try:
            async with self._paywall.gate:
                outputs, work = await self._inference.errand(errand)
                units = self._dapp.price.units(work.items, work.device_us)
                size = sum(array.nbytes for array in (*errand.inputs.values(), *outputs.values()))
                parts = await run_in_thread(size, self._paywall.part, errand, outputs, units, work.parts)
            return ChildResult(outputs, parts)
        except ChildFailed as error:
            return error.code, error.message
        except Exception as error:
            _, code, message = describe(error)
            return code, message

    async def facts(self, what: str, version: str) -> dict[str, Any]:
        """Metadata, configuration or statistics, as JSON.

        Raises:
            CallError: `unknown_version`.
        """
        self._check_version(version or None)
        if what == "config":
            return metadata.config(self._name, self._dapp, self._maximum_batch)
        if what == "stats":
            return {"model_stats": [await self._inference.statistics.read(self._name, self._dapp.version)]}
        if what == "offer":
            return entry.offer(self._dapp)
        return metadata.metadata(self._name, self._dapp)

    async def _metadata(self, request: HttpRequest) -> HttpResponse:
        return await self._told("metadata", request)

    async def _config(self, request: HttpRequest) -> HttpResponse:
        return await self._told("config", request)

    async def _stats(self, request: HttpRequest) -> HttpResponse:
        return await self._told("stats", request)

    async def _docs(self, request: HttpRequest) -> HttpResponse:
        self._check_version(request.path_params.get("version"))
        return RedirectResponse(user_config.page(self._name))

    async def _told(self, what: str, request: HttpRequest) -> HttpResponse:
        facts = await self.facts(what, request.path_params.get("version", ""))
        return HttpResponse(orjson.dumps(facts), media_type="application/json")

    async def _ready(self, request: HttpRequest) -> HttpResponse:
        self._check_version(request.path_params.get("version"))
        return HttpResponse(orjson.dumps({"name": self._name, "ready": True}), media_type="application/json")

    def _paid(self, work: Callable[[Request, str], Any]) -> Callable[[HttpRequest], Any]:
        async def endpoint(request: HttpRequest) -> HttpResponse:
            if request.method != "POST" and self._paywall.free:
                # What costs nothing has no quote to get.
                raise HTTPException(405, headers={"Allow": "POST"})
            headers = dict(request.headers.items())
            where = (request.method, request.scope["path"], _address(request), headers)
            try:
                self._check_version(request.path_params.get("version"))
                if len(request.headers.getlist("payment-signature")) > 1:
                    raise CallError("bad_request", "one PAYMENT-SIGNATURE header a call")
                if len(request.headers.getlist("idempotency-key")) > 1:
                    raise CallError("invalid_key", "one Idempotency-Key header a call")
                checked = self._paywall.payment(headers)
                self._admit(request.scope["path"], checked)
            except (CallError, ChannelError) as error:
                # An early answer breaks stock clients: what is refused is read to its end, and none of it kept.
                async with self._room.body(request, keep=False):
                    reply = self._paywall.refused(Request(*where, b""), error)
            else:
                refund = checked if checked is not None and checked.payment.kind == "refund" else None
                async with self._room.body(request, keep=refund is None) as body:
                    asked = Request(*where, body, request.scope["query_string"])
                    if refund is not None:
                        reply = await self._paywall.refund(asked, refund)
                    else:
                        reply = await self._paywall.serve(asked, checked, lambda payer: work(asked, payer))
            return await self._answer(Request(*where, b""), reply)

        async def traced(request: HttpRequest) -> HttpResponse:
            with tracing.call(request.headers, request.scope["path"].rpartition("/")[2]):
                response = await endpoint(request)
                tracing.fact("status", response.status_code)
                return response

        return traced

    async def _answer(self, asked: Request, reply: Response) -> HttpResponse:
        """The reply, compressed if the caller wants it; what is stored and signed for is always the plain one."""
        body, headers = reply.body, dict(reply.headers)
        binary = rest.HEADER_LENGTH in headers
        coding = compression.chosen(asked.headers.get("accept-encoding", ""), binary)
        if coding and reply.status == 200 and len(body) >= compression.SMALL_BYTES:
            body = await run_in_thread(len(body) * 8, compression.deflate, body, coding)
            headers |= {"content-encoding": coding, "vary": "accept-encoding"}
        return HttpResponse(body, reply.status, headers)

    def _admit(self, path: str, checked: Checked | None) -> None:
        """Refuses a call that its payer's place in a full queue has no room for, before a hold is taken for it.

        A name of a payer is easily forged: whoever does so is refused in its place, and nobody else is. A refund needs
        no device, nor does a record that a guideline alone answers.

        Raises:
            CallError: `queue_full`.
        """
        if path.endswith("/infer") and (checked is None or checked.payment.kind != "refund"):
            self._batcher.admit(checked.payment.config.payer if checked else "")

    def _check_version(self, version: str | None) -> None:
        if version is not None and version != self._dapp.version:
            raise CallError("unknown_version", f"this model is served in version {self._dapp.version}")


def _address(request: HttpRequest) -> str:
    """The URL of a call as its 402 names it: without the query, whose bytes may be anything, a patient's name too."""
    scope = request.scope
    return _url(
        scope.get("scheme", "http"), tuple(scope.get("server") or ()), request.headers.get("host"), scope["path"]
    )


@lru_cache(maxsize=64)
def _url(scheme: str, server: tuple[Any, ...], host: str | None, path: str) -> str:
    """Bounded, for it is sent back in a header, and a client sends it again in one."""
    headers = [] if host is None else [(b"host", host.encode("latin-1"))]
    scope = {"scheme": scheme, "server": server or None, "path": path, "query_string": b"", "headers": headers}
    url = str(URL(scope=scope))
    return url if len(url) <= URL_LIMIT else path[:URL_LIMIT]
