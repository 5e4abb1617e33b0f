"""Calls a running mesh with the four stock `tritonclient`s, unmodified: over HTTP and gRPC, free and paid.

The models are those that Triton's own example clients call (`tests/simple`).
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from channels.payer import Budget, BudgetExceeded, ChannelAuth, TritonPayment, Wallet, receipt
from channels.protocol.signer import Signer
from dapps.api.types import DTYPES
from tests.conftest import LEBEN, RunningMesh, free_ports
from tests.test_docs import block

HTTP = (tritonclient.http, tritonclient.http.aio)
FIRST, SECOND = np.arange(16, dtype="i4")[None], np.full((1, 16), -1, "i4")
Scenario = Callable[[Any], Any]


class Client:
    """One stock client; the calls of the two with an event loop are awaited."""

    def __init__(self, kind: Any, mesh: RunningMesh) -> None:
        self.kind = kind
        self.http = kind in HTTP
        self.client = kind.InferenceServerClient(f"127.0.0.1:{mesh.port if self.http else mesh.grpc_port}")

    async def __call__(self, name: str, *words: Any, **options: Any) -> Any:
        result = getattr(self.client, name)(*words, **options)
        return await result if inspect.isawaitable(result) else result

    def tensor(self, name: str, array: np.ndarray, datatype: str, binary: bool = True) -> Any:
        tensor = self.kind.InferInput(name, list(array.shape), datatype)
        tensor.set_data_from_numpy(array, **({"binary_data": binary} if self.http else {}))
        return tensor

    def output(self, name: str, binary: bool = True) -> Any:
        return self.kind.InferRequestedOutput(name, **({"binary_data": binary} if self.http else {}))

    def sum_inputs(self, first: bool = True, second: bool = True) -> list[Any]:
        return [self.tensor("INPUT0", FIRST, "INT32", first), self.tensor("INPUT1", SECOND, "INT32", second)]


KINDS = pytest.mark.parametrize(
    "kind",
    [tritonclient.http, tritonclient.http.aio, tritonclient.grpc, tritonclient.grpc.aio],
    ids=["http", "http.aio", "grpc", "grpc.aio"],
)


def on(mesh: RunningMesh, kind: Any, scenario: Scenario) -> None:
    async def run() -> None:
        client = Client(kind, mesh)
        try:
            await scenario(client)
        finally:
            await client("close")

    with warnings.catch_warnings():
        # The stock client with an event loop leaves bodies unread and sends large ones raw; both only warn.
        warnings.simplefilter("ignore", ResourceWarning)
        asyncio.run(run())
        gc.collect()


def field(reply: Any, name: str) -> Any:
    """A field of a reply: JSON over HTTP, a message over gRPC."""
    return reply[name] if isinstance(reply, dict) else getattr(reply, name)


@KINDS
def test_health_metadata_and_configuration(simple: RunningMesh, kind: Any) -> None:
    async def scenario(client: Client) -> None:
        query = {"query_params": {"test_1": 1, "test_2": 2}} if client.http else {"headers": {"test": "1"}}
        assert await client("is_server_live", **query) and await client("is_server_ready")
        assert await client("is_model_ready", "simple") and await client("is_model_ready", "simple", "1")
        assert not await client("is_model_ready", "simple", "2")
        assert not await client("is_model_ready", "wrong_model_name")
        server = await client("get_server_metadata")
        assert field(server, "name") == "triton" and "statistics" in field(server, "extensions")
        facts = await client("get_model_metadata", "simple", **query)
        assert field(facts, "name") == "simple" and list(field(facts, "versions")) == ["1"]
        assert list(field(field(facts, "inputs")[0], "shape")) == [-1, 16]
        config = await client("get_model_config", "simple")
        config = config if client.http else config.config
        assert (field(config, "name"), field(config, "max_batch_size")) == ("simple", 8)
        assert list(field(field(config, "input")[0], "dims")) == [16]
        with pytest.raises(InferenceServerException, match="Request for unknown model"):
            await client("get_model_metadata", "wrong_model_name")
        with pytest.raises(InferenceServerException, match="served in version 1"):
            await client("get_model_metadata", "simple", "7")
        index = await client("get_model_repository_index")
        names = {field(row, "name"): field(row, "state") for row in (index if client.http else index.models)}
        assert names["simple"] == "READY" and len(names) == 8

    on(simple, kind, scenario)


@KINDS
@pytest.mark.parametrize("coding", [None, "gzip", "deflate"])
def test_every_mix_of_json_and_binary_plain_and_compressed(simple: RunningMesh, kind: Any, coding: str | None) -> None:
    async def scenario(client: Client) -> None:
        options: dict[str, Any] = {"request_id": "one", "priority": 1, "timeout": 30_000_000, "model_version": "1"}
        if coding and client.http:
            options |= {"request_compression_algorithm": coding, "response_compression_algorithm": coding}
        elif coding:
            options["compression_algorithm"] = coding
        mixes = (
            [(a, b, c, d) for a in (0, 1) for b in (0, 1) for c in (0, 1) for d in (0, 1)]
            if client.http
            else [(1,) * 4]
        )
        for first, second, third, fourth in mixes:
            both = [client.output("OUTPUT1", bool(third)), client.output("OUTPUT0", bool(fourth))]
            for outputs in (both, both[:1], None):
                inputs = client.sum_inputs(bool(first), bool(second))
                result = await client("infer", "simple", inputs, outputs=outputs, **options)
                assert field(result.get_response(), "id") == "one"
                assert result.as_numpy("OUTPUT1").tolist() == (FIRST - SECOND).tolist()
                if outputs != both[:1]:
                    assert result.as_numpy("OUTPUT0").tolist() == (FIRST + SECOND).tolist()

    on(simple, kind, scenario)


@KINDS
def test_texts_and_bytes(simple: RunningMesh, kind: Any) -> None:
    async def scenario(client: Client) -> None:
        first = np.array([str(n).encode() for n in range(16)], object).reshape(1, 16)
        second = np.array([b"1"] * 16, object).reshape(1, 16)
        inputs = [client.tensor("INPUT0", first, "BYTES"), client.tensor("INPUT1", second, "BYTES", binary=False)]
        outputs = [client.output("OUTPUT0"), client.output("OUTPUT1", binary=False)]
        result = await client("infer", "simple_string", inputs, outputs=outputs)
        assert [int(text) for text in result.as_numpy("OUTPUT0")[0]] == list(range(1, 17))
        assert [int(text) for text in result.as_numpy("OUTPUT1")[0]] == list(range(-1, 15))
        for values in ([b"he\x00llo"] * 16, ["Grüße".encode(), b""], [b"\0\1\2\3"] * 3, [b"\xff\xfe", b"x"]):
            array = np.array(values, object).reshape(1, -1)
            result = await client("infer", "simple_identity", [client.tensor("INPUT0", array, "BYTES")])
            assert result.as_numpy("OUTPUT0").tolist() == [values]
        result = await client(
            "infer",
            "simple_identity",
            [client.tensor("INPUT0", np.array([[b"\xff"]], object), "BYTES")],
            outputs=[client.output("OUTPUT0", binary=False)],
        )
        assert result.as_numpy("OUTPUT0").tolist() == [[b"\xff"]], "bytes that are not text go as binary"

    on(simple, kind, scenario)


@KINDS
def test_every_datatype_any_size_and_inputs_left_out(simple: RunningMesh, kind: Any) -> None:
    async def scenario(client: Client) -> None:
        for datatype in (name for name in DTYPES if name != "BYTES"):
            for width in (1, 5):
                array = (np.arange(2 * width).reshape(2, width) % 2).astype(DTYPES[datatype])
                tensor = client.tensor(f"IN_{datatype}", array, datatype)
                result = await client("infer", "simple_kinds", [tensor])
                back = result.as_numpy(f"OUT_{datatype}")
                assert back.dtype == array.dtype and (back == array).all() and back.shape == (2, width)
                left_out = "OUT_INT8" if datatype != "INT8" else "OUT_INT16"
                assert result.as_numpy(left_out).tolist() == [[0], [0]]
        for datatype in ("BF16", "FP16"):
            tensor = client.tensor(f"IN_{datatype}", np.array([[1.5, -2.0]], DTYPES[datatype]), datatype)
            outputs = [client.output(f"OUT_{datatype}", binary=False)]
            result = await client("infer", "simple_kinds", [tensor], outputs=outputs)
            assert result.as_numpy(f"OUT_{datatype}").astype("f4").tolist() == [[1.5, -2.0]]

    on(simple, kind, scenario)


@KINDS
def test_statistics_grow_with_each_call(simple: RunningMesh, kind: Any) -> None:
    async def scenario(client: Client) -> None:
        async def read() -> Any:
            (row,) = field(await client("get_inference_statistics", "simple"), "model_stats")
            return row

        before = await read()
        for _ in range(3):
            await client("infer", "simple", client.sum_inputs())
        after = await read()
        for name in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
            counts = [field(field(field(row, "inference_stats"), name), "count") for row in (before, after)]
            assert int(counts[1]) - int(counts[0]) == 3, name
        assert int(field(after, "inference_count")) - int(field(before, "inference_count")) == 3
        assert len(field(await client("get_inference_statistics"), "model_stats")) == 8

    on(simple, kind, scenario)


@KINDS
def test_mistakes_become_errors_of_the_right_kind(simple: RunningMesh, kind: Any) -> None:
    async def scenario(client: Client) -> None:
        wide = client.tensor("INPUT0", np.zeros((1, 17), "i4"), "INT32")
        first, second = client.sum_inputs()
        floats = client.tensor("INPUT1", np.zeros((1, 16), "f4"), "FP32")
        classes = client.kind.InferRequestedOutput("OUTPUT0", class_count=2)
        cases: list[tuple[str, list[Any], dict[str, Any], int, str]] = [
            ("simple", [first], {}, 400, "missing input INPUT1"),
            ("simple", [first, first, second], {}, 400, "given twice"),
            ("simple", [wide, second], {}, 400, "is INT32 of shape"),
            ("simple", [first, floats], {}, 400, "is INT32 of shape"),
            ("simple", [first, second], {"outputs": [client.output("OUTPUT9")]}, 400, "unknown output"),
            ("simple", [first, second], {"model_version": "2"}, 404, "served in version"),
            ("simple", [first, second], {"outputs": [classes]}, 400, "not served"),
            ("wrong_model_name", [first, second], {}, 404, "Request for unknown model"),
            ("simple_paid", [first, second], {}, 402, "payment required"),
        ]  # fmt: skip
        codes = {400: "StatusCode.INVALID_ARGUMENT", 404: "StatusCode.NOT_FOUND", 402: "StatusCode.FAILED_PRECONDITION"}
        for model, inputs, options, status, words in cases:
            with pytest.raises(InferenceServerException, match=words) as refused:
                await client("infer", model, inputs, **options)
            assert refused.value.status() == (str(status) if client.http else codes[status])
        assert await client("is_server_live")

    on(simple, kind, scenario)


@pytest.mark.parametrize("kind", [tritonclient.http, tritonclient.grpc], ids=["http", "grpc"])
def test_models_are_loaded_and_unloaded_where_the_operator_allows_it(simple: RunningMesh, kind: Any) -> None:
    async def scenario(client: Client) -> None:
        async def batch() -> int:
            config = await client("get_model_config", "simple_identity")
            return int(field(config if client.http else config.config, "max_batch_size"))

        name = "simple_identity"
        assert await batch() == 8
        for wrong in ('"parameters": {{"max', '{"backend": "x"}', '{"max_batch_size": "-1"}'):
            with pytest.raises(InferenceServerException, match="failed to load"):
                await client("load_model", name, config=wrong)
        await client("load_model", name, config='{"max_batch_size":"16"}')
        assert await batch() == 16
        await client("unload_model", name)
        assert not await client("is_model_ready", name)
        index = await client("get_model_repository_index")
        states = {field(row, "name"): field(row, "state") for row in (index if client.http else index.models)}
        assert states[name] == "UNAVAILABLE" and states["simple"] == "READY"
        with pytest.raises(InferenceServerException, match="Request for unknown model"):
            await client("infer", name, [client.tensor("INPUT0", np.array([[b"x"]], object), "BYTES")])
        with pytest.raises(InferenceServerException, match="failed to load"):
            await client("load_model", "wrong_model_name")
        await client("load_model", name)
        assert await client("is_model_ready", name) and await batch() == 8

    on(simple, kind, scenario)


def test_models_are_the_operators_alone_by_default(mesh: RunningMesh) -> None:
    for verb in ("load", "unload"):
        answer = httpx.post(f"{mesh.url}/v2/repository/models/chdr/{verb}", json={})
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    index = httpx.post(f"{mesh.url}/v2/repository/index", json={"ready": True}).json()
    assert [row["name"] for row in index] == ["chdr", "strokedr"]
    assert httpx.post(f"{mesh.url}/v2/repository/index", json={"ready": 1}).status_code == 400
    assert httpx.post(f"{mesh.url}/v2/repository/index", content=b"[").status_code == 400


def test_typed_contents_of_other_languages_clients(simple: RunningMesh) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{simple.grpc_port}") as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        request = service_pb2.ModelInferRequest(model_name="simple")
        for name, values in (("INPUT0", range(16)), ("INPUT1", [1] * 16)):
            request.inputs.add(name=name, datatype="INT32", shape=[1, 16]).contents.int_contents.extend(values)
        answer = stub.ModelInfer(request)
        assert np.frombuffer(answer.raw_output_contents[0], "<i4").tolist() == list(range(1, 17))
        request.raw_input_contents.append(bytes(64))
        with pytest.raises(grpc.RpcError) as refused:
            stub.ModelInfer(request)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert dict(refused.value.trailing_metadata())["leben-error"] == "400 bad_request"


def test_what_is_no_message_and_what_is_not_built_is_refused(simple: RunningMesh) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{simple.grpc_port}") as channel:
        for name in ("ModelInfer", "ModelMetadata", "RepositoryModelLoad"):
            with pytest.raises(grpc.RpcError) as refused:
                channel.unary_unary(f"/inference.GRPCInferenceService/{name}")(b"\xff\xff\xff")
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT, name
        with pytest.raises(grpc.RpcError) as refused:
            channel.unary_unary("/inference.GRPCInferenceService/SystemSharedMemoryStatus")(b"")
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


BIG = np.ones((1, 10_000_000), "u1")


def charged(mesh: RunningMesh, payment: TritonPayment) -> tuple[int, int]:
    (channel,) = payment.flow.channels.values()
    url = f"{mesh.url}/v1/channels/{channel.id}"
    seen = httpx.get(
        url, headers=payment.flow.wallet.read_headers(url, channel.chain_id, channel.mesh), timeout=30
    ).json()
    assert not channel.outstanding
    return channel.charged, int(seen["charged"])


@KINDS
def test_two_lines_make_a_stock_client_pay(simple: RunningMesh, kind: Any) -> None:
    """The first call, of 10 MB, meets a 402 before the mesh has looked at it."""

    async def scenario(client: Client) -> None:
        payment = TritonPayment(simple.payer())
        assert payment.attach(client.client) is client.client

        def paid(array: np.ndarray) -> Any:
            return client("infer", "simple_paid", [client.tensor("INPUT0", array, "UINT8")])

        assert (await paid(BIG)).as_numpy("OUTPUT0").tolist() == [[10_000_000]]
        for row in range(3):
            assert (await paid(np.full((1, 3), row, "u1"))).as_numpy("OUTPUT0").tolist() == [[3 * row]]
        assert (await paid(np.ones((4, 2), "u1"))).as_numpy("OUTPUT0").shape == (4, 1)
        with pytest.raises(InferenceServerException, match="batch of 1 to 4"):
            await paid(np.ones((5, 2), "u1"))
        assert (await client("infer", "simple", client.sum_inputs())).as_numpy("OUTPUT0").shape == (1, 16)
        assert charged(simple, payment) == (800, 800)
        assert [signed.receipt.amount for signed in payment.receipts] == [100, 100, 100, 100, 400]
        assert [signed.receipt.seq for signed in payment.receipts] == [1, 2, 3, 4, 5]
        assert all(
            signed.verify(signed_chain(payment), payment.flow.mesh or signer(payment)) for signed in payment.receipts
        )

    on(simple, kind, scenario)


def signed_chain(payment: TritonPayment) -> int:
    (channel,) = payment.flow.channels.values()
    return channel.chain_id


def signer(payment: TritonPayment) -> str:
    (channel,) = payment.flow.channels.values()
    return channel.mesh


@KINDS
def test_many_calls_in_flight_take_one_deposit(simple: RunningMesh, kind: Any) -> None:
    async def scenario(client: Client) -> None:
        if kind is tritonclient.http:
            await client("close")
            client.client = kind.InferenceServerClient(f"127.0.0.1:{simple.port}", concurrency=8)
        payment = TritonPayment(simple.payer())
        payment.attach(client.client)
        inputs = [[client.tensor("INPUT0", np.full((1, 3), row, "u1"), "UINT8")] for row in range(12)]
        if kind is tritonclient.http:
            calls = [client.client.async_infer("simple_paid", tensors) for tensors in inputs]
            results = [call.get_result() for call in calls]
        elif kind is tritonclient.grpc:
            waiting: list[Future[Any]] = [Future() for _ in inputs]

            def answers(future: Future[Any]) -> Callable[[Any, Any], None]:
                return lambda result, error: future.set_exception(error) if error else future.set_result(result)

            for tensors, future in zip(inputs, waiting, strict=True):
                client.client.async_infer("simple_paid", tensors, callback=answers(future))
            results = [future.result(60) for future in waiting]
        else:
            results = await asyncio.gather(*(client("infer", "simple_paid", tensors) for tensors in inputs))
        assert [int(result.as_numpy("OUTPUT0")[0, 0]) for result in results] == [3 * row for row in range(12)]
        assert charged(simple, payment) == (1200, 1200)
        assert sum(signed.receipt.seq for signed in payment.receipts) == 78

    on(simple, kind, scenario)


@KINDS
def test_a_budget_holds_for_stock_clients_too(simple: RunningMesh, kind: Any) -> None:
    async def scenario(client: Client) -> None:
        payment = TritonPayment(Wallet(Signer.generate(), Budget(per_call=50)))
        payment.attach(client.client)
        with pytest.raises(BudgetExceeded):
            await client("infer", "simple_paid", [client.tensor("INPUT0", np.ones((1, 3), "u1"), "UINT8")])

    on(simple, kind, scenario)


def test_a_key_is_charged_once_over_grpc(simple: RunningMesh) -> None:
    async def scenario(client: Client) -> None:
        payment = TritonPayment(simple.payer())
        payment.attach(client.client)
        tensor = client.tensor("INPUT0", np.ones((1, 3), "u1"), "UINT8")
        for _ in range(3):
            again = await client("infer", "simple_paid", [tensor], headers={"idempotency-key": "the-same"})
            assert again.as_numpy("OUTPUT0").tolist() == [[3]]
        assert {signed.receipt.seq for signed in payment.receipts} == {1} and len(payment.receipts) == 3

    on(simple, tritonclient.grpc.aio, scenario)


def test_the_two_lines_of_the_payers_page(simple: RunningMesh, tmp_path: Path) -> None:
    wallet = Wallet.from_file(tmp_path / "payer.key")
    simple.leben("wallet", "fund", wallet.address, "1000000")
    program = block("triton", "docs/pay.md").replace("127.0.0.1:8601", f"127.0.0.1:{simple.grpc_port}")
    (tmp_path / "client.py").write_text(program)
    run = subprocess.run([sys.executable, "client.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stdout) == (0, "[[6]] charged 100\n"), run.stderr


def test_attach_refuses_what_is_no_stock_client() -> None:
    with pytest.raises(TypeError, match="InferenceServerClient"):
        TritonPayment(Wallet(Signer.generate())).attach(object())


def test_a_grpc_port_in_use_is_named(simple: RunningMesh, tmp_path: Path) -> None:
    words = ["up", "--data", str(tmp_path), "--port", str(free_ports()), "--grpc-port", str(simple.grpc_port)]
    run = subprocess.run([LEBEN, *words], capture_output=True, text=True, timeout=60)
    assert run.returncode == 1 and "choose another --grpc-port" in run.stderr and "Traceback" not in run.stderr


def test_a_device_that_fails_costs_nothing_and_its_replica_is_replaced(simple: RunningMesh) -> None:
    auth = ChannelAuth(simple.payer())
    with httpx.Client(base_url=simple.url, auth=auth, timeout=120) as client:

        def call(values: list[int]) -> httpx.Response:
            tensor = {"name": "INPUT0", "datatype": "UINT8", "shape": [1, len(values)], "data": values}
            return client.post("/v2/models/simple_paid/infer", json={"inputs": [tensor]})

        broken = call([255] * 13)
        assert (broken.status_code, broken.json()["code"]) == (503, "device_failed"), broken.text
        assert "leben-receipt" not in broken.headers
        until = time.monotonic() + 240
        while (again := call([1, 2, 3])).status_code != 200:
            assert again.status_code in (404, 500, 502, 503) and "leben-receipt" not in again.headers, again.text
            assert time.monotonic() < until, again.text
            time.sleep(1)
        assert again.json()["outputs"][0]["data"] == [6]
        assert receipt(again).receipt.after == receipt(again).receipt.amount == 100
