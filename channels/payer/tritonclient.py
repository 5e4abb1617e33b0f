"""Makes an unmodified `tritonclient` pay, over HTTP and gRPC, with and without an event loop.

    client = InferenceServerClient("127.0.0.1:8700")
    TritonPayment(wallet).attach(client)

Carries the infer calls of the stock client through the steps of `flow.py`. The client's own plugins cannot pay: they
see neither the model's name nor any response. Never imports tritonclient.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from typing import Any

import httpx

from channels.payer.channel import Turn
from channels.payer.flow import PaymentFlow, receipt, refusal_code
from channels.payer.repeat import PAUSE_S, Repeats, is_paid
from channels.payer.wallet import Wallet
from channels.receipts import SignedReceipt

SENT_HEADERS = ("payment-signature", "idempotency-key")
RECEIVED_HEADERS = ("payment-required", "payment-response", "leben-receipt")
LOST = {"ServerDisconnectedError", "ClientPayloadError", "HTTPParseError"}
"""Errors of aiohttp and geventhttpclient, neither of which is imported here, for a connection that ended early."""
TURN_PAUSE_S = 0.005
MAX_RECEIPTS = 1_000
Headers = Mapping[str, str]
"""Headers, or metadata, that a call carries beside the client's own."""
Exchange = tuple[Any, httpx.Response]
"""What the stock client gets back, and the same as the flow reads it."""


