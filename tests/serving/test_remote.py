"""Checks a DApp whose model is remote: on another mesh, which is paid, and on a plain V2 server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from channels.payer import Wallet, receipt
from channels.protocol.signer import Signer
from channels.protocol.x402 import decode_header
from channels.receipts import SignedReceipt
from dapps import DApp, Price, Tensor
from serving.errors import CallError, StartError
from serving.execution.executor import Submission
from serving.execution.remote import RemoteExecutor, RemoteModel, mismatch
from serving.execution.remote_spending import HEADER
from tests.conftest import RunningMesh
from tests.serving.conftest import replica


class Far(DApp):
    """Sums bytes where `simple_paid` is."""

    version = "1"
    inputs = (Tensor("INPUT0", "UINT8", [-1]),)
    outputs = (Tensor("OUTPUT0", "INT64", [1]),)
    price = Price(150, maximum_items=4)

    def load(self, device: str) -> None:
        raise AssertionError("its weights are elsewhere")

    forward = load

    def example(self) -> dict[str, Any]:
        return {"INPUT0": np.ones((1, 3), "u1")}


class Cheap(Far):
    """Costs less at most than what it asks for is quoted."""

    price = Price(150, maximum_items=2)


class Loss(Far):
    """Costs less than what it asks for is charged."""

    price = Price(90, maximum_items=5)


class Sums(Far):
    """Free, as `simple` is."""

    inputs = (Tensor("INPUT0", "INT32", [16]), Tensor("INPUT1", "INT32", [16]))
    outputs = (Tensor("OUTPUT0", "INT32", [16]), Tensor("OUTPUT1", "INT32", [16]))
    price = Price(0)


def body(*rows: list[int]) -> dict[str, Any]:
    shape = [len(rows), len(rows[0])]
    return {
        "inputs": [{"name": "INPUT0", "datatype": "UINT8", "shape": shape, "data": [x for row in rows for x in row]}]
    }


def runner(mesh: RunningMesh, dapp: DApp, wallet: Wallet | None = None, scheme: str = "http", name: str = "") -> Any:
    port = mesh.port if scheme == "http" else mesh.grpc_port
    remote = RemoteModel.read(f"{scheme}://127.0.0.1:{port}/v2/models/{name or 'simple_paid'}")
    return RemoteExecutor(dapp, remote, wallet.signer.secret() if wallet else "")


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_another_mesh_is_paid_out_of_the_call_and_its_receipt_stands_in_ours(simple: RunningMesh, scheme: str) -> None:
    async def scene() -> None:
        wallet = simple.payer()
        far = runner(simple, Far(), wallet, scheme)
        async with replica(Far(), remote=far) as bench, bench.client(Wallet(Signer.generate())) as client:
            for rows, paid in (([[1, 2, 3]], 100), ([[1, 2], [30, 40]], 200)):
                answer = await client.post("/infer", json=body(*rows))
                assert answer.status_code == 200, answer.text
                assert answer.json()["outputs"][0]["data"] == [sum(row) for row in rows]
                ours = receipt(answer)
                (part,) = ours.receipt.parts
                (reply,) = decode_header(answer.headers[HEADER])["receipts"]
                theirs = SignedReceipt.from_json(reply)
                (channel,) = far.payment.flow.channels.values()
                assert theirs.verify(channel.chain_id, channel.mesh) and ours.verify(31337, bench.mesh.address)
                assert ours.receipt.amount == paid * 3 // 2 and theirs.receipt.amount == part.amount == paid
                names = ("dapp", "version", "model_digest", "request_digest", "result_digest", "units")
                assert [getattr(part, name) for name in names] == [getattr(theirs.receipt, name) for name in names]
                (share,) = part.shares
                assert (share.owner, share.amount) == (wallet.address, paid)
                assert sum(share.amount for share in ours.receipt.shares) == paid // 2
            assert int(simple.channel(wallet, far.payment.flow)["charged"]) == 300 and bench.charged() == 450
            # Many at once: each has the receipt of its own.
            many = await asyncio.gather(*(client.post("/infer", json=body([row, row])) for row in range(8)))
            parts_by_row = {row: receipt(answer).receipt.parts[0] for row, answer in enumerate(many)}
            assert [answer.json()["outputs"][0]["data"] for answer in many] == [[2 * row] for row in range(8)]
            assert len({part.request_digest for part in parts_by_row.values()}) == 8

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("dapp", "rows", "code", "signed"),
    [
        pytest.param(Cheap(), 1, "remote_unpaid", 0, id="its quote is above what the call may cost"),
        pytest.param(Loss(), 1, "remote_price", 1, id="it charged more than the call costs"),
    ],
)
def test_the_callers_budget_bounds_the_other_meshs(
    simple: RunningMesh, dapp: DApp, rows: int, code: str, signed: int
) -> None:
    async def scene() -> None:
        wallet = simple.payer()
        far = runner(simple, dapp, wallet)
        async with replica(dapp, remote=far) as bench, bench.client(Wallet(Signer.generate())) as client:
            answer = await client.post("/infer", json=body(*[[1]] * rows))
            assert (answer.status_code, answer.json()["code"]) == (503, code)
            assert bench.charged() == 0 and bench.held() == 0
            assert len(far.payment.receipts) == signed

    asyncio.run(scene())


def test_without_a_wallet_and_past_its_budget_nothing_is_paid(simple: RunningMesh) -> None:
    async def scene() -> None:
        poor = simple.payer()
        limited = runner(simple, Far(), poor)
        limited.payment.flow.wallet.budget.per_day = 450
        for far, codes in ((runner(simple, Far()), ["remote_unpaid"]), (limited, ["", "remote_unpaid"])):
            async with replica(Far(), remote=far) as bench, bench.client(Wallet(Signer.generate())) as client:
                answers = [await client.post("/infer", json=body([1])) for _ in codes]
                assert [answer.json().get("code", "") for answer in answers] == codes
                assert bench.charged() == 150 * codes.count("")

    asyncio.run(scene())


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_model_that_costs_nothing_there(simple: RunningMesh, scheme: str) -> None:
    async def scene() -> None:
        far = runner(simple, Sums(), scheme=scheme, name="simple")
        await far.start()
        inputs = {"INPUT0": np.arange(32, dtype="i4").reshape(2, 16), "INPUT1": np.ones((2, 16), "i4")}
        answer = (await far.submit(Submission(inputs))).outputs
        assert (answer["OUTPUT0"] == inputs["INPUT0"] + 1).all() and (answer["OUTPUT1"] == inputs["INPUT0"] - 1).all()
        with pytest.raises(CallError) as refused:
            await far.submit(Submission({name: np.repeat(array, 50, axis=0) for name, array in inputs.items()}))
        assert refused.value.code == "remote_refused"
        await far.close()

    asyncio.run(scene())


def test_a_model_that_does_not_fit_is_said_at_the_start(simple: RunningMesh) -> None:
    async def scene() -> None:
        for name, what in (("simple_string", "INPUT0 is BYTES there"), ("nobody", "does not answer")):
            with pytest.raises(StartError, match=what):
                await runner(simple, Sums(), name=name).start()
        with pytest.raises(StartError, match="does not answer"):
            await RemoteExecutor(Sums(), RemoteModel("http", "127.0.0.1:9", "x")).start()

    asyncio.run(scene())


class Silent:
    """A V2 server of three lines that never answers a call: what it heard of deadlines, and of who hung up."""

    def __init__(self) -> None:
        self.headers_seen: list[dict[str, Any]] = []
        self.leaves = False
        self.gone = asyncio.Event()
        self.came = asyncio.Event()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        if head.startswith("get"):
            reply = json.dumps({"name": "x", "inputs": [], "outputs": []}).encode()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(reply) + reply)
            await writer.drain()
            writer.close()
            return
        fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
        whole = await reader.readexactly(int(fields["content-length"]))
        self.headers_seen.append(json.loads(whole[: int(fields["inference-header-content-length"])]))
        assert whole[int(fields["inference-header-content-length"]) :] == b"\1\1\1"
        self.came.set()
        if not self.leaves:
            await reader.read()
        self.gone.set()
        writer.close()


@asynccontextmanager
async def silent() -> AsyncIterator[tuple[Silent, RemoteExecutor]]:
    heard = Silent()
    server = await asyncio.start_server(heard.answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    far = RemoteExecutor(Far(), RemoteModel.read(f"http://127.0.0.1:{port}/v2/models/x/versions/3"))
    await far.start()
    async with server:
        yield heard, far
        await far.close()


def test_a_deadline_and_a_hang_up_reach_the_other_server() -> None:
    async def scene() -> None:
        async with silent() as (heard, far):
            with pytest.raises(CallError) as late:
                await far.submit(Submission(Far().example(), timeout_s=0.3))
            assert late.value.code == "deadline"
            async with asyncio.timeout(60):
                await heard.gone.wait()
            assert heard.headers_seen[0]["parameters"]["timeout"] == 300_000
            heard.gone.clear()
            heard.came.clear()
            call = asyncio.create_task(far.submit(Submission(Far().example())))
            async with asyncio.timeout(60):
                await heard.came.wait()
                assert far.waiting == 1
                call.cancel()
                await heard.gone.wait()
            assert far.waiting == 0

    asyncio.run(scene())


def test_a_server_that_goes_is_unavailable_and_a_full_queue_is_said() -> None:
    async def scene() -> None:
        async with silent() as (_, far):
            calls = [asyncio.create_task(far.submit(Submission(Far().example(), "0xa"))) for _ in range(64)]
            await asyncio.sleep(0)
            with pytest.raises(CallError) as full:
                far.admit("0xa")
            far.admit("0xb")
            assert full.value.code == "queue_full"
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
        async with silent() as (server, far):
            server.leaves = True
            with pytest.raises(CallError) as gone:
                await far.submit(Submission(Far().example()))
            assert gone.value.code == "remote_unavailable"

    asyncio.run(scene())


ONE = Tensor("A", "FP32", [3, -1])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"A": ("FP32", [-1, 3, -1])}, ""),
        ({}, ""),
        ({"A": ("FP32", [-1, -1, -1]), "B": ("FP32", [1])}, ""),
        ({"B": ("FP32", [-1, 3, -1])}, "it has no A, only B"),
        ({"A": ("FP64", [-1, 3, -1])}, "A is FP64 there, and FP32 here"),
        ({"A": ("FP32", [3, -1])}, "takes no batches"),
        ({"A": ("FP32", [-1, 3])}, "is [-1, 3] there"),
        ({"A": ("FP32", [-1, 3, 8])}, "is [-1, 3, 8] there"),
    ],
)
def test_metadata_is_held_against_the_declaration(rows: dict[str, tuple[str, list[int]]], message: str) -> None:
    assert (message in mismatch([ONE], rows)) if message else mismatch([ONE], rows) == ""


@pytest.mark.parametrize(
    "url",
    ["", "http://host", "ftp://h/v2/models/x", "http://h/v2/models/", "http://u:p@h/v2/models/x",
     "http://h/v2/models/x/infer", "http://h:port/v2/models/x", "http://h/v2/models/x?y"],
)  # fmt: skip
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(StartError, match="LEBEN_REMOTES"):
        RemoteModel.read(url)


def test_an_address() -> None:
    assert RemoteModel.read("http://h/v2/models/a%20b") == RemoteModel("http", "h:80", "a b")
    assert RemoteModel.read("grpcs://h:1/v2/models/x/versions/2") == RemoteModel("grpcs", "h:1", "x", "2")
