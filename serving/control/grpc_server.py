"""Serves the Open Inference Protocol V2 over gRPC: `inference.GRPCInferenceService`, in the control application.

A call goes to a replica of its DApp by handle, undecoded, and meets the same paywall there as an HTTP call. Payment
travels in metadata: `payment-signature` and `idempotency-key` in the request; `payment-required`, `payment-response`
and `leben-receipt` trailing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn

import grpc
import orjson
from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2 as v2

from serving.control import grpc_health
from serving.control.grpc_receive import MessageReceiver
from serving.control.models import Models
from serving.errors import CallError
from serving.protocol import CALL_TIMEOUT_S, BodyBudget, Response, describe
from serving.protocol import grpc as v2_grpc

SERVICE = "inference.GRPCInferenceService"
CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    402: grpc.StatusCode.FAILED_PRECONDITION,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    409: grpc.StatusCode.ABORTED,
    410: grpc.StatusCode.FAILED_PRECONDITION,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
"""gRPC's status for each HTTP status; the trailing metadata `leben-error` carries our HTTP status and our code."""
REQUEST_METADATA = ("payment-signature", "idempotency-key")
TRAILING_METADATA = ("payment-required", "payment-response", "leben-receipt", "leben-inner-receipts", "retry-after")
MAX_CALLS = 256
IDLE_MS = 300_000
"""A connection without a call is closed after this time; a client opens it again by itself."""
MAX_SMALL_BYTES = 64 << 10
"""The longest message without tensors, as over HTTP: it is parsed unpaid."""
MAX_METADATA_BYTES = 32 << 10
MIN_PING_INTERVAL_MS = 1_000
MAX_PING_STRIKES = 2
"""A connection that pings oftener than that, three times without data, is a flood and is ended."""
FRAMING_BYTES = 1 << 20
"""Room for names, shapes and parameters beside a body of the largest size."""