class TritonPayment:
    """Pays for the infer calls of stock clients.

    One object serves several clients of one kind (with an event loop, or without one), which then share channels.
    Clients without an event loop may be used from several threads, as far as they allow it themselves.

    Args:
        wallet: who pays.
        flow: the payer's channels, for instance those of a `ChannelAuth`; new ones by default.
        on_receipt: called with each receipt, in the context of the call that it is for.

    Attributes:
        receipts: the signed receipts of the latest calls, oldest first, 1000 at most.

    Raises:
        BudgetExceeded, DishonestServer: out of `infer`, see `ChannelAuth`.
    """

    def __init__(
        self,
        wallet: Wallet,
        flow: PaymentFlow | None = None,
        on_receipt: Callable[[SignedReceipt], None] = lambda signed: None,
    ) -> None:
        self.flow = flow or PaymentFlow(wallet)
        self.receipts: list[SignedReceipt] = []
        self._on_receipt = on_receipt

    def attach(self, client: Any) -> Any:
        """Makes a client pay from now on, and returns it.

        Args:
            client: an `InferenceServerClient` of `tritonclient.http`, `.http.aio`, `.grpc` or `.grpc.aio`.

        Raises:
            TypeError: it is none of these.
        """
        attach_by_module = {
            "tritonclient.http._client": self._attach_http,
            "tritonclient.http.aio": self._attach_http_aio,
            "tritonclient.grpc._client": self._attach_grpc,
            "tritonclient.grpc.aio": self._attach_grpc_aio,
        }
        for kind in type(client).__mro__:
            if kind.__module__ in attach_by_module:
                attach_by_module[kind.__module__](client)
                return client
        raise TypeError("attach takes an InferenceServerClient of tritonclient.http, .http.aio, .grpc or .grpc.aio")

    def _attach_http(self, client: Any) -> None:
        import gevent

        post = client._post
        address = f"http://{client._parsed_url.host}:{client._parsed_url.port}{client._base_uri}"

        def paid_post(uri: str, body: Any, headers: Any, query: Any) -> Any:
            url = httpx.URL(f"{address}/{uri}")

            def send(payment: Headers) -> Exchange:
                answer = post(uri, body, _merged(headers, payment), query)
                received = {name: str(answer.get(name)) for name in RECEIVED_HEADERS if answer.get(name) is not None}
                if answer.status_code == 200:
                    return answer, _response(url, 200, received)
                refusal = _Refusal(answer.status_code, bytes(answer.read()))
                return refusal, _response(url, refusal.status_code, received, refusal.body)

            return self._pay(url, headers, send, gevent.sleep, Repeats())

        client._post = _for_infer(paid_post, post)

    def _attach_http_aio(self, client: Any) -> None:
        post = client._post

        async def paid_post(uri: str, body: Any, headers: Any, query: Any) -> Any:
            async def send(payment: Headers) -> Exchange:
                answer = await post(uri, body, _merged(headers, payment), query)
                received = {name: answer.headers[name] for name in RECEIVED_HEADERS if name in answer.headers}
                content = await answer.read()  # kept: the stock client reads it again
                refusal = b"" if answer.status == 200 else content
                # The stock client follows redirects: the URL of the answer says where it came from.
                return answer, _response(httpx.URL(str(answer.url)), answer.status, received, refusal)

            return await self._pay_aio(httpx.URL(f"{client._url}/{uri}"), headers, send, Repeats())

        client._post = _for_infer(paid_post, post)

    def _attach_grpc(self, client: Any) -> None:
        infer = client._client_stub.ModelInfer
        threads = ThreadPoolExecutor(thread_name_prefix="paying")

        def paid_infer(request: Any, metadata: Any = None, **options: Any) -> Any:
            url, repeats = _grpc_url(request), Repeats(options.pop("timeout", None))

            def send(payment: Headers) -> Exchange:
                try:
                    options["timeout"] = repeats.timeout_s
                    answer, call = infer.with_call(request, metadata=_metadata(metadata, payment), **options)
                except Exception as error:
                    return error, _grpc_refusal(url, error)
                return answer, _response(url, 200, _received(call.trailing_metadata()))

            return _raised(self._pay(url, dict(metadata or ()), send, time.sleep, repeats))

        client._client_stub.ModelInfer = _Rpc(paid_infer, threads)

    def _attach_grpc_aio(self, client: Any) -> None:
        infer = client._client_stub.ModelInfer

        async def paid_infer(request: Any, metadata: Any = None, **options: Any) -> Any:
            url, repeats = _grpc_url(request), Repeats(options.pop("timeout", None))

            async def send(payment: Headers) -> Exchange:
                options["timeout"] = repeats.timeout_s
                call = infer(request, metadata=_metadata(metadata, payment), **options)
                try:
                    answer = await call
                except Exception as error:
                    return error, _grpc_refusal(url, error)
                return answer, _response(url, 200, _received(await call.trailing_metadata()))

            return _raised(await self._pay_aio(url, dict(metadata or ()), send, repeats))

        client._client_stub.ModelInfer = paid_infer

    def _pay(
        self,
        url: httpx.URL,
        headers: Any,
        send: Callable[[Headers], Exchange],
        sleep: Callable[[float], object],
        repeats: Repeats,
    ) -> Any:
        """Carries one call through its steps, for clients without an event loop; returns the last answer."""
        steps, answer = self.flow.call(_request(url, headers)), None
        with ExitStack() as turns:
            step = self.flow.advance(steps)
            while step is not None:
                response = None
                if isinstance(step, Turn):
                    # Greenlets share a thread: one that blocked here would keep the holder from ever coming back.
                    while not step.thread_lock.acquire(blocking=False):
                        sleep(TURN_PAUSE_S)
                    turns.callback(step.thread_lock.release)
                else:
                    while response is None:
                        try:
                            answer, response = send(_payment(step))
                        except Exception as error:
                            if not (is_paid(step) and is_lost(error) and repeats.after_loss()):
                                raise
                        else:
                            if repeats.after_answer(response.status_code, refusal_code(response)):
                                response = None
                        if response is None:
                            sleep(PAUSE_S)
                    self._note_receipt(response)
                step = self.flow.advance(steps, response)
        return answer

    async def _pay_aio(
        self,
        url: httpx.URL,
        headers: Any,
        send: Callable[[Headers], Coroutine[Any, Any, Exchange]],
        repeats: Repeats,
    ) -> Any:
        """Carries one call through its steps on an event loop; returns the last answer."""
        steps, answer = self.flow.call(_request(url, headers)), None
        async with AsyncExitStack() as turns:
            step = self.flow.advance(steps)
            while step is not None:
                response = None
                if isinstance(step, Turn):
                    await turns.enter_async_context(step.task_lock)
                else:
                    while response is None:
                        try:
                            answer, response = await send(_payment(step))
                        except Exception as error:
                            if not (is_paid(step) and is_lost(error) and repeats.after_loss()):
                                raise
                        else:
                            if repeats.after_answer(response.status_code, refusal_code(response)):
                                response = None
                        if response is None:
                            await asyncio.sleep(PAUSE_S)
                    self._note_receipt(response)
                step = self.flow.advance(steps, response)
        return answer

    def _note_receipt(self, response: httpx.Response) -> None:
        if "leben-receipt" in response.headers and response.is_success:
            signed = receipt(response)
            self.receipts.append(signed)
            del self.receipts[:-MAX_RECEIPTS]
            self._on_receipt(signed)


