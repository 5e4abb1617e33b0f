"""Answers the HTTP routes of one DApp, and the calls that gRPC and other DApps bring by handle.

Nothing of a body is decoded before its payment; `inference` does what follows. Errors are always `{"error": …}`, or
stock clients cannot read them.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import Any

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
from dapps import ChildFailed
from serving.catalogue import entry, metadata
from serving.errors import CallError
from serving.execution import OWN_PAYERS, START_PAYER, ChildCall, ChildCaller, ChildResult, Queue
from serving.protocol import (
    BodyBudget,
    Request,
    Response,
    compression,
    cors,
    describe,
    json_response,
    refused,
    rest,
    run_in_thread,
)
from serving.replica import user_config
from serving.replica.inference import Inference
from serving.replica.paywall import Paywall, Work
from serving.replica.samples import Samples
from serving.telemetry import CallRecord, tracing

log = logging.getLogger("leben.door")
WARM_S = 20.0
MAX_URL = 1024
SMALL_BODY_BYTES = 64 << 10
"""A longer body is kept only after its channel has been looked up."""
METHODS = ["GET", "POST"]
JsonObject = dict[str, Any]


class Door:
    """The ASGI application of one DApp, mounted at ``/v2/models/<name>``.

    Args:
        paywall: charges the calls.
        queue: where tensors are computed.
        maximum_body_bytes: the longest body.
        children: carries this DApp's own calls to others; needed if it declares `calls`.
        remote: True if the queue pays another mesh.
    """

    def __init__(
        self,
        paywall: Paywall,
        queue: Queue,
        *,
        maximum_body_bytes: int,
        children: ChildCaller | None = None,
        remote: bool = False,
    ) -> None:
        self._paywall, self._queue = paywall, queue
        self._live, self._statistics = paywall.live, paywall.statistics
        self._dapp, self._name = self._live.offer.dapp, self._live.offer.name
        self.bodies = BodyBudget(maximum_body_bytes)
        self.inference = Inference(self._dapp, queue, self.bodies, children=children, remote=remote)
        self.samples = Samples(self._live, self.inference, self._statistics)

    def app(self) -> ASGIApp:
        """The routes; each stands with and without a version in the path."""
        routes: list[Route] = []
        for prefix in ("", "/versions/{version}"):
            routes += [  # in the order in which they are tried
                Route(f"{prefix}/infer", self._paid("infer", self.inference.infer), methods=METHODS),
                Route(prefix or "/", self._facts("metadata"), methods=["GET"]),
                Route(f"{prefix}/ready", self._ready, methods=["GET"]),
                Route(f"{prefix}/config", self._facts("config"), methods=["GET"]),
                Route(f"{prefix}/stats", self._facts("stats"), methods=["GET"]),
                Route(f"{prefix}/docs", self._docs, methods=["GET"]),
                Route(f"{prefix}/diagnose", self._paid("diagnose", self.inference.diagnose), methods=METHODS),
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

    async def grpc(self, headers: dict[str, str], body: bytes, version: str, record: CallRecord) -> Response:
        """Answers a call that the gRPC server brings: its metadata as headers, its message as body."""
        path = f"/v2/models/{self._name}/infer"
        request = Request("GRPC", path, f"grpc:{path}", headers, body=body)
        try:
            self._check_version(version or None)
            checked = self._paywall.payment(headers)
            self._admit(path, checked)
        except (CallError, ChannelError) as error:
            return self._paywall.refused(request, error, record)
        if checked is not None and checked.payment.kind == "refund":
            refund = await self._paywall.refund(request, checked, record)
            return refund if refund.status != 200 else Response(200, b"", refund.headers)
        status = 0
        with tracing.call(headers, "ModelInfer"):
            try:
                response = await self._paywall.serve(request, checked, self.inference.infer_grpc, record)
                status = response.status
                return response
            finally:
                tracing.finish(record, status)

    async def warm(self) -> None:
        """Answers the example of a DApp that calls others; it may start although these do not answer yet."""
        example, maximum = self._dapp.example(), self._live.offer.price.max_price
        try:
            await self.child_call(ChildCall(example, START_PAYER, (), maximum, MAX_PARTS + 1, WARM_S))
        except ChildFailed as error:
            log.warning("%s starts without an answer to its example: %s", self._name, error.code)

    async def child_call(self, call: ChildCall) -> ChildResult:
        """Answers another DApp's call, which that one's own payer pays for.

        Raises:
            ChildFailed: with the code of the refusal; the call costs nothing.
        """
        record = CallRecord("child")
        try:
            async with self._live.lock:
                offer = self._live.offer
                outputs, result = await self.inference.child(call, offer, record)
                units = offer.price.units(result.items, result.device_us)
                size = sum(array.nbytes for array in (*call.inputs.values(), *outputs.values()))

                def parts() -> ChildResult:
                    own = self._paywall.receipts.parts(offer, call, outputs, units=units, parts=result.parts)
                    return ChildResult(outputs, own)

                return await run_in_thread(size, parts)
        except ChildFailed:
            raise
        except Exception as error:
            _, code, message = describe(error)
            raise ChildFailed(code, message) from error
        finally:
            if call.payer not in OWN_PAYERS:
                self._statistics.finished(record)

    async def facts(self, what: str, version: str) -> JsonObject:
        """Metadata, configuration, statistics or offer, as JSON.

        Raises:
            CallError: `unknown_version`, or `busy`: the store that holds the statistics does not answer.
        """
        self._check_version(version or None)
        if what == "config":
            return metadata.config(self._name, self._dapp, self._live.offer.maximum_batch)
        if what == "stats":
            return {"model_stats": [await self._statistics.read(self._name, self._dapp.version)]}
        if what == "offer":
            return entry.offer(self._dapp)
        return metadata.metadata(self._name, self._dapp)

    def _facts(self, what: str) -> Callable[[HttpRequest], Awaitable[HttpResponse]]:
        async def endpoint(http: HttpRequest) -> HttpResponse:
            return json_response(await self.facts(what, http.path_params.get("version", "")))

        return endpoint

    async def _docs(self, http: HttpRequest) -> HttpResponse:
        self._check_version(http.path_params.get("version"))
        return RedirectResponse(user_config.page(self._name))

    async def _ready(self, http: HttpRequest) -> HttpResponse:
        self._check_version(http.path_params.get("version"))
        return json_response({"name": self._name, "ready": True})

    def _paid(self, route: str, work: Work) -> Callable[[HttpRequest], Awaitable[HttpResponse]]:
        async def endpoint(http: HttpRequest) -> HttpResponse:
            record = http.scope.get("state", {}).get("call") or CallRecord(route)
            status = 0
            with tracing.call(http.headers, route):
                try:
                    response = await self._call(http, work, record)
                    status = response.status_code
                    return response
                finally:
                    tracing.finish(record, status)

        return endpoint

    async def _call(self, http: HttpRequest, work: Work, record: CallRecord) -> HttpResponse:
        if http.method != "POST" and self._live.offer.free:
            raise HTTPException(405, headers={"Allow": "POST"})  # a call that costs nothing has no quote to get
        scope, headers = http.scope, dict(http.headers.items())
        request = Request(http.method, scope["path"], _address(http), headers, query=scope["query_string"])
        try:
            self._check_version(http.path_params.get("version"))
            _refuse_repeated(http)
            checked = self._paywall.payment(headers)
            self._admit(request.path, checked)
            funded = await self._funded(http, checked)
        except (CallError, ChannelError) as error:
            # A response before the body's end breaks stock clients: the body is read to its end, and not kept. A caller
            # that waits for leave to send has sent nothing yet, and gets its answer in place of the leave.
            if http.headers.get("expect", "").lower() == "100-continue":
                answer = await self._answer(request, self._paywall.refused(request, error, record))
                answer.headers["connection"] = "close"  # or what it sends next could be read as the body
                return answer
            async with self.bodies.body(http, keep=False):
                return await self._answer(request, self._paywall.refused(request, error, record))
        if checked is not None and checked.payment.kind == "refund":
            async with self.bodies.body(http, keep=False):
                return await self._answer(request, await self._paywall.refund(request, checked, record))
        async with self.bodies.body(http, keep=True, funded=funded) as body:
            request.body = body
            response = await self._paywall.serve(request, checked, work, record)
        return await self._answer(request, response)

    async def _answer(self, request: Request, response: Response) -> HttpResponse:
        """The response, compressed if the caller accepts it; what is stored and signed for is always the plain one."""
        body, headers = response.body, dict(response.headers)
        if response.status == 200 and len(body) >= compression.SMALL_BYTES:
            binary = rest.HEADER_LENGTH in headers
            coding = compression.chosen(request.headers.get("accept-encoding", ""), binary)
            if coding:
                body = await run_in_thread(len(body) * 8, compression.deflate, body, coding)
                headers |= {"content-encoding": coding, "vary": "accept-encoding"}
        return HttpResponse(body, response.status, headers)

    def _admit(self, path: str, checked: Checked | None) -> None:
        """Refuses a call that its payer's place in a full queue has no room for, before a hold is taken for it.

        A payer's name is easily forged: the forger is refused in that payer's place, and no one else is. Neither a
        refund nor a record that a guideline alone answers needs the device.

        Raises:
            CallError: `queue_full`.
        """
        if path.endswith("/infer") and (checked is None or checked.payment.kind != "refund"):
            self._queue.admit(checked.payment.config.payer if checked else "")

    async def _funded(self, http: HttpRequest, checked: Checked | None) -> bool:
        """False if a large body comes with a channel that has no money yet: it is kept in a smaller room.

        A voucher costs nothing to sign. Vouchers of channels that do not exist would fill the room of those who pay.

        Raises:
            PaymentRefused: there is no such channel.
            NotReady: the store cannot answer now.
        """
        length = http.headers.get("content-length", "")
        small = length.isascii() and length.isdigit() and len(length) < 12 and int(length) <= SMALL_BODY_BYTES
        if checked is None or small or checked.payment.kind == "refund":
            return True
        return await self._paywall.funded(checked)

    def _check_version(self, version: str | None) -> None:
        if version is not None and version != self._dapp.version:
            raise CallError("unknown_version", f"this model is served in version {self._dapp.version}")


def _refuse_repeated(http: HttpRequest) -> None:
    if len(http.headers.getlist("payment-signature")) > 1:
        raise CallError("bad_request", "one PAYMENT-SIGNATURE header a call")
    if len(http.headers.getlist("idempotency-key")) > 1:
        raise CallError("invalid_key", "one Idempotency-Key header a call")


def _address(http: HttpRequest) -> str:
    """The URL of a call as its 402 names it: without the query, whose bytes may be a patient's name."""
    scope = http.scope
    return _url(scope.get("scheme", "http"), tuple(scope.get("server") or ()), http.headers.get("host"), scope["path"])


@lru_cache(maxsize=64)
def _url(scheme: str, server: tuple[Any, ...], host: str | None, path: str) -> str:
    """Bounded: it is sent in a header, and a client sends it back in one."""
    headers = [] if host is None else [(b"host", host.encode("latin-1"))]
    scope = {"scheme": scheme, "server": server or None, "path": path, "query_string": b"", "headers": headers}
    url = str(URL(scope=scope))
    return url if len(url) <= MAX_URL else path[:MAX_URL]
