"""`Replica`: one DApp in one Ray Serve replica: door, paywall, batcher and runner, put together.

Holds a store connection and the receipt key, and nothing else of value. It is ready only after the model has answered
its own example.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import orjson
from ray import serve
from ray.util import get_node_ip_address as address

from channels.metering import ClockSkewMonitor, Meter, Quote
from channels.protocol import Signer
from channels.redis_store import RedisStore
from dapps import DApp
from dapps.api import Configuration, Declared, put
from dapps.packages import import_path, registry
from serving.cluster.refusal_log import quiet_refusals
from serving.config import Settings
from serving.device import TorchRunner
from serving.errors import StartError
from serving.execution import Batcher, ChildCall, ChildResult, Remote, RemoteExecutor, UnbatchedExecutor
from serving.isolation.dapp import IsolatedDApp, open_dapp
from serving.isolation.runner import IsolatedRunner
from serving.protocol import Response
from serving.replica import user_config
from serving.replica.audit import AuditMiddleware
from serving.replica.http import Door
from serving.replica.paywall import Paywall
from serving.replica.spec import ReplicaSpec, made
from serving.telemetry import AuditLog, Execution, Gpus, RedisCounters, Statistics, tracing
from serving.telemetry.metrics import Metrics
from serving.treasury import deposit, recall, refund

IDLE_CHECK_S = 30.0
FULL_COLLECTIONS = 100
"""Of so many collections of Python's middle generation the last is followed by a full one; usual is ten. That one goes
through all calls that wait here, 50 ms when the queue is full, and nobody is answered meanwhile. What a start has made
Serve keeps out of it.
"""


@serve.deployment
@serve.ingress()
class Replica:
    """The deployment of one DApp."""

    async def __init__(self, spec: ReplicaSpec) -> None:  # type: ignore[misc] # Serve awaits it
        # To start a child and read what it declares takes longer than the loop may be held.
        dapp = await asyncio.to_thread(_opened, spec)
        quiet_refusals()
        tracing.begin(spec.dapp, dapp.version, spec.trace_sample, spec.trace_endpoint)
        signer = Signer(bytes.fromhex(spec.receipt_key.get_secret_value()))
        self._store = RedisStore(
            spec.store_url.get_secret_value(), spec.exposure_cap, abandoned_limit=spec.abandoned_limit
        )
        await ClockSkewMonitor(self._store).check_at_start()
        meter = Meter(self._store, signer, spec.payee.chain_id, deposit, refund, recall=recall)
        most_rows = spec.maximum_batch or dapp.maximum_batch
        self._spec, self._dapp, self._declared = spec, dapp, Declared.of(dapp, most_rows)
        name = registry.public(spec.dapp)
        self._metrics = Metrics(name, dapp.version, most_rows)
        self._statistics = Statistics(RedisCounters(spec.store_url.get_secret_value(), spec.dapp), self._metrics)
        self._paywall = Paywall(dapp, name, meter, self._quote(), spec.shares, signer, self._statistics)
        self._runner: TorchRunner | IsolatedRunner | UnbatchedExecutor | RemoteExecutor
        self._batcher: Batcher | UnbatchedExecutor | RemoteExecutor
        if spec.remote:
            where, key = Remote.read(spec.remote), spec.remote_key.get_secret_value()
            self._runner = self._batcher = RemoteExecutor(dapp, where, key, self._executed)
        elif dapp.calls:
            self._runner = self._batcher = UnbatchedExecutor(dapp, spec.torch_threads, self._executed)
        else:
            self._runner = runner_of(dapp, spec.torch_threads, most_rows, spec.optimizations)
            self._batcher = Batcher(self._runner, most_rows, observe=self._executed)
        facts = (spec.maximum_body_bytes, self._statistics, most_rows)
        self._door = Door(name, dapp, self._paywall, self._batcher, *facts, _reach)
        self._app = self._door.app()
        self._audited: AuditMiddleware | None = None
        if spec.audit:
            self._app = self._audited = AuditMiddleware(self._app, name, AuditLog(Settings().audit, spec.dapp))
        self.device = await self._runner.start()
        self._cards = await asyncio.to_thread(Gpus) if self.device == "cuda" else None
        self._batcher.depth = self._runner.depth
        self._alone = bool(dapp.calls or spec.remote)
        if dapp.calls:
            await self._door.warm()
        self._example = dapp.example()
        self._checked_s = time.monotonic()
        gc.set_threshold(*gc.get_threshold()[:2], FULL_COLLECTIONS)

    async def reconfigure(self, config: dict[str, Any]) -> None:
        """Serve calls it at the start, and whenever the configuration alone has changed; see `dapps.api.configuration`.

        Calls that run are answered and charged as they were quoted; calls that come meanwhile wait.
        """
        force = Configuration.from_json(user_config.configuration(config)).applied(self._declared)
        async with self._paywall.gate.closed():
            put(self._dapp, force)
            await asyncio.to_thread(lambda: self._dapp.provenance)  # reads the package's files
            self._paywall.requote(self._quote())
            self._batcher.bound(force.maximum_batch)
            self._door.renew(force.maximum_batch)

    def _quote(self) -> Quote:
        spec, most = self._spec, self._dapp.price.max_price
        terms = _terms(self._dapp, spec.shares)
        return Quote(spec.payee, most, minimum_deposit=most * spec.deposit_calls, terms=terms)

    def __serve_build_asgi_app__(self) -> Any:
        return self._app

    @property
    def docs_path(self) -> str:
        """Serve tells it of the application; without this, only of FastAPI's."""
        return user_config.DOCS

    async def grpc(self, headers: dict[str, str], body: bytes, version: str) -> Response:
        """Answers a call of the gRPC server: metadata as headers, the message as body; a refusal's body is JSON."""
        began_s, response = time.perf_counter(), Response(0, b"")
        try:
            response = await self._door.grpc(headers, body, version)
            return response
        finally:
            if self._audited is not None:
                took_s = time.perf_counter() - began_s
                sent = dict(response.headers)
                self._audited.told("infer", len(body), response.status, sent, response.body, took_s)

    async def sampled(self, sample: str, view: str) -> Response:
        """The answer to one of the DApp's own samples, see `Samples.answer`.

        Raises:
            CallError: `not_found`.
        """
        return await self._door.samples.answer(sample, view)

    async def errand(self, errand: ChildCall) -> ChildResult | tuple[str, str]:
        """What another DApp asks of this one, see `Door.errand`; no route leads here."""
        return await self._door.errand(errand)

    async def facts(self, what: str, version: str) -> dict[str, Any]:
        """See `Door.facts`.

        Raises:
            CallError: `unknown_version` or `busy`.
        """
        return await self._door.facts(what, version)

    def _executed(self, execution: Execution) -> None:
        self._checked_s = time.monotonic()
        self._statistics.executed(execution)
        self._metrics.waiting(self._batcher.waiting)

    async def check_health(self) -> None:
        """A real inference when there was none for a while: a process that cannot compute is not healthy."""
        self._runner.healthy()
        self._metrics.waiting(self._batcher.waiting)
        self._metrics.memory(self._runner.memory_bytes())
        if self._cards is not None:
            self._metrics.cards(await asyncio.to_thread(self._cards.read))
        if not self._alone and time.monotonic() - self._checked_s > IDLE_CHECK_S:
            await self._batcher.submit(self._example, "health check", timeout_s=20.0)


