"""Traces sampled calls with OpenTelemetry, from their arrival to the device; off by default.

A span holds ids, sizes, codes and times, and nothing that a caller wrote. A caller's `traceparent` is continued, so
that its trace contains our spans, but the mesh alone decides which calls are sampled: no caller can have all traced.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from serving.telemetry.calls import CallRecord

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.sampling import Sampler
    from opentelemetry.trace import Tracer

Fact = str | int | float
_provider: TracerProvider | None = None
_tracer: Tracer | None = None


def begin(dapp: str, version: str, sample: float, endpoint: str) -> None:
    """Traces this process's calls from now on.

    Args:
        dapp: the DApp that it serves.
        version: of the DApp.
        sample: fraction of all calls that is traced, 0 to 1; 0 leaves tracing off.
        endpoint: OTLP over HTTP, ``http://host:4318/v1/traces``.
    """
    global _provider, _tracer
    if not sample:
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    names = {"service.name": "leben", "leben.dapp": dapp, "leben.version": version}
    _provider = TracerProvider(sampler=sampler(sample), resource=Resource.create(names))
    _provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))
    _tracer = _provider.get_tracer("leben")


def sampler(sample: float) -> Sampler:
    """Chooses this fraction of calls by chance, whatever id or flag a caller sends.

    A caller chooses the id of its trace: a choice by the id, as is usual, would let it have every call traced. Spans
    below our own follow the first one's choice.
    """
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

    class ByChance(TraceIdRatioBased):
        def should_sample(self, parent_context: Any, trace_id: int, *rest: Any, **named: Any) -> Any:
            return super().should_sample(parent_context, random.getrandbits(128), *rest, **named)

    chance = ByChance(sample)
    return ParentBased(chance, remote_parent_sampled=chance, remote_parent_not_sampled=chance)


def end() -> None:
    """Exports the spans that are still buffered, and stops tracing."""
    global _provider, _tracer
    if _provider is not None:
        _provider.shutdown()
    _provider = _tracer = None


@contextmanager
def call(headers: Mapping[str, str], route: str) -> Iterator[None]:
    """Opens the span of a whole call, below the span that its caller names."""
    if _tracer is None:
        yield
        return
    from opentelemetry.propagators.textmap import DefaultGetter
    from opentelemetry.trace import SpanKind
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier = {"traceparent": headers["traceparent"]} if "traceparent" in headers else {}
    parent = TraceContextTextMapPropagator().extract(carrier, getter=DefaultGetter())
    with _tracer.start_as_current_span(route, parent, SpanKind.SERVER, record_exception=False):
        yield


@contextmanager
def span(name: str) -> Iterator[None]:
    """Opens the span of one step; the text of an error may quote an input and is not recorded."""
    if _tracer is None:
        yield
        return
    with _tracer.start_as_current_span(name, record_exception=False, set_status_on_exception=False):
        yield


def finish(record: CallRecord, status: int) -> None:
    """Writes what is known of a call into its span; status 0: its caller has gone."""
    if _tracer is None:
        return
    from opentelemetry.trace import get_current_span

    facts: dict[str, Fact] = {"leben.call": record.call_id, "leben.code": record.code, "leben.status": status}
    get_current_span().set_attributes({name: value for name, value in facts.items() if value})


def past(name: str, began_ns: int, ended_ns: int, **facts: Fact) -> None:
    """Adds the span of a step that ran outside the call's task, by the wall clock in Unix nanoseconds."""
    if _tracer is not None and began_ns:
        named = {f"leben.{key}": value for key, value in facts.items()}
        _tracer.start_span(name, attributes=named, start_time=began_ns).end(ended_ns)
