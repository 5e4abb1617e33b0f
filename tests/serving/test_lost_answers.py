"""A lost answer is asked for again under the same key, by each client that pays, and is never charged twice."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from channels.metering.quote import Payee, Quote
from channels.payer import AsyncRepeatTransport, ChannelAuth, RepeatTransport, TritonPayment, Wallet, receipt
from channels.payer.repeat import DEADLINE_S, MAX_LOSSES, PAUSE_S, Repeats
from channels.protocol import Signer, encode_header
from serving.control.grpc_server import SERVICE
from tests.serving.test_http import GOOD
from tests.serving.test_payer import PayingClient, Wire

MESH = Signer(b"\2" * 32).address
QUOTE = Quote(Payee(31337, "0xDe70000000000000000000000000000000000001", "Dev", "1", MESH, MESH, 900), 400, 4_000)
OFFER = QUOTE.required_header("http://mesh", "payment_required")
SETTLED = encode_header(
    {
        "success": True,
        "amount": "4000",
        "extra": {
            "chargedAmount": "100",
            "channelState": {"balance": "4000", "chargedCumulativeAmount": "100"},
        },
    }
)


class Lossy:
    """Loses the first answers to paid requests, after the mesh has sent them.

    Attributes:
        keys: the key of each paid request.
        payments: the payment of each paid request.
    """

    def __init__(self, losses: int, error: type[httpx.TransportError] = httpx.ReadError) -> None:
        self._losses, self._error = losses, error
        self.keys, self.payments = list[str](), list[str]()

    def __call__(self, request: httpx.Request, response: httpx.Response) -> httpx.Response:
        if "payment-signature" in request.headers and self.lost(request.headers):
            raise self._error("the connection broke", request=request)
        return response

    def lost(self, headers: Any) -> bool:
        """Counts a paid request; True if its answer is lost."""
        self.keys.append(headers["idempotency-key"])
        self.payments.append(headers["payment-signature"])
        return len(self.keys) <= self._losses


@pytest.mark.parametrize("losses", range(MAX_LOSSES + 2))
def test_a_lost_answer_of_a_mesh_is_asked_for_again_and_charged_once(
    on_replica: Callable[[Any], None], wallet: Wallet, losses: int
) -> None:
    async def scenario(bench: Any) -> None:
        wire = Wire(bench.app)
        lossy = wire.tamper = Lossy(losses)
        repeating: Any = AsyncRepeatTransport(wire)
        async with PayingClient(repeating, ChannelAuth(wallet)) as client:
            if losses > MAX_LOSSES:
                with pytest.raises(httpx.ReadError):
                    await client.post("/infer", json=GOOD)
            else:
                answer = await client.post("/infer", json=GOOD)
                assert answer.status_code == 200 and receipt(answer).receipt.amount == 100
                assert (client.channel.charged, client.channel.outstanding) == (100, {})
        assert len(lossy.keys) == min(losses, MAX_LOSSES) + 1
        assert len(set(lossy.keys)) == 1 and len(set(lossy.payments)) == 1, "one key, signed once"
        assert bench.charged() == 100 and len(bench.deposits) == 1

    on_replica(scenario)


def test_a_call_whose_time_has_passed_is_not_sent_again(on_replica: Callable[[Any], None], wallet: Wallet) -> None:
    async def scenario(bench: Any) -> None:
        wire = Wire(bench.app)
        lossy = wire.tamper = Lossy(1, httpx.ReadTimeout)
        repeating: Any = AsyncRepeatTransport(wire)
        async with PayingClient(repeating, ChannelAuth(wallet)) as client:
            with pytest.raises(httpx.ReadTimeout):
                await client.post("/infer", json=GOOD)
        assert len(lossy.keys) == 1

    on_replica(scenario)


class Broken(httpx.SyncByteStream):
    """A body that ends early."""

    def __iter__(self) -> Iterator[bytes]:
        yield b"{"
        raise httpx.RemoteProtocolError("the peer closed the connection in the middle of the body")


def test_other_answers_than_the_calls_own_are_asked_for_again() -> None:
    """Broken in the middle of its body, of unknown outcome, still running: then the answer."""
    payments: list[str | None] = []

    def mesh(request: httpx.Request) -> httpx.Response:
        payments.append(request.headers.get("payment-signature"))
        return answers.pop(0)

    refused = [(503, "outcome_unknown"), (409, "in_progress"), (409, "in_progress"), (409, "in_progress")]
    answers = [
        httpx.Response(402, headers={"payment-required": OFFER}, json={}),
        httpx.Response(200, stream=Broken()),
        *(httpx.Response(status, json={"code": code}) for status, code in refused),
        httpx.Response(200, headers={"payment-response": SETTLED}, json={"answer": 1}),
    ]
    transport = RepeatTransport(httpx.MockTransport(mesh))
    auth = ChannelAuth(Wallet(Signer(b"\1" * 32)))
    with httpx.Client(transport=transport, base_url="http://mesh", auth=auth) as client:
        answer = client.post("/v2/models/x/infer", content=b"x")
    assert answer.json() == {"answer": 1} and not answers and answer.elapsed
    assert payments[0] is None and len(set(payments[1:])) == 1 and payments[1], "signed once"
    (channel,) = auth.channels.values()
    assert (channel.charged, channel.outstanding) == (100, {})


def test_a_request_that_pays_nothing_is_sent_once() -> None:
    sent: list[httpx.Request] = []

    def mesh(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        raise httpx.ReadError("lost", request=request)

    with httpx.Client(transport=RepeatTransport(httpx.MockTransport(mesh))) as client, pytest.raises(httpx.ReadError):
        client.post("http://mesh/", headers={"idempotency-key": "a key alone"})
    assert len(sent) == 1


def test_repeats_end_with_the_callers_time() -> None:
    now = [0.0]
    for timeout_s, end_s in ((10.0, 10.0), (None, DEADLINE_S)):
        now[0] = 0.0
        repeats = Repeats(timeout_s, lambda: now[0])
        assert not repeats.after_answer(409, "in_progress"), "without a loss another call has the key: its caller's own"
        assert repeats.after_loss() and repeats.after_answer(409, "in_progress")
        now[0] = end_s
        assert not repeats.after_answer(409, "in_progress") and not repeats.after_loss()


ANSWER = {"model_name": "x", "outputs": [{"name": "Y", "datatype": "UINT8", "shape": [1], "data": [7]}]}


@contextmanager
def over_http(mesh: Lossy) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            if "payment-signature" not in self.headers:
                self.reply(402, {"code": "payment_required"}, {"payment-required": OFFER})
            elif mesh.lost(self.headers):
                self.close_connection = True
            else:
                self.reply(200, ANSWER, {"payment-response": SETTLED})

        def reply(self, status: int, body: Any, headers: dict[str, str]) -> None:
            content = json.dumps(body).encode()
            self.send_response(status)
            for name, value in ({"content-length": str(len(content))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *words: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def over_grpc(mesh: Lossy) -> Iterator[str]:
    def infer(request: Any, context: Any) -> Any:
        metadata = dict(context.invocation_metadata())
        if "payment-signature" not in metadata:
            context.set_trailing_metadata((("payment-required", OFFER), ("leben-error", "402 payment_required")))
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "pay")
        if mesh.lost(metadata):
            context.abort(grpc.StatusCode.UNAVAILABLE, "Too many pings")
        context.set_trailing_metadata((("payment-response", SETTLED),))
        reply = service_pb2.ModelInferResponse(model_name="x", raw_output_contents=[b"\7"])
        reply.outputs.add(name="Y", datatype="UINT8", shape=[1])
        return reply

    method = grpc.unary_unary_rpc_method_handler(
        infer, service_pb2.ModelInferRequest.FromString, service_pb2.ModelInferResponse.SerializeToString
    )
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"ModelInfer": method}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait()


KINDS = [tritonclient.http, tritonclient.http.aio, tritonclient.grpc, tritonclient.grpc.aio]


async def infer(kind: Any, address: str, payment: TritonPayment, **options: Any) -> int:
    client = kind.InferenceServerClient(address)
    tensor = kind.InferInput("X", [1], "UINT8")
    tensor.set_data_from_numpy(np.zeros(1, "u1"))
    try:
        result = payment.attach(client).infer("x", [tensor], **options)
        answer = await result if asyncio.iscoroutine(result) else result
        return int(answer.as_numpy("Y")[0])
    finally:
        closed = client.close()
        if asyncio.iscoroutine(closed):
            await closed


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_stock_client_asks_again_for_a_lost_answer(kind: Any) -> None:
    mesh, payment = Lossy(MAX_LOSSES), TritonPayment(Wallet(Signer(b"\1" * 32)))
    with (over_grpc if "grpc" in kind.__name__ else over_http)(mesh) as address:
        assert asyncio.run(infer(kind, address, payment)) == 7
    assert len(mesh.keys) == MAX_LOSSES + 1
    assert len(set(mesh.keys)) == 1 and len(set(mesh.payments)) == 1, "one key, signed once"
    (channel,) = payment.flow.channels.values()
    assert (channel.charged, channel.outstanding) == (100, {})


@pytest.mark.parametrize("kind", [tritonclient.grpc, tritonclient.grpc.aio], ids=lambda kind: kind.__name__)
def test_over_grpc_an_answer_that_stays_lost_raises_within_the_callers_time(kind: Any) -> None:
    for options, sent in (({}, {MAX_LOSSES + 1}), ({"client_timeout": PAUSE_S * 0.8}, {0, 1})):
        mesh, payment = Lossy(99), TritonPayment(Wallet(Signer(b"\1" * 32)))
        with over_grpc(mesh) as address, pytest.raises(InferenceServerException):
            asyncio.run(infer(kind, address, payment, **options))
        assert len(mesh.keys) in sent and len(set(mesh.keys)) <= 1