def runner_of(
    dapp: DApp, threads: int = 0, maximum_batch: int = 0, optimizations: Sequence[str] | None = None
) -> TorchRunner | IsolatedRunner:
    """What runs a DApp's batches: its own process if it is isolated, else this one."""
    kind = IsolatedRunner if isinstance(dapp, IsolatedDApp) else TorchRunner
    return kind(dapp, threads=threads, maximum_batch=maximum_batch, optimizations=optimizations)  # type: ignore[arg-type]


def _opened(spec: ReplicaSpec) -> DApp:
    """The DApp as this node has it.

    Raises:
        StartError: it is not here, or another one than the mesh serves.
    """
    here, node = Settings(), address()  # type: ignore[no-untyped-call]
    folder = here.packages / spec.package if spec.package else None
    if folder is not None and not folder.is_dir():
        raise StartError(f"{node} has no {folder}: copy it from the packages of the head")
    if spec.isolation:
        hidden = (str(here.home), str(here.runtime))
        return open_dapp(replace(spec.isolation, hidden=hidden, package=str(folder or "")))
    if folder is not None:
        import_path.show(folder)
    dapp = registry.load(spec.dapp)
    if spec.made and spec.made != made(dapp):
        raise StartError(f"{node} has another {spec.dapp} than the head: install the same package there")
    return dapp


async def _reach(name: str, errand: ChildCall) -> ChildResult | tuple[str, str]:
    """Takes an errand to the replica of another DApp."""
    # By the application, not by its class: to know that would be to load it, and the other may be isolated.
    handle = serve.get_app_handle(name)
    told: ChildResult | tuple[str, str] = await handle.errand.remote(errand)
    return told


def _terms(dapp: DApp, shares: tuple[tuple[str, str, int], ...]) -> str:
    """A digest of prices and shares: when they change, calls that were quoted the old ones are quoted anew."""
    price = dapp.price
    terms = [price.per_item, price.maximum_items, price.guideline_only, [list(row) for row in shares]]
    if price.per_gpu_second:
        terms += [price.per_gpu_second, price.max_price]
    return hashlib.sha256(orjson.dumps(terms)).hexdigest()[:16]
