"""Checks the spans of real calls at an OTLP receiver: the steps, below the caller's trace, without its words."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

from channels.payer import Wallet, receipt
from serving.replica.deployment import Replica
from serving.telemetry import tracing
from tests.serving.conftest import replica

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GOOD = {"inputs": [{"name": "X", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}], "id": "Jane Doe"}
UNLUCKY = {"inputs": [{"name": "X", "datatype": "FP32", "shape": [1, 2], "data": [13, 2]}]}


@pytest.fixture
def collector() -> Iterator[tuple[str, list[bytes]]]:
    """An OTLP receiver: its address, and the bodies that it got."""
    got: list[bytes] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *words: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1/traces", got
    finally:
        tracing.end()
        server.shutdown()
        server.server_close()


def spans(bodies: list[bytes]) -> list[Any]:
    exported = []
    for body in bodies:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            exported += [span for scope in resource.scope_spans for span in scope.spans]
    return exported


def test_a_call_is_seen_from_the_door_to_the_device_under_its_callers_trace(
    collector: tuple[str, list[bytes]], wallet: Wallet
) -> None:
    address, bodies = collector
    tracing.begin("doubler", "1.0.0", 1.0, address)

    async def run() -> str:
        async with replica() as bench, bench.client(wallet) as client:
            headers = {"traceparent": f"00-{TRACE}-{PARENT}-00", "Idempotency-Key": "jane-doe-1970"}
            answer = await client.post("/infer", json=GOOD, headers=headers)
            assert (await client.post("/infer", json=UNLUCKY, headers={"traceparent": ""})).status_code == 500
            return receipt(answer).receipt.call_id

    call_id = asyncio.run(run())
    tracing.end()
    exported = spans(bodies)
    ours = [span for span in exported if span.trace_id.hex() == TRACE]
    door = next(span for span in ours if span.name == "infer" and _facts(span).get("leben.status") == 200)
    assert door.parent_span_id.hex() == PARENT and _facts(door)["leben.call"] == call_id
    below = {span.name: span for span in ours if span.parent_span_id == door.span_id}
    assert {"hold", "work", "charge"} <= set(below)
    inner = {span.name: span for span in ours if span.parent_span_id == below["work"].span_id}
    assert {"queue", "device"} <= set(inner)
    in_turn = [below["hold"], inner["queue"], inner["device"], below["charge"]]
    for earlier, later in pairwise(in_turn):
        assert earlier.start_time_unix_nano <= earlier.end_time_unix_nano
        assert earlier.start_time_unix_nano <= later.start_time_unix_nano
    sent = b"".join(bodies).lower()
    assert not [word for word in (b"jane", b"1970", b"unlucky", wallet.address.lower().encode()) if word in sent]


def test_a_replica_that_ends_exports_the_spans_that_are_still_buffered(collector: tuple[str, list[bytes]]) -> None:
    address, bodies = collector
    tracing.begin("doubler", "1.0.0", 1.0, address)
    with tracing.call({}, "infer"):
        assert not bodies
    plain = Replica.func_or_class.__mro__[1]  # type: ignore[attr-defined] # the class without Ray's wrapper
    asyncio.run(plain.__del__(None))
    assert [span.name for span in spans(bodies)] == ["infer"]


@pytest.mark.parametrize("flag", ["00", "01"])
def test_a_caller_cannot_have_its_calls_traced(flag: str, collector: tuple[str, list[bytes]], wallet: Wallet) -> None:
    address, bodies = collector
    tracing.begin("doubler", "1.0.0", 1e-9, address)

    async def run() -> None:
        async with replica() as bench, bench.client(wallet) as client:
            headers = {"traceparent": f"00-{TRACE}-{PARENT}-{flag}"}
            assert (await client.post("/infer", json=GOOD, headers=headers)).status_code == 200

    asyncio.run(run())
    tracing.end()
    assert spans(bodies) == []


def _facts(span: Any) -> dict[str, Any]:
    return {
        fact.key: fact.value.string_value or fact.value.int_value or fact.value.double_value for fact in span.attributes
    }


@pytest.mark.parametrize("flags", [0, 1], ids=["unset", "sampled"])
def test_no_caller_chooses_whether_it_is_traced(flags: int) -> None:
    """An id whose low half is 0 is below every ratio: a sampler that goes by the id would keep all of its calls."""
    parent = SpanContext(1 << 64, 1, is_remote=True, trace_flags=TraceFlags(flags))
    context = set_span_in_context(NonRecordingSpan(parent))
    chosen = [tracing.sampler(0.5).should_sample(context, 1 << 64, "infer").decision for _ in range(2000)]
    traced = sum(decision is Decision.RECORD_AND_SAMPLE for decision in chosen)
    assert 800 < traced < 1200
