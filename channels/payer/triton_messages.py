"""Translates between tritonclient's messages and the payment flow's. Never imports tritonclient."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx

SENT_HEADERS = ("payment-signature", "idempotency-key")
RECEIVED_HEADERS = ("payment-required", "payment-response", "leben-receipt")
LOST = {"ServerDisconnectedError", "ClientPayloadError", "HTTPParseError"}
"""Errors of aiohttp and geventhttpclient, neither of which is imported here, for a connection that ended early."""
Headers = Mapping[str, str]
"""Headers, or metadata, that a call carries beside the client's own."""


class BackgroundRpc:
    """The stub's method as the stock client uses it: a direct call, and `future` for a call in the background."""

    def __init__(self, paid_infer: Callable[..., Any], threads: ThreadPoolExecutor) -> None:
        self._paid_infer, self._threads = paid_infer, threads

    def __call__(self, request: Any, **options: Any) -> Any:
        """The call, answered before it returns."""
        return self._paid_infer(request, **options)

    def future(self, request: Any, **options: Any) -> Future[Any]:
        """The call in the background."""
        return self._threads.submit(self._paid_infer, request, **options)


@dataclass(frozen=True, slots=True)
class ReadRefusal:
    """A refusal of geventhttpclient whose body was read here; the stock client reads it once more."""

    status_code: int
    body: bytes

    def get(self, name: str) -> None:
        """No header: the flow has read them."""

    def read(self, length: int = -1) -> bytes:
        """The whole body, whatever the length."""
        return self.body


def for_infer(paid_post: Callable[..., Any], post: Callable[..., Any]) -> Callable[..., Any]:
    """A `_post` that pays for infer calls alone: nothing is signed for any other."""

    def choose(request_uri: str, request_body: Any = None, headers: Any = None, query_params: Any = None) -> Any:
        chosen = paid_post if request_uri.endswith("/infer") else post
        return chosen(request_uri, request_body, headers, query_params)

    return choose


def is_lost(error: Exception) -> bool:
    """True if no answer came, for a cause that may pass; a call whose time has passed is not sent again."""
    if isinstance(error, TimeoutError):
        return False
    status = getattr(error, "code", None)  # of grpc.RpcError
    if callable(status):
        return bool(status().name == "UNAVAILABLE")
    return isinstance(error, OSError) or bool(LOST & {kind.__name__ for kind in type(error).__mro__})


def raised(answer: Any) -> Any:
    """The answer; raises one that is an exception."""
    if isinstance(answer, Exception):
        raise answer
    return answer


def request_of(url: httpx.URL, headers: Any) -> httpx.Request:
    """The call as the flow reads it: its URL, and the payment that the caller has set by hand."""
    lowered = {str(name).lower(): str(value) for name, value in (headers or {}).items()}
    return httpx.Request("POST", url, headers={name: lowered[name] for name in SENT_HEADERS if name in lowered})


def payment_of(request: httpx.Request) -> Headers:
    """The headers of a step that are sent with the call."""
    return {name: request.headers[name] for name in SENT_HEADERS if name in request.headers}


def merged(own: Any, payment: Headers) -> dict[str, str]:
    """The client's own headers and those of the payment, which take the place of the same names."""
    return {name: value for name, value in (own or {}).items() if name.lower() not in payment} | dict(payment)


def metadata_of(own: Any, payment: Headers) -> tuple[tuple[str, str], ...]:
    """As `merged`, for gRPC."""
    return tuple(merged(dict(own or ()), payment).items())


def grpc_url(request: Any) -> httpx.URL:
    """Stands for the route of a gRPC call: the flow remembers quotes and finds a DApp's budget by URL."""
    return httpx.URL(f"grpc://mesh/v2/models/{request.model_name}/infer")


def received_of(metadata: Iterable[tuple[str, Any]] | None) -> dict[str, str]:
    """What the flow reads of the metadata of an answer."""
    return {name: str(value) for name, value in metadata or () if name in RECEIVED_HEADERS}


def response_of(url: httpx.URL, status: int, headers: Mapping[str, str], body: bytes = b"") -> httpx.Response:
    """An answer as the flow reads it."""
    return httpx.Response(status, headers=headers, content=body, request=httpx.Request("POST", url))


def grpc_refusal(url: httpx.URL, error: Any) -> httpx.Response:
    """A refusal as it would come over HTTP; re-raises an error that the mesh did not send.

    A call that was cut off may have been charged: it stays covered by what was signed, as over HTTP.
    """
    metadata: Any = getattr(error, "trailing_metadata", tuple)() or ()
    status, _, code = str(dict(metadata).get("leben-error", "")).partition(" ")
    if not status.isdigit():
        raise error
    return response_of(url, int(status), received_of(metadata), json.dumps({"code": code}).encode())
