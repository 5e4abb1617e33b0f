"""`TritonPayment`: makes an unmodified `tritonclient` pay, over HTTP and gRPC, with and without an event loop.

    client = InferenceServerClient("127.0.0.1:8700")
    TritonPayment(wallet).attach(client)

What is signed, believed and counted is `ChannelAuth`'s business; here a call of the stock client is carried to it. The
client's own plugins cannot do this: they see neither which model is called nor any answer. Never imports tritonclient.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx

from channels.payer.channel import PayerChannel
from channels.payer.wallet import Wallet
from channels.protocol import decode_header
from channels.receipts import SignedReceipt

if TYPE_CHECKING:
    from channels.payer.httpx_auth import ChannelAuth

PAID_HEADERS = ("payment-signature", "idempotency-key")
TURN_PAUSE_S = 0.005
TOLD = ("payment-required", "payment-response", "leben-receipt")
Sent = Mapping[str, str]
"""Headers, or metadata, to send with a call beside the client's own."""


class TritonPayment:
    """Pays for the infer calls of stock clients.

    One object serves several clients of one kind (with an event loop, or without one), which then share channels.
    Clients without an event loop may be used from several threads, as far as they allow it themselves.

    Args:
        wallet: who pays.
        auth: the payer's channels; a new one by default.

    Attributes:
        receipts: the signed receipts of the calls answered last, oldest first, 1000 at most.

    Raises:
        BudgetExceeded, DishonestServer: out of `infer`, see `ChannelAuth`.
    """

    def __init__(self, wallet: Wallet, auth: ChannelAuth | None = None) -> None:
        from channels.payer.httpx_auth import ChannelAuth

        self.auth = auth or ChannelAuth(wallet)
        self.receipts: list[SignedReceipt] = []

    def attach(self, client: Any) -> Any:
        """Lets a client pay from now on, and returns it.

        Args:
            client: an `InferenceServerClient` of `tritonclient.http`, `.http.aio`, `.grpc` or `.grpc.aio`.

        Raises:
            TypeError: it is none of these.
        """
        ways = {
            "tritonclient.http._client": self._attach_http,
            "tritonclient.http.aio": self._attach_http_aio,
            "tritonclient.grpc._client": self._attach_grpc,
            "tritonclient.grpc.aio": self._attach_grpc_aio,
        }
        for kind in type(client).__mro__:
            if kind.__module__ in ways:
                ways[kind.__module__](client)
                return client
        raise TypeError("attach takes an InferenceServerClient of tritonclient.http, .http.aio, .grpc or .grpc.aio")

    def _attach_http(self, client: Any) -> None:
        import gevent

        post = client._post

        def paying(uri: str, body: Any, headers: Any, query: Any) -> Any:
            answers: list[Any] = []

            def send(paid: Sent) -> httpx.Response:
                answer = post(uri, body, _merged(headers, paid), query)
                told = {name: str(answer.get(name)) for name in TOLD if answer.get(name) is not None}
                if answer.status_code != 200:
                    answer = _Refusal(answer.status_code, bytes(answer.read()))
                answers[:] = [answer]
                return _heard_http(answer.status_code, told, answer.body if isinstance(answer, _Refusal) else b"")

            url = httpx.URL(f"http://{client._parsed_url.host}:{client._parsed_url.port}{client._base_uri}/{uri}")
            self._pay(url, headers, send, gevent.sleep)
            return answers[0]

        client._post = _for_infer(paying, post)

    def _attach_http_aio(self, client: Any) -> None:
        post = client._post

        async def paying(uri: str, body: Any, headers: Any, query: Any) -> Any:
            answers: list[Any] = []

            async def send(paid: Sent) -> httpx.Response:
                answer = await post(uri, body, _merged(headers, paid), query)
                answers[:] = [answer]
                told = {name: answer.headers[name] for name in TOLD if name in answer.headers}
                return _heard_http(answer.status, told, b"" if answer.status == 200 else await answer.read())

            await self._pay_aio(httpx.URL(f"{client._url}/{uri}"), headers, send)
            return answers[0]

        client._post = _for_infer(paying, post)

    def _attach_grpc(self, client: Any) -> None:
        infer = client._client_stub.ModelInfer
        threads = ThreadPoolExecutor(thread_name_prefix="paying")

        def paying(request: Any, metadata: Any = None, **options: Any) -> Any:
            answers: list[Any] = []

            def send(paid: Sent) -> httpx.Response:
                answers.clear()
                try:
                    answer, call = infer.with_call(request, metadata=_metadata(metadata, paid), **options)
                except Exception as error:
                    answers.append(error)
                    return _heard_grpc(error)
                answers.append(answer)
                return httpx.Response(200, headers=_told(call.trailing_metadata()))

            self._pay(_url(request), dict(metadata or ()), send, time.sleep)
            if isinstance(answers[0], Exception):
                raise answers[0]
            return answers[0]

        client._client_stub.ModelInfer = _Rpc(paying, threads)

    def _attach_grpc_aio(self, client: Any) -> None:
        infer = client._client_stub.ModelInfer

        async def paying(request: Any, metadata: Any = None, **options: Any) -> Any:
            answers: list[Any] = []

            async def send(paid: Sent) -> httpx.Response:
                answers.clear()
                call = infer(request, metadata=_metadata(metadata, paid), **options)
                try:
                    answers.append(await call)
                except Exception as error:
                    answers.append(error)
                    return _heard_grpc(error)
                return httpx.Response(200, headers=_told(await call.trailing_metadata()))

            await self._pay_aio(_url(request), dict(metadata or ()), send)
            if isinstance(answers[0], Exception):
                raise answers[0]
            return answers[0]

        client._client_stub.ModelInfer = paying

    def _pay(
        self, url: httpx.URL, headers: Any, send: Callable[[Sent], httpx.Response], sleep: Callable[[float], object]
    ) -> None:
        """Carries one call through, for clients without an event loop."""
        steps = self.auth._call(_request(url, headers))
        wanted, turn = self.auth._next(steps, None), None
        try:
            while wanted is not None:
                if isinstance(wanted, PayerChannel):
                    # Greenlets share a thread: one that blocked here would keep the holder from ever coming back.
                    while not wanted.thread_opening.acquire(blocking=False):
                        sleep(TURN_PAUSE_S)
                    turn = wanted.thread_opening
                    wanted = self.auth._next(steps, None)
                else:
                    wanted = self.auth._next(steps, self._heard(send(_paid(wanted))))
        finally:
            if turn is not None:
                turn.release()

    async def _pay_aio(
        self, url: httpx.URL, headers: Any, send: Callable[[Sent], Coroutine[Any, Any, httpx.Response]]
    ) -> None:
        """The same with an event loop."""
        steps = self.auth._call(_request(url, headers))
        wanted, turn = self.auth._next(steps, None), None
        try:
            while wanted is not None:
                if isinstance(wanted, PayerChannel):
                    await wanted.opening.acquire()
                    turn = wanted.opening
                    wanted = self.auth._next(steps, None)
                else:
                    wanted = self.auth._next(steps, self._heard(await send(_paid(wanted))))
        finally:
            if turn is not None:
                turn.release()

    def _heard(self, response: httpx.Response) -> httpx.Response:
        if "leben-receipt" in response.headers and response.is_success:
            self.receipts.append(SignedReceipt.from_json(decode_header(response.headers["leben-receipt"])))
            del self.receipts[:-1000]
        return response