class _Rpc:
    """The stub's method as the stock client uses it: a direct call, and `future` for a call in the background."""

    def __init__(self, paid_infer: Callable[..., Any], threads: ThreadPoolExecutor) -> None:
        self._paid_infer, self._threads = paid_infer, threads

    def __call__(self, request: Any, **options: Any) -> Any:
        return self._paid_infer(request, **options)

    def future(self, request: Any, **options: Any) -> Future[Any]:
        return self._threads.submit(self._paid_infer, request, **options)


@dataclass(frozen=True, slots=True)
class _Refusal:
    """A refusal of geventhttpclient whose body was read here; the stock client reads it once more."""

    status_code: int
    body: bytes

    def get(self, name: str) -> None:
        return None

    def read(self, length: int = -1) -> bytes:
        return self.body


def _for_infer(paid_post: Callable[..., Any], post: Callable[..., Any]) -> Callable[..., Any]:
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


def _raised(answer: Any) -> Any:
    if isinstance(answer, Exception):
        raise answer
    return answer


def _request(url: httpx.URL, headers: Any) -> httpx.Request:
    lowered = {str(name).lower(): str(value) for name, value in (headers or {}).items()}
    return httpx.Request("POST", url, headers={name: lowered[name] for name in SENT_HEADERS if name in lowered})


def _payment(request: httpx.Request) -> Headers:
    return {name: request.headers[name] for name in SENT_HEADERS if name in request.headers}


def _merged(own: Any, payment: Headers) -> dict[str, str]:
    return {name: value for name, value in (own or {}).items() if name.lower() not in payment} | dict(payment)


def _metadata(own: Any, payment: Headers) -> tuple[tuple[str, str], ...]:
    return tuple(_merged(dict(own or ()), payment).items())


def _grpc_url(request: Any) -> httpx.URL:
    """Stands for the route of a gRPC call: the flow remembers quotes and finds a DApp's budget by URL."""
    return httpx.URL(f"grpc://mesh/v2/models/{request.model_name}/infer")


def _received(metadata: Iterable[tuple[str, Any]] | None) -> dict[str, str]:
    return {name: str(value) for name, value in metadata or () if name in RECEIVED_HEADERS}


def _response(url: httpx.URL, status: int, headers: Mapping[str, str], body: bytes = b"") -> httpx.Response:
    return httpx.Response(status, headers=headers, content=body, request=httpx.Request("POST", url))


def _grpc_refusal(url: httpx.URL, error: Any) -> httpx.Response:
    """A refusal as it would come over HTTP; re-raises an error that the mesh did not send.

    A call that was cut off may have been charged: it stays covered by what was signed, as over HTTP.
    """
    metadata: Any = getattr(error, "trailing_metadata", tuple)() or ()
    status, _, code = str(dict(metadata).get("leben-error", "")).partition(" ")
    if not status.isdigit():
        raise error
    return _response(url, int(status), _received(metadata), json.dumps({"code": code}).encode())
