"""Runs one DApp in one Ray Serve replica: HTTP application, paywall, inference and executor, put together.

A replica holds a store connection and the receipt key, and nothing else of value. It is ready once the model has
answered its own example.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ray import serve
from ray.util import get_node_ip_address

from channels.metering import ClockSkewMonitor, Meter
from channels.protocol import Signer
from channels.redis_store import RedisStore
from dapps import ChildFailed, DApp
from dapps.api import Configuration, Declared, put
from dapps.packages import import_path, registry
from serving.cluster.refusal_log import quiet_refusals
from serving.config import Settings
from serving.device import TorchRunner
from serving.errors import CallError, StartError
from serving.execution import (
    BatchedExecutor,
    ChildCall,
    ChildResult,
    DeviceRunner,
    Executor,
    RemoteExecutor,
    RemoteModel,
    UnbatchedExecutor,
)
from serving.isolation.dapp import IsolatedDApp, open_dapp
from serving.isolation.runner import IsolatedRunner
from serving.protocol import Response
from serving.replica import memory, user_config
from serving.replica.audit import AuditMiddleware
from serving.replica.http import Door
from serving.replica.offer import LiveOffer, Offer, quote_of
from serving.replica.paywall import Paywall
from serving.replica.spec import ReplicaSpec, fingerprint
from serving.telemetry import AuditLog, CallRecord, Execution, Gpus, RedisCounters, Statistics, tracing
from serving.telemetry.metrics import Metrics
from serving.treasury import deposit, recall, refund

FULL_COLLECTIONS = 100
"""gc's threshold2, usually 10: a full collection visits every waiting call and pauses 50 ms when the queue is full."""


@serve.deployment
@serve.ingress()
class Replica:
    """The deployment of one DApp."""

    async def __init__(self, spec: ReplicaSpec) -> None:  # type: ignore[misc] # Serve awaits it
        memory.end_first()
        # Off the event loop: starting a child and reading its declaration takes longer than the loop may be held.
        dapp = await asyncio.to_thread(load_dapp, spec)
        quiet_refusals()
        tracing.begin(spec.dapp, dapp.version, spec.trace_sample, spec.trace_endpoint)
        signer = Signer(bytes.fromhex(spec.receipt_key.get_secret_value()))
        store_url = spec.store_url.get_secret_value()
        self.store = RedisStore(store_url, spec.exposure_cap, abandoned_limit=spec.abandoned_limit)
        await ClockSkewMonitor(self.store).check_at_start()
        meter = Meter(self.store, signer, spec.payee.chain_id, deposit, refund, recall=recall)
        self._spec, self._dapp = spec, dapp
        self._declared = Declared.of(dapp, spec.maximum_batch or dapp.maximum_batch)
        self._live = LiveOffer(await asyncio.to_thread(self._offer, self._declared.maximum_batch))
        name = self._live.offer.name
        self._metrics = Metrics(name, dapp.version, self._declared.maximum_batch)
        self._statistics = Statistics(RedisCounters(store_url, spec.dapp), self._metrics)
        self._executor = executor_of(dapp, spec, self._declared.maximum_batch, self._executed)
        device = await self._executor.start()
        self._door = Door(
            Paywall(self._live, meter, signer, self._statistics),
            self._executor,
            maximum_body_bytes=spec.maximum_body_bytes,
            children=_call_child,
            remote=bool(spec.remote),
        )
        self._app = self._door.app()
        self._audit: AuditMiddleware | None = None
        if spec.audit:
            self._app = self._audit = AuditMiddleware(self._app, name, AuditLog(Settings().audit, spec.dapp))
        self._gpus = await asyncio.to_thread(Gpus) if device == "cuda" else None
        if dapp.calls:
            await self._door.warm()
        gc.set_threshold(*gc.get_threshold()[:2], FULL_COLLECTIONS)

    async def __del__(self) -> None:  # Serve awaits it when the replica has answered its last call
        """Exports the spans that are still buffered."""
        await asyncio.to_thread(tracing.end)

    async def reconfigure(self, config: dict[str, Any]) -> None:
        """Puts a new configuration in force; Serve calls it at the start and when the configuration alone has changed.

        Running calls are answered and charged as they were quoted; calls that arrive meanwhile wait.
        See `dapps.api.configuration`.
        """
        force = Configuration.from_json(user_config.configuration(config)).applied(self._declared)
        async with self._live.lock.exclusive():
            put(self._dapp, force)
            self._live.offer = await asyncio.to_thread(self._offer, force.maximum_batch)
            self._executor.resize(force.maximum_batch)

    def _offer(self, maximum_batch: int) -> Offer:
        """The offer at the DApp's present price and thresholds; reads the package's files."""
        spec, dapp = self._spec, self._dapp
        quote = quote_of(dapp, spec.payee, spec.shares, spec.deposit_calls)
        return Offer.of(registry.public(spec.dapp), dapp, quote, spec.shares, maximum_batch)

    def __serve_build_asgi_app__(self) -> Any:
        return self._app

    @property
    def docs_path(self) -> str:
        """The path that Serve shows for the application; Serve itself finds only FastAPI's."""
        return user_config.DOCS

    async def grpc(self, headers: dict[str, str], body: bytes, version: str) -> Response:
        """Answers a call of the gRPC server: metadata as headers, the message as body; a refusal's body is JSON."""
        record, response, began_s = CallRecord("infer"), Response(0, b""), time.perf_counter()
        try:
            response = await self._door.grpc(headers, body, version, record)
            return response
        finally:
            if self._audit is not None:
                took_s = time.perf_counter() - began_s
                self._audit.write(record, response.status, len(body), len(response.body), took_s)

    async def sampled(self, sample: str, view: str) -> Response:
        """The answer to one of the DApp's own samples; see `Samples.answer`.

        Raises:
            CallError: `not_found`.
        """
        return await self._door.samples.answer(sample, view)

    async def child_call(self, call: ChildCall) -> ChildResult:
        """Answers another DApp's call; see `Door.child_call`. No route leads here.

        Raises:
            CallError: with the code of the refusal; unlike `ChildFailed` it survives the handle.
        """
        try:
            return await self._door.child_call(call)
        except ChildFailed as error:
            raise CallError(error.code, error.message) from None

    async def facts(self, what: str, version: str) -> dict[str, Any]:
        """See `Door.facts`.

        Raises:
            CallError: `unknown_version` or `busy`.
        """
        return await self._door.facts(what, version)

    def _executed(self, execution: Execution) -> None:
        self._statistics.executed(execution)
        self._metrics.waiting(self._executor.waiting)

    async def check_health(self) -> None:
        """Fails if the device cannot compute any more; Serve then replaces the replica."""
        self._metrics.waiting(self._executor.waiting)
        self._metrics.memory(self._executor.memory_bytes())
        if self._gpus is not None:
            self._metrics.gpus(await asyncio.to_thread(self._gpus.read))
        await self._executor.check()