class _Rpc:
    """What a stub's method offers to the stock client: a call, and a call whose answer comes later."""

    def __init__(self, paying: Callable[..., Any], threads: ThreadPoolExecutor) -> None:
        self._paying, self._threads = paying, threads

    def __call__(self, request: Any, **options: Any) -> Any:
        return self._paying(request, **options)

    def future(self, request: Any, **options: Any) -> Future[Any]:
        return self._threads.submit(self._paying, request, **options)


@dataclass(frozen=True, slots=True)
class _Refusal:
    """A refusal of geventhttpclient, read once for us and once more for the stock client, which reads it itself."""

    status_code: int
    body: bytes

    def get(self, name: str) -> None:
        return None

    def read(self, length: int = -1) -> bytes:
        return self.body


def _for_infer(paying: Callable[..., Any], post: Callable[..., Any]) -> Callable[..., Any]:
    """The client's own way for whatever is not an infer call: nothing is signed for those."""

    def choose(request_uri: str, request_body: Any = None, headers: Any = None, query_params: Any = None) -> Any:
        chosen = paying if request_uri.endswith("/infer") else post
        return chosen(request_uri, request_body, headers, query_params)

    return choose


def _request(url: httpx.URL, headers: Any) -> httpx.Request:
    known = {str(name).lower(): str(value) for name, value in (headers or {}).items()}
    return httpx.Request("POST", url, headers={name: known[name] for name in PAID_HEADERS if name in known})


def _paid(request: httpx.Request) -> Sent:
    return {name: request.headers[name] for name in PAID_HEADERS if name in request.headers}


def _merged(own: Any, paid: Sent) -> dict[str, str]:
    return {name: value for name, value in (own or {}).items() if name.lower() not in paid} | dict(paid)


def _metadata(own: Any, paid: Sent) -> tuple[tuple[str, str], ...]:
    return tuple(_merged(dict(own or ()), paid).items())


def _url(request: Any) -> httpx.URL:
    """A name for the route of a gRPC call: its quote is remembered by it, and its DApp's budget found."""
    return httpx.URL(f"grpc://mesh/v2/models/{request.model_name}/infer")


def _told(metadata: Iterable[tuple[str, Any]] | None) -> dict[str, str]:
    return {name: str(value) for name, value in metadata or () if name in TOLD}


def _heard_http(status: int, told: Mapping[str, str], body: bytes) -> httpx.Response:
    return httpx.Response(status, headers=told, content=body)


def _heard_grpc(error: Any) -> httpx.Response:
    """A refusal as it would come over HTTP; an error that the mesh did not send is raised.

    A call that was cut off may have been charged: it stays covered by what was signed, as over HTTP.
    """
    found: Any = getattr(error, "trailing_metadata", tuple)() or ()
    status, _, code = str(dict(found).get("leben-error", "")).partition(" ")
    if not status.isdigit():
        raise error
    return httpx.Response(int(status), headers=_told(found), json={"code": code})
