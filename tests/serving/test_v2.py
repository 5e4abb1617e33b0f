"""Checks V2's other routes on one replica: metadata, statistics, compression, web pages, gRPC, and free DApps."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from redis.asyncio import Redis
from tritonclient.grpc.service_pb2 import ModelInferRequest, ModelInferResponse

from channels.payer import ChannelAuth, Wallet
from channels.protocol.digests import voucher_digest
from channels.protocol.x402 import Payment, Voucher, decode_header
from dapps import Price
from serving.errors import CallError
from serving.protocol.bodies import KEPT_BODIES
from serving.protocol.compression import FREE_BYTES, MAX_MEMBERS, MAX_RATIO, chosen, inflate
from serving.protocol.refusals import STATUS
from serving.replica.audit import AuditMiddleware
from serving.telemetry import CallRecord
from serving.telemetry.audit_log import AuditLog, chains, read
from serving.telemetry.statistics import RedisCounters, Statistics, key
from tests.serving.conftest import CHAIN
from tests.serving.test_http import GOOD

On = Callable[[Any], None]


def test_configuration_and_metadata_stand_with_and_without_a_version(on_replica: On) -> None:
    async def scenario(bench: Any) -> None:
        async with bench.client() as client:
            for path in ("/config", "/versions/1.0.0/config"):
                config = (await client.get(path)).json()
                assert config["max_batch_size"] == 4
                assert config["input"] == [{"name": "X", "data_type": "TYPE_FP32", "dims": [2]}]
            assert (await client.get("/versions/2/config")).json()["code"] == "unknown_version"
            assert (await client.get("/versions/1.0.0")).json()["inputs"][0]["shape"] == [-1, 2]

    on_replica(scenario)


def test_statistics_count_what_was_answered_what_failed_and_the_batches(on_replica: On, wallet: Wallet) -> None:
    async def scenario(bench: Any) -> None:
        async with bench.client(wallet) as client:
            assert (await client.post("/infer", json=GOOD)).status_code == 200
            assert (await client.post("/infer", content=b"{")).status_code == 400
            (row,) = (await client.get("/stats")).json()["model_stats"]
        stats = row["inference_stats"]
        assert (row["inference_count"], row["execution_count"]) == (1, 1)
        assert (stats["success"]["count"], stats["fail"]["count"], stats["queue"]["count"]) == (1, 1, 1)
        assert stats["success"]["ns"] >= stats["compute_infer"]["ns"] > 0
        assert [batch["batch_size"] for batch in row["batch_stats"]] == [1]
        assert abs(row["last_inference"] / 1000 - time.time()) < 60

    on_replica(scenario)


def test_statistics_of_two_replicas_add_up_in_the_store(store_url: str) -> None:
    async def run() -> None:
        counters = [RedisCounters(store_url, "doubler") for _ in range(2)]
        first, second = map(Statistics, counters)
        for _ in range(3):
            first.finished(CallRecord("infer", computed=True, work_ns=5, input_ns=1, output_ns=1))
        second.finished(CallRecord("infer", computed=True, work_ns=7, input_ns=1, output_ns=1))
        await first.read("doubler", "1")
        stats = (await second.read("doubler", "1"))["inference_stats"]
        assert stats["success"] == {"count": 4, "ns": 22}
        async with Redis.from_url(store_url) as redis:
            assert await redis.keys("*") == [key("doubler").encode()]
        for counter in counters:
            await counter.close()

    asyncio.run(run())


def test_a_store_that_is_away_costs_no_count() -> None:
    async def run() -> None:
        statistics = Statistics(RedisCounters("unix:///nowhere/v.sock", "doubler"))
        statistics.finished(CallRecord("infer", computed=True, work_ns=5))
        with pytest.raises(CallError, match="store") as refused:
            await statistics.read("doubler", "1")
        assert STATUS[refused.value.code] == 503
        assert statistics.unwritten["success.count"] == 1

    asyncio.run(run())


LARGE = {"inputs": [GOOD["inputs"][0] | {"shape": [4, 2], "data": [0.5] * 8}], "id": "x" * 250}
CODINGS = [
    pytest.param("gzip", gzip.compress, id="gzip"),
    pytest.param("x-gzip", gzip.compress, id="x-gzip"),
    pytest.param("deflate", zlib.compress, id="deflate"),
]


@pytest.mark.parametrize(("coding", "compress"), CODINGS)
def test_compressed_bodies_are_read(on_replica: On, wallet: Wallet, coding: str, compress: Any) -> None:
    async def scenario(bench: Any) -> None:
        async with bench.client(wallet) as client:
            body, headers = compress(json.dumps(LARGE).encode()), {"Content-Encoding": coding}
            answer = await client.post("/infer", content=body, headers=headers)
            assert answer.status_code == 200 and answer.json()["outputs"][0]["data"] == [1.0] * 8
            file = await client.post("/diagnose", content=compress(b"21"), headers=headers)
            assert file.json()["summary"] == "doubled"

    on_replica(scenario)


BROKEN = [
    pytest.param("gzip", gzip.compress(bytes(100_001)), 413, id="opens to more than a body may be"),
    pytest.param("gzip", gzip.compress(gzip.compress(bytes(50_000_000))), 400, id="bomb within a bomb"),
    pytest.param("gzip", gzip.compress(b"{}")[:-3], 400, id="cut"),
    pytest.param("gzip", gzip.compress(b"{") * 15 + gzip.compress(b"}")[:-3], 400, id="cut in its last member"),
    pytest.param("gzip", gzip.compress(b"") * 1_000, 400, id="a thousand members"),
    pytest.param("gzip", gzip.compress(b"{}") + b"more", 400, id="something after it"),
    pytest.param("deflate", b"\0\1\2", 400, id="not deflate"),
    pytest.param("deflate", zlib.compress(b"{") + zlib.compress(b"}"), 400, id="deflate has one member"),
    pytest.param("br", b"x", 415, id="unknown coding"),
]


@pytest.mark.parametrize(("coding", "body", "status"), BROKEN)
def test_bad_compression_is_refused_and_costs_nothing(
    on_replica: On, wallet: Wallet, coding: str, body: bytes, status: int
) -> None:
    async def scenario(bench: Any) -> None:
        async with bench.client(wallet) as client:
            answer = await client.post("/infer", content=body, headers={"Content-Encoding": coding})
        assert answer.status_code == status and answer.json()["error"]
        assert (bench.charged(), bench.held(), bench.door.bodies.kept_bytes) == (0, 0, 0)

    on_replica(scenario)


def test_a_body_inflates_freely_to_some_megabytes_and_beyond_them_a_hundredfold() -> None:
    zeros, noise = bytes(FREE_BYTES), os.urandom(1 << 20)
    assert inflate(gzip.compress(zeros), "gzip", 1 << 30) == zeros
    assert inflate(gzip.compress(noise + bytes(64 << 20)), "gzip", 1 << 30)[: 1 << 20] == noise
    with pytest.raises(CallError, match=f"{MAX_RATIO}-fold") as refused:
        inflate(gzip.compress(bytes(64 << 20)), "gzip", 1 << 30)
    assert refused.value.code == "body_too_large"
    halves = [gzip.compress(bytes(40 << 20)), gzip.compress(bytes(40 << 20))]
    with pytest.raises(CallError, match=f"{MAX_RATIO}-fold"):
        inflate(b"".join(halves), "gzip", 1 << 30)


def test_a_gzip_body_of_several_members_is_their_contents_in_order() -> None:
    members = [gzip.compress(str(number).encode()) for number in range(MAX_MEMBERS)]
    assert inflate(b"".join(members), "x-gzip", 100) == b"0123456789101112131415"
    with pytest.raises(CallError, match="at most 21 bytes"):
        inflate(b"".join(members), "gzip", 21)


def test_what_compressed_bodies_open_to_is_bounded_all_together(on_replica: On, wallet: Wallet) -> None:
    async def scenario(bench: Any) -> None:
        bench.door.bodies.kept_bytes = KEPT_BODIES * 100_000 - 50_000
        headers = {"Content-Encoding": "gzip"}
        async with bench.client(wallet) as client:
            answer = await client.post("/diagnose", content=gzip.compress(b"1" * 90_000), headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (503, "busy")
        assert bench.door.bodies.kept_bytes == KEPT_BODIES * 100_000 - 50_000

    on_replica(scenario)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_answers_are_compressed_for_who_asks_and_charged_as_the_plain_ones(
    on_replica: On, wallet: Wallet, coding: str
) -> None:
    async def scenario(bench: Any) -> None:
        bench.live.offer = replace(bench.live.offer, price=Price(100, maximum_items=300))
        rows = {"inputs": [GOOD["inputs"][0] | {"shape": [300, 2], "data": [0.5] * 600}]}
        async with bench.client(wallet) as client:
            headers = {"Accept-Encoding": coding, "Idempotency-Key": "one"}
            answer = await client.post("/infer", json=rows, headers=headers)
            again = await client.post("/infer", json=rows, headers=headers | {"Accept-Encoding": "identity"})
        assert answer.headers["content-encoding"] == coding and "content-encoding" not in again.headers
        assert answer.content == again.content and answer.json()["outputs"][0]["data"] == [1.0] * 600
        assert int(answer.headers["content-length"]) < int(again.headers["content-length"]) / 5

    on_replica(scenario)


@pytest.mark.parametrize(
    ("accepted", "binary", "coding"),
    [
        ("", False, ""),
        ("gzip", True, "gzip"),
        ("deflate", True, "deflate"),
        ("gzip, deflate, br", True, ""),
        ("br, gzip;q=0.5", False, "gzip"),
        ("gzip;q=0, deflate", False, "deflate"),
        ("x-gzip", False, "gzip"),
        ("identity", False, ""),
    ],
)
def test_which_answers_are_compressed(accepted: str, binary: bool, coding: str) -> None:
    assert chosen(accepted, binary) == coding


def test_web_pages_may_ask_pay_and_read_what_was_charged(on_replica: On, wallet: Wallet) -> None:
    async def scenario(bench: Any) -> None:
        preflight = {"Origin": "https://clinic.example", "Access-Control-Request-Method": "POST"}
        preflight["Access-Control-Request-Headers"] = "payment-signature,idempotency-key"
        async with bench.client() as client:
            allowed = await client.options("/infer", headers=preflight)
            quoted = await client.post("/infer", json=GOOD, headers={"Origin": "https://clinic.example"})
        assert allowed.status_code == 200 and "payment-signature" in allowed.headers["access-control-allow-headers"]
        assert quoted.status_code == 402 and quoted.headers["access-control-allow-origin"] == "*"
        exposed = quoted.headers["access-control-expose-headers"].lower()
        assert {"payment-required", "payment-response", "leben-receipt"} <= {
            name.strip() for name in exposed.split(",")
        }

    on_replica(scenario)


def test_a_timeout_of_the_caller_ends_the_wait_and_costs_nothing(on_replica: On, wallet: Wallet) -> None:
    async def scenario(bench: Any) -> None:
        release, entered = asyncio.Event(), asyncio.Event()
        run = bench.runner.run

        async def slow(inputs: Any) -> Any:
            entered.set()
            await release.wait()
            return await run(inputs)

        async with bench.client(wallet) as client:
            assert (await client.post("/infer", json=GOOD)).status_code == 200, "the channel is open"
            bench.runner.run = slow
            first = asyncio.create_task(client.post("/infer", json=GOOD))
            await entered.wait()
            late = await client.post("/infer", json=GOOD | {"parameters": {"timeout": 20_000, "priority": 1}})
            release.set()
            assert (late.status_code, late.json()["code"]) == (504, "deadline")
            assert (await first).status_code == 200
        assert bench.charged() == 200

    on_replica(scenario)


def test_a_dapp_that_costs_nothing_asks_for_nothing_and_takes_no_deposit(on_replica: On, wallet: Wallet) -> None:
    async def scenario(bench: Any) -> None:
        async with bench.client(wallet) as payer:
            paid = (await payer.post("/infer", json=GOOD)).request.headers["payment-signature"]
        deposits = len(bench.deposits)
        bench.live.offer = replace(bench.live.offer, quote=replace(bench.live.offer.quote, amount=0))
        transport = httpx.ASGITransport(bench.door.app())
        async with httpx.AsyncClient(transport=transport, base_url="http://mesh") as client:
            for headers in ({}, {"PAYMENT-SIGNATURE": paid}, {"PAYMENT-SIGNATURE": "nonsense"}):
                answer = await client.post("/infer", json=GOOD, headers=headers)
                assert answer.status_code == 200 and answer.json()["outputs"][0]["data"] == [2.0, 4.0]
                assert not {"payment-response", "leben-receipt", "payment-required"} & set(answer.headers)
            assert (await client.post("/infer", content=b"{")).status_code == 400
            answer = await client.get("/infer")
            assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
        assert (bench.charged(), len(bench.deposits)) == (100, deposits)

    on_replica(scenario)


def test_an_auth_is_not_asked_for_by_what_is_free(on_replica: On, wallet: Wallet) -> None:
    async def scenario(bench: Any) -> None:
        auth = ChannelAuth(wallet)
        transport = httpx.ASGITransport(bench.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://mesh", auth=auth) as client:
            for path in ("/", "/ready", "/config", "/stats"):
                assert (await client.get(path)).status_code == 200
        assert not auth.channels

    on_replica(scenario)


def message(*values: float) -> bytes:
    request = ModelInferRequest(model_name="doubler", id="one")
    request.inputs.add(name="X", datatype="FP32", shape=[1, 2]).contents.fp32_contents.extend(values)
    return bytes(request.SerializeToString())


def test_a_call_through_the_grpc_door_meets_the_same_paywall(on_replica: On, wallet: Wallet, tmp_path: Path) -> None:
    async def scenario(bench: Any) -> None:
        log = AuditLog(tmp_path, "doubler")
        audited = AuditMiddleware(bench.app, "doubler", log)
        async with bench.client(wallet) as client:
            sent = (await client.post("/infer", json=GOOD)).request.headers
            auth: Any = client.auth
            (channel,) = auth.channels.values()
            (quote,) = auth.quotes.values()

            def paid(key: str) -> dict[str, str]:
                ceiling = channel.max_claimable_with(key, 400) + 1_000
                signature = wallet.signer.sign(voucher_digest(CHAIN, channel.id, ceiling))
                payment = Payment("voucher", quote, channel.config, Voucher(channel.id, ceiling, signature))
                return {"payment-signature": payment.to_header(), "idempotency-key": key}

            answer = await bench.door.grpc({}, message(1, 2), "", CallRecord("infer"))
            assert answer.status == 402 and decode_header(answer.headers["payment-required"])["accepts"]
            assert (await bench.door.grpc(paid("a"), message(1, 2), "2", CallRecord("infer"))).status == 404
            charged, refused = CallRecord("infer"), CallRecord("infer")
            answer = await bench.door.grpc(paid("a"), message(1, 2), "1.0.0", charged)
            again = await bench.door.grpc(paid("a"), message(1, 2), "", CallRecord("infer"))
            other = await bench.door.grpc(paid("a"), message(1, 3), "", refused)
            bad = await bench.door.grpc(paid("b"), b"\xff", "", CallRecord("infer"))
            foreign = {"payment-signature": sent["payment-signature"], "idempotency-key": sent["idempotency-key"]}
            crossed = await bench.door.grpc(foreign, message(1, 2), "", CallRecord("infer"))
        assert ModelInferResponse.FromString(answer.body).raw_output_contents[0] == np.array([2, 4], "<f4").tobytes()
        assert answer.body == again.body and answer.headers["leben-receipt"] == again.headers["leben-receipt"]
        assert (other.status, bad.status, crossed.status) == (409, 400, 409)
        assert (bench.charged(), bench.held()) == (200, 0)
        audited.write(charged, answer.status, bytes_in=40, bytes_out=len(answer.body), took_s=0.01)
        audited.write(refused, other.status, bytes_in=40, bytes_out=len(other.body), took_s=0.01)
        log.close()
        first, second = [line for chain in chains(tmp_path) for line in read(chain)]
        assert (first["status"], first["charged"], first["payer"]) == (200, "100", wallet.address)
        assert (second["status"], second["code"]) == (409, "other_request")

    on_replica(scenario)


def test_a_refund_by_grpc_is_an_empty_message_and_moves_no_more_than_by_http(on_replica: On, wallet: Wallet) -> None:
    """The bench has no ledger to refund from: what matters is that the refusal comes, and as one."""

    async def scenario(bench: Any) -> None:
        async with bench.client(wallet) as client:
            assert (await client.post("/infer", json=GOOD)).status_code == 200
            auth: Any = client.auth
            (channel,) = auth.channels.values()
            (quote,) = auth.quotes.values()
        signature = wallet.signer.sign(voucher_digest(CHAIN, channel.id, channel.charged))
        voucher = Voucher(channel.id, channel.charged, signature)
        header = Payment("refund", quote, channel.config, voucher, None, 10).to_header()
        by_grpc = await bench.door.grpc({"payment-signature": header}, message(1, 2), "", CallRecord("infer"))
        async with bench.client() as client:
            by_http = await client.get("/infer", headers={"PAYMENT-SIGNATURE": header})
        assert by_grpc.status == by_http.status_code >= 400 and by_grpc.body == by_http.content

    on_replica(scenario)