class GrpcServer:
    """The service and the server that it runs in.

    Args:
        server: name, version and extensions of this server.
        models: the DApps.
        ready: returns whether paid calls can be taken.
        maximum_body_bytes: longest message.
        receiver: receives the messages.
    """

    def __init__(
        self,
        server: dict[str, Any],
        models: Models,
        ready: Callable[[], Awaitable[bool]],
        maximum_body_bytes: int,
        receiver: MessageReceiver | None = None,
    ) -> None:
        self._facts, self._models, self._ready = server, models, ready
        self._bodies = BodyBudget(maximum_body_bytes)
        self._receiver = receiver or MessageReceiver()
        self._server: Any = None

    async def start(self, address: str) -> None:
        """Starts to listen on an address, `HOST:PORT`.

        Raises:
            RuntimeError: the port is in use.
        """
        longest = min(self._bodies.maximum_body_bytes + FRAMING_BYTES, 2**31 - 1)
        options = [
            ("grpc.max_receive_message_length", longest),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_connection_idle_ms", IDLE_MS),
            ("grpc.max_metadata_size", MAX_METADATA_BYTES),
            ("grpc.absolute_max_metadata_size", 2 * MAX_METADATA_BYTES),
            # By default a server ends a connection at its third ping within five minutes without data, and with it a
            # call of a minute whose client pings each 10 s. No option limits a connection's age.
            ("grpc.http2.min_ping_interval_without_data_ms", MIN_PING_INTERVAL_MS),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_ping_strikes", MAX_PING_STRIKES),
        ]
        self._server = grpc.aio.server(options=options, maximum_concurrent_rpcs=MAX_CALLS)
        self._server.add_generic_rpc_handlers((self._handlers(), grpc_health.handlers(SERVICE, self._ready)))
        self._server.add_insecure_port(address)
        await self._server.start()

    async def stop(self, grace_s: float = CALL_TIMEOUT_S) -> None:
        """Takes no more calls, and cancels those that still run after `grace_s`."""
        if self._server is not None:
            await self._server.stop(grace_s)

    def _handlers(self) -> Any:
        small: dict[str, tuple[Any, Callable[[Any], Awaitable[Any]]]] = {
            "ServerLive": (v2.ServerLiveRequest, self._live),
            "ServerReady": (v2.ServerReadyRequest, self._server_ready),
            "ServerMetadata": (v2.ServerMetadataRequest, self._metadata),
            "ModelReady": (v2.ModelReadyRequest, self._model_ready),
            "ModelMetadata": (v2.ModelMetadataRequest, self._model_metadata),
            "ModelConfig": (v2.ModelConfigRequest, self._model_config),
            "ModelStatistics": (v2.ModelStatisticsRequest, self._model_statistics),
            "RepositoryIndex": (v2.RepositoryIndexRequest, self._index),
            "RepositoryModelLoad": (v2.RepositoryModelLoadRequest, self._load),
            "RepositoryModelUnload": (v2.RepositoryModelUnloadRequest, self._unload),
        }
        calls = {name: _small(*call) for name, call in small.items()} | {"ModelInfer": self._infer}
        # On the wire the same as unary-unary, but here we receive the message ourselves, within bounds.
        handlers = {name: grpc.stream_unary_rpc_method_handler(self._received(call)) for name, call in calls.items()}
        return grpc.method_handlers_generic_handler(SERVICE, handlers)

    def _received(self, call: Callable[[bytes, Any], Awaitable[bytes]]) -> Callable[[Any, Any], Awaitable[bytes]]:
        async def handler(messages: AsyncIterator[bytes], context: Any) -> bytes:
            try:
                body = await self._receiver.message(messages, context.peer().rpartition(":")[0])
            except CallError as error:
                await _refuse(context, error)
            return await call(body, context)

        return handler

    async def _infer(self, body: bytes, context: Any) -> bytes:
        if not self._bodies.fits(len(body)):
            await _refuse(context, CallError("busy", "too much is being sent at once: try again shortly"))
        self._bodies.kept_bytes += len(body)
        try:
            response = await self._answer(body, context)
        except CallError as error:
            await _refuse(context, error)
        finally:
            self._bodies.kept_bytes -= len(body)
        trailing = [(name, response.headers[name]) for name in TRAILING_METADATA if name in response.headers]
        if response.status != 200:
            refusal = orjson.loads(response.body)
            await _abort(context, response.status, refusal["code"], refusal["error"], trailing)
        context.set_trailing_metadata(tuple(trailing))
        return response.body

    async def _answer(self, body: bytes, context: Any) -> Response:
        model, version = v2_grpc.model_of(body)
        headers: dict[str, str] = {}
        for name, value in context.invocation_metadata() or ():
            if name in REQUEST_METADATA:
                if name in headers:
                    raise CallError("bad_request", f"one {name} a call")
                headers[name] = value
        replica = await self._models.replica(model, version)
        # A caller that hangs up cancels this task, and with it the call on the replica.
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S + 10):
                response: Response = await replica.grpc.remote(headers, body, version)
                return response
        except TimeoutError as error:
            raise CallError("outcome_unknown", "no replica answered in time: repeat the call with its key") from error
        except Exception as error:
            lost = "the replica was lost while it answered: repeat the call with its key, if it has one"
            raise CallError("outcome_unknown", lost) from error

    async def _live(self, request: Any) -> Any:
        return v2.ServerLiveResponse(live=True)

    async def _server_ready(self, request: Any) -> Any:
        return v2.ServerReadyResponse(ready=await self._ready())

    async def _metadata(self, request: Any) -> Any:
        return ParseDict(self._facts, v2.ServerMetadataResponse())

    async def _model_ready(self, request: Any) -> Any:
        return v2.ModelReadyResponse(ready=await self._models.ready(request.name, request.version))

    async def _model_metadata(self, request: Any) -> Any:
        facts = await self._models.facts(request.name, "metadata", request.version)
        return ParseDict(facts, v2.ModelMetadataResponse())

    async def _model_config(self, request: Any) -> Any:
        facts = await self._models.facts(request.name, "config", request.version)
        return ParseDict({"config": facts}, v2.ModelConfigResponse())

    async def _model_statistics(self, request: Any) -> Any:
        return ParseDict(await self._models.statistics(request.name, request.version), v2.ModelStatisticsResponse())

    async def _index(self, request: Any) -> Any:
        return ParseDict(
            {"models": [row.model_dump() for row in await self._models.index(request.ready)]},
            v2.RepositoryIndexResponse(),
        )

    async def _load(self, request: Any) -> Any:
        parameters = {
            name: getattr(value, value.WhichOneof("parameter_choice") or "", "")
            for name, value in request.parameters.items()
        }
        await self._models.load(request.model_name, parameters)
        return v2.RepositoryModelLoadResponse()

    async def _unload(self, request: Any) -> Any:
        await self._models.unload(request.model_name)
        return v2.RepositoryModelUnloadResponse()


def _small(kind: Any, answer: Callable[[Any], Awaitable[Any]]) -> Callable[[bytes, Any], Awaitable[bytes]]:
    """A call without tensors; a message that does not parse is refused as the caller's error."""

    async def handler(body: bytes, context: Any) -> bytes:
        if len(body) > MAX_SMALL_BYTES:
            await _refuse(context, CallError("body_too_large", f"this message is at most {MAX_SMALL_BYTES} bytes"))
        try:
            request = kind.FromString(body)
        except DecodeError:
            await _refuse(context, CallError("bad_request", "the message cannot be read"))
        try:
            return bytes((await answer(request)).SerializeToString())
        except CallError as error:
            await _refuse(context, error)

    return handler


async def _refuse(context: Any, error: CallError) -> NoReturn:
    status, code, message = describe(error)
    await _abort(context, status, code, message, [])


async def _abort(context: Any, status: int, code: str, message: str, trailing: list[tuple[str, str]]) -> NoReturn:
    kind = CODES.get(status, grpc.StatusCode.UNKNOWN)
    await context.abort(kind, message, (*trailing, ("leben-error", f"{status} {code}")))
    raise RuntimeError("an aborted call goes no further")
