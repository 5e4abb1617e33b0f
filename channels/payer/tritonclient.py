"""Makes an unmodified `tritonclient` pay, over HTTP and gRPC, with and without an event loop.

    client = InferenceServerClient("127.0.0.1:8700")
    TritonPayment(wallet).attach(client)

Carries the infer calls of the stock client through the steps of `flow.py`. The client's own plugins cannot pay: they
see neither the model's name nor any response. Never imports tritonclient.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack
from typing import Any

import httpx

from channels.payer.channel import Turn
from channels.payer.flow import PaymentFlow, receipt, refusal_code
from channels.payer.repeat import PAUSE_S, Repeats, is_paid
from channels.payer.triton_messages import (
    RECEIVED_HEADERS,
    BackgroundRpc,
    Headers,
    ReadRefusal,
    for_infer,
    grpc_refusal,
    grpc_url,
    is_lost,
    merged,
    metadata_of,
    payment_of,
    raised,
    received_of,
    request_of,
    response_of,
)
from channels.payer.wallet import Wallet
from channels.receipts import SignedReceipt

TURN_PAUSE_S = 0.005
MAX_RECEIPTS = 1_000
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
                answer = post(uri, body, merged(headers, payment), query)
                received = {name: str(answer.get(name)) for name in RECEIVED_HEADERS if answer.get(name) is not None}
                if answer.status_code == 200:
                    return answer, response_of(url, 200, received)
                refusal = ReadRefusal(answer.status_code, bytes(answer.read()))
                return refusal, response_of(url, refusal.status_code, received, refusal.body)

            return self._pay(url, headers, send, gevent.sleep, Repeats())

        client._post = for_infer(paid_post, post)

    def _attach_http_aio(self, client: Any) -> None:
        post = client._post

        async def paid_post(uri: str, body: Any, headers: Any, query: Any) -> Any:
            async def send(payment: Headers) -> Exchange:
                answer = await post(uri, body, merged(headers, payment), query)
                received = {name: answer.headers[name] for name in RECEIVED_HEADERS if name in answer.headers}
                content = await answer.read()  # kept: the stock client reads it again
                refusal = b"" if answer.status == 200 else content
                # The stock client follows redirects: the URL of the answer says where it came from.
                return answer, response_of(httpx.URL(str(answer.url)), answer.status, received, refusal)

            return await self._pay_aio(httpx.URL(f"{client._url}/{uri}"), headers, send, Repeats())

        client._post = for_infer(paid_post, post)

    def _attach_grpc(self, client: Any) -> None:
        infer = client._client_stub.ModelInfer
        threads = ThreadPoolExecutor(thread_name_prefix="paying")

        def paid_infer(request: Any, metadata: Any = None, **options: Any) -> Any:
            url, repeats = grpc_url(request), Repeats(options.pop("timeout", None))

            def send(payment: Headers) -> Exchange:
                try:
                    options["timeout"] = repeats.timeout_s
                    answer, call = infer.with_call(request, metadata=metadata_of(metadata, payment), **options)
                except Exception as error:
                    return error, grpc_refusal(url, error)
                return answer, response_of(url, 200, received_of(call.trailing_metadata()))

            return raised(self._pay(url, dict(metadata or ()), send, time.sleep, repeats))

        client._client_stub.ModelInfer = BackgroundRpc(paid_infer, threads)

    def _attach_grpc_aio(self, client: Any) -> None:
        infer = client._client_stub.ModelInfer

        async def paid_infer(request: Any, metadata: Any = None, **options: Any) -> Any:
            url, repeats = grpc_url(request), Repeats(options.pop("timeout", None))

            async def send(payment: Headers) -> Exchange:
                options["timeout"] = repeats.timeout_s
                call = infer(request, metadata=metadata_of(metadata, payment), **options)
                try:
                    answer = await call
                except Exception as error:
                    return error, grpc_refusal(url, error)
                return answer, response_of(url, 200, received_of(await call.trailing_metadata()))

            return raised(await self._pay_aio(url, dict(metadata or ()), send, repeats))

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
        steps, answer = self.flow.call(request_of(url, headers)), None
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
                            answer, response = send(payment_of(step))
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
        steps, answer = self.flow.call(request_of(url, headers)), None
        async with AsyncExitStack() as turns:
            step = self.flow.advance(steps)
            while step is not None:
                response = None
                if isinstance(step, Turn):
                    await turns.enter_async_context(step.task_lock)
                else:
                    while response is None:
                        try:
                            answer, response = await send(payment_of(step))
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