def executor_of(dapp: DApp, spec: ReplicaSpec, maximum_batch: int, observe: Callable[[Execution], None]) -> Executor:
    """The executor of a DApp: on another server, one call at a time, or in batches."""
    if spec.remote:
        model = RemoteModel.read(spec.remote)
        return RemoteExecutor(dapp, model, spec.remote_key.get_secret_value(), observe)
    if dapp.calls:
        return UnbatchedExecutor(dapp, spec.torch_threads, observe)
    runner = runner_of(dapp, spec.torch_threads, maximum_batch, spec.optimizations)
    return BatchedExecutor(runner, dapp, maximum_batch, observe)


def runner_of(
    dapp: DApp, threads: int = 0, maximum_batch: int = 0, optimizations: Sequence[str] | None = None
) -> DeviceRunner:
    """What runs a DApp's batches: its child process if it is isolated, else a thread of this process."""
    if isinstance(dapp, IsolatedDApp):
        return IsolatedRunner(dapp, threads=threads, maximum_batch=maximum_batch, optimizations=optimizations)
    return TorchRunner(dapp, threads=threads, maximum_batch=maximum_batch, optimizations=optimizations)


def load_dapp(spec: ReplicaSpec) -> DApp:
    """Loads the DApp that this node has.

    Raises:
        StartError: it is not here, or differs from the one that the mesh serves.
    """
    settings, node = Settings(), get_node_ip_address()  # type: ignore[no-untyped-call]
    folder = settings.packages / spec.package if spec.package else None
    if folder is not None and not folder.is_dir():
        raise StartError(f"{node} has no {folder}: copy it from the packages of the head")
    if spec.isolation:
        hidden = (str(settings.home), str(settings.runtime))
        return open_dapp(replace(spec.isolation, hidden=hidden, package=str(folder or "")))
    if folder is not None:
        import_path.show(folder)
    dapp = registry.load(spec.dapp)
    if spec.fingerprint and spec.fingerprint != fingerprint(dapp):
        raise StartError(f"{node} has another {spec.dapp} than the head: install the same package there")
    return dapp


async def _call_child(name: str, call: ChildCall) -> ChildResult:
    """Carries a call to a replica of another DApp.

    Raises:
        ChildFailed: with the code of its refusal.
    """
    # By the application, not by its class: that would load it, and the other DApp may be isolated.
    handle = serve.get_app_handle(name)
    try:
        result: ChildResult = await handle.child_call.remote(call)
    except CallError as error:
        raise ChildFailed(error.code, error.message) from None
    return result
