"""Spans of a call, from the door to the device, for whoever looks where its time went. Off unless calls are sampled.

A span holds ids, sizes, codes and times and nothing that a caller wrote; a caller's `traceparent` is continued, so that
its own trace shows ours, but whether it is kept is the mesh's choice: a caller cannot make us trace everything.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Tracer

Fact = str | int | float
_provider: TracerProvider | None = None
_tracer: Tracer | None = None


def begin(dapp: str, version: str, sample: float, endpoint: str) -> None:
    """Traces this process's calls from now on.

    Args:
        dapp: the DApp that it serves.
        version: of the DApp.
        sample: part of all calls that is traced, 0 to 1; 0 leaves tracing off.
        endpoint: OTLP over HTTP, ``http://host:4318/v1/traces``.
    """
    global _provider, _tracer
    if not sample:
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

    part = TraceIdRatioBased(sample)
    # By the trace's number alone, whatever a caller's flag says; below our own spans the first one's choice holds.
    sampler = ParentBased(part, remote_parent_sampled=part, remote_parent_not_sampled=part)
    names = {"service.name": "leben", "leben.dapp": dapp, "leben.version": version}
    _provider = TracerProvider(sampler=sampler, resource=Resource.create(names))
    _provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))
    _tracer = _provider.get_tracer("leben")


def end() -> None:
    """Sends what has not been sent, and stops."""
    global _provider, _tracer
    if _provider is not None:
        _provider.shutdown()
    _provider = _tracer = None


@contextmanager
def call(headers: Mapping[str, str], route: str) -> Iterator[None]:
    """The span of a whole call, under its caller's, if that named one."""
    if _tracer is None:
        yield
        return
    from opentelemetry.propagators.textmap import DefaultGetter
    from opentelemetry.trace import SpanKind
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    known = {"traceparent": headers["traceparent"]} if "traceparent" in headers else {}
    parent = TraceContextTextMapPropagator().extract(known, getter=DefaultGetter())
    with _tracer.start_as_current_span(route, parent, SpanKind.SERVER, record_exception=False):
        yield


@contextmanager
def span(name: str) -> Iterator[None]:
    """A step of the call that runs; an error's text, which may quote an input, stays out of it."""
    if _tracer is None:
        yield
        return
    with _tracer.start_as_current_span(name, record_exception=False, set_status_on_exception=False):
        yield


def fact(name: str, value: Fact) -> None:
    """Tells something of the step that runs."""
    if _tracer is not None:
        from opentelemetry.trace import get_current_span

        get_current_span().set_attribute(f"leben.{name}", value)


def past(name: str, began_ns: int, ended_ns: int, **facts: Fact) -> None:
    """A step that is over, by the wall clock: one that ran outside of the call's own task."""
    if _tracer is not None and began_ns:
        named = {f"leben.{key}": value for key, value in facts.items()}
        _tracer.start_span(name, attributes=named, start_time=began_ns).end(ended_ns)
