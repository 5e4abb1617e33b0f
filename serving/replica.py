"""`Replica`: one DApp in one Ray Serve replica: door, paywall, batcher and runner, put together.

Holds a store connection and the receipt key, and nothing else of value. It is ready only after the model has answered
its own example. Next: `door.py`.
"""

from __future__ import annotations

import asyncio
import hashlib
import pickle
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson
import ray
from pydantic import SecretStr
from ray import serve

from channels.errors import LedgerError, NotReady
from channels.meter import Meter
from channels.quote import Movement, Payee, Quote
from channels.store_redis import RedisStore
from channels.voucher import Signer
from channels.x402 import Payment
from dapps import DApp, registry, shelf
from dapps.configuration import Configuration, Declared, put
from serving import tracing
from serving.audit import Audited
from serving.audit_log import AuditLog
from serving.batcher import Batcher, Execution
from serving.calls import CALL_TIMEOUT_S
from serving.composition import Errand, Returned
from serving.door import Door
from serving.errors import CallError, StartError, describe
from serving.isolated import IsolatedDApp, open_dapp
from serving.isolated_process import Isolation
from serving.isolated_runner import IsolatedRunner
from serving.metrics import Metrics
from serving.paywall import Paywall, Reply
from serving.runner import TorchRunner
from serving.scaling import Scale
from serving.solo import Solo
from serving.statistics import RedisCounters, Statistics
from serving.triton import Remote, TritonRunner

IDLE_CHECK_S = 30.0
GPU_SHARE = 0.4
DRAIN_S = CALL_TIMEOUT_S + 5
"""How long a replica that goes may take over its last calls: the longest one, and its answer."""
START_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class ReplicaSpec:
    """What a replica is given when it starts; `audit` is the folder of the audit log."""

    dapp: str
    payee: Payee
    shares: tuple[tuple[str, str, int], ...]
    store_url: SecretStr
    receipt_key: SecretStr = field(repr=False)
    exposure_cap: int
    abandoned_limit: int
    deposit_calls: int
    maximum_body_bytes: int
    torch_threads: int
    audit: str = ""
    isolation: Isolation | None = None
    """How the DApp is isolated; None: it is trusted, and runs here."""
    maximum_batch: int = 0
    """Most rows that the device is given at once; 0: as the DApp says."""
    gpu_share: float = GPU_SHARE
    """How much of a GPU a replica reserves where there is one: DApps share a card."""
    levers: tuple[str, ...] | None = None
    """See `serving/levers.py`; None: those that are known to win on the device."""
    trace_sample: float = 0.0
    trace_endpoint: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    """What the operator sets, see `dapps.configuration`: a change of it alone restarts nothing."""
    scale: Scale = field(default_factory=Scale)
    """How many replicas there are."""
    others: tuple[ReplicaSpec, ...] = ()
    """Other versions of the DApp, served beside it."""
    kind: str = ""
    """Name of the deployment: the same for every version, or an update would be no update."""
    version: str = ""
    """Of the DApp, for the route of a version beside the one that answers by default."""
    package: str = ""
    """Folder of the installed version that answers; empty: what the environment offers."""
    cpus: float | None = None
    """Cores that a replica reserves; None: half a one, or none where it has a GPU."""
    resources: tuple[tuple[str, float], ...] = ()
    """What else it needs of a node of the cluster."""
    remote: str = ""
    """URL of the model that answers, see `serving/triton.py`; empty: the DApp's own `forward`."""
    remote_key: SecretStr = field(default=SecretStr(""), repr=False)
    """Of the wallet that pays for it."""


@serve.deployment
@serve.ingress()
class Replica:
    """The deployment of one DApp."""

    async def __init__(self, spec: ReplicaSpec) -> None:  # type: ignore[misc] # Serve awaits it
        if spec.package:
            shelf.show(Path(spec.package))
        # To start a child and read what it declares takes longer than the loop may be held.
        dapp = await asyncio.to_thread(open_dapp, spec.isolation) if spec.isolation else registry.load(spec.dapp)
        tracing.begin(spec.dapp, dapp.version, spec.trace_sample, spec.trace_endpoint)
        signer = Signer(bytes.fromhex(spec.receipt_key.get_secret_value()))
        self._store = RedisStore(
            spec.store_url.get_secret_value(), spec.exposure_cap, abandoned_limit=spec.abandoned_limit
        )
        meter = Meter(self._store, signer, spec.payee.chain_id, _deposit, _refund)
        most_rows = spec.maximum_batch or dapp.maximum_batch
        self._spec, self._dapp, self._declared = spec, dapp, Declared.of(dapp, most_rows)
        name = registry.public(spec.dapp)
        self._metrics = Metrics(name, dapp.version, most_rows)
        self._statistics = Statistics(RedisCounters(spec.store_url.get_secret_value(), spec.dapp), self._metrics)
        self._paywall = Paywall(dapp, name, meter, self._quote(), spec.shares, signer, self._statistics)
        self._runner: TorchRunner | IsolatedRunner | Solo | TritonRunner
        self._batcher: Batcher | Solo | TritonRunner
        if spec.remote:
            where, key = Remote.read(spec.remote), spec.remote_key.get_secret_value()
            self._runner = self._batcher = TritonRunner(dapp, where, key, self._executed)
        elif dapp.calls:
            self._runner = self._batcher = Solo(dapp, spec.torch_threads, self._executed)
        else:
            self._runner = runner_of(dapp, spec.torch_threads, most_rows, spec.levers)
            self._batcher = Batcher(self._runner, most_rows, observe=self._executed)
        facts = (spec.maximum_body_bytes, self._statistics, most_rows)
        self._door = Door(name, dapp, self._paywall, self._batcher, *facts, _reach)
        self._app = self._door.app()
        self._audited: Audited | None = None
        if spec.audit:
            self._app = self._audited = Audited(self._app, name, AuditLog(Path(spec.audit), spec.dapp))
        self.device = await self._runner.start()
        self._batcher.depth = self._runner.depth
        self._alone = bool(dapp.calls or spec.remote)
        if dapp.calls:
            await self._door.warm()
        self._example = dapp.example()
        self._checked_s = time.monotonic()

    async def reconfigure(self, config: dict[str, Any]) -> None:
        """Serve calls it at the start, and whenever the configuration alone has changed; see `dapps.configuration`.

        Calls that run are answered and charged as they were quoted; calls that come meanwhile wait.
        """
        force = Configuration.from_json(config).applied(self._declared)
        async with self._paywall.gate.closed():
            put(self._dapp, force)
            await asyncio.to_thread(lambda: self._dapp.provenance)  # reads the package's files
            self._paywall.requote(self._quote())
            self._batcher.bound(force.maximum_batch)
            self._door.renew(force.maximum_batch)

    def _quote(self) -> Quote:
        spec, most = self._spec, self._dapp.price.most
        terms = _terms(self._dapp, spec.shares)
        return Quote(spec.payee, most, minimum_deposit=most * spec.deposit_calls, terms=terms)

    def __serve_build_asgi_app__(self) -> Any:
        return self._app

    async def grpc(self, headers: dict[str, str], body: bytes, version: str) -> tuple[int, dict[str, str], bytes]:
        """A call from the gRPC door: metadata and message in; status, metadata and message (of a refusal: JSON) out."""
        began_s, reply = time.perf_counter(), Reply(0, b"")
        try:
            reply = await self._door.grpc(headers, body, version)
            return reply.status, dict(reply.headers), reply.body
        finally:
            if self._audited is not None:
                took_s = time.perf_counter() - began_s
                self._audited.told("infer", len(body), reply.status, dict(reply.headers), reply.body, took_s)

    async def sampled(self, sample: str, view: str) -> tuple[int, str, bytes]:
        """The answer to one of the DApp's own samples, see `Trial.answer`: status, content type, body."""
        try:
            reply = await self._door.trial.answer(sample, view)
        except CallError as error:
            status, code, message = describe(error)
            return status, "application/json", orjson.dumps({"error": message, "code": code})
        return reply.status, reply.headers.get("content-type", "application/json"), reply.body

    async def errand(self, errand: Errand) -> Returned | tuple[str, str]:
        """What another DApp asks of this one, see `Door.errand`; no route leads here."""
        return await self._door.errand(errand)

    async def facts(self, what: str, version: str) -> dict[str, Any] | tuple[str, str]:
        """See `Door.facts`; a refusal comes back as (code, message): exceptions lose their code between processes."""
        try:
            return await self._door.facts(what, version)
        except CallError as error:
            return error.code, error.message

    def _executed(self, execution: Execution) -> None:
        self._checked_s = time.monotonic()
        self._statistics.executed(execution)
        self._metrics.waiting(self._batcher.waiting)

    async def check_health(self) -> None:
        """A real inference when there was none for a while: a process that cannot compute is not healthy."""
        self._runner.healthy()
        self._metrics.waiting(self._batcher.waiting)
        self._metrics.memory(self.device, self._runner.memory_bytes())
        if not self._alone and time.monotonic() - self._checked_s > IDLE_CHECK_S:
            await self._batcher.submit(self._example, "health check", timeout_s=20.0)


def runner_of(
    dapp: DApp, threads: int = 0, maximum_batch: int = 0, levers: Sequence[str] | None = None
) -> TorchRunner | IsolatedRunner:
    """What runs a DApp's batches: its own process if it is isolated, else this one."""
    kind = IsolatedRunner if isinstance(dapp, IsolatedDApp) else TorchRunner
    return kind(dapp, threads=threads, maximum_batch=maximum_batch, levers=levers)  # type: ignore[arg-type]


def start(spec: ReplicaSpec) -> None:
    """Starts a DApp's application, or replaces it by one of another specification; returns once it answers.

    Raises:
        StartError: it does not.
    """
    device = _device(spec)
    deployment = Replica.options(  # type: ignore[attr-defined]
        name=spec.kind,
        max_ongoing_requests=1_000,
        ray_actor_options=device,
        graceful_shutdown_timeout_s=DRAIN_S,
        graceful_shutdown_wait_loop_s=0.2,
        max_surge_percent=_surge(device),
        user_config=dict(spec.config),
        version=_version(spec),
        _internal=True,
        **spec.scale.options(),
    )
    prefix = f"/v2/models/{registry.public(spec.dapp)}"
    if spec.dapp != registry.public(spec.dapp):
        prefix += f"/versions/{spec.version}"
    run(deployment.bind(spec), spec.dapp, prefix)
    for other in spec.others:
        start(other)


def end(spec: ReplicaSpec) -> None:
    """Ends a DApp's application, and those of its other versions: calls that run are answered first."""
    for one in (*spec.others, spec):
        serve.delete(one.dapp)


def _version(spec: ReplicaSpec) -> str:
    """Serve's name for what replicas are started with: two that differ in their configuration alone are one."""
    return hashlib.sha256(pickle.dumps(replace(spec, config={}, others=()))).hexdigest()[:16]


def run(application: Any, name: str, prefix: str) -> None:
    """Runs a Serve application under a route; returns once it answers.

    Raises:
        StartError: it does not, or not in time.
    """
    # Serve's own wait has no end, and weights may take for ever to load.
    target = serve.RunTarget(application, name=name, route_prefix=prefix)
    serve.run_many([target], wait_for_applications_running=False)
    until = time.monotonic() + START_TIMEOUT_S
    while (found := serve.status().applications[name]).status not in ("RUNNING", "DEPLOY_FAILED"):
        if time.monotonic() > until:
            break
        time.sleep(0.1)
    if found.status != "RUNNING":
        deployments = found.deployments.values()
        told = " ".join(deployment.message.strip().splitlines()[-1] for deployment in deployments if deployment.message)
        raise StartError(f"{name} does not start: {told or found.message or 'it takes too long'}")


def _device(spec: ReplicaSpec) -> dict[str, Any]:
    """What a replica reserves of its node."""
    gpus = ray.cluster_resources().get("GPU", 0)  # type: ignore[no-untyped-call]
    cpus = (0 if gpus else 0.5) if spec.cpus is None else spec.cpus
    device: dict[str, Any] = {"num_cpus": cpus} | ({"num_gpus": spec.gpu_share} if gpus else {})
    return device | ({"resources": dict(spec.resources)} if spec.resources else {})


def _surge(device: dict[str, Any]) -> int:
    """Percent of replicas that may start before those they replace go: all, if there is room for one, or none.

    Without room a new one would wait for ever for the place of the old one that waits for it.
    """
    free = ray.available_resources()  # type: ignore[no-untyped-call]
    wanted = {name[4:-1].upper(): share for name, share in device.items() if name != "resources"}
    return (
        100 if all(free.get(name, 0) >= share for name, share in (wanted | device.get("resources", {})).items()) else 0
    )


async def _reach(name: str, errand: Errand) -> Returned | tuple[str, str]:
    """Takes an errand to the replica of another DApp."""
    # By the application, not by its class: to know that would be to load it, and the other may be isolated.
    handle = serve.get_app_handle(name)
    told: Returned | tuple[str, str] = await handle.errand.remote(errand)
    return told


async def _deposit(payment: Payment) -> Movement:
    return await _moved("deposit", payment)


async def _refund(payment: Payment) -> Movement:
    return await _moved("refund", payment)


async def _moved(verb: str, payment: Payment) -> Movement:
    """Asks the treasury, which alone holds the ledger's keys, to move a payer's money."""
    treasury = serve.get_deployment_handle("Treasury", app_name="control")
    try:
        said = await getattr(treasury, verb).remote(payment)
    except Exception as error:
        message = f"the treasury cannot be reached: the {verb} may have been made, repeat the same one"
        raise NotReady("treasury_unavailable", message) from error
    return movement(said)


def movement(said: Movement | tuple[str, str]) -> Movement:
    """The treasury's answer: what was moved, or its refusal raised again; exceptions lose their code on the way."""
    if isinstance(said, Movement):
        return said
    code, message = said
    if code in ("not_ready", "store_unavailable", "stale_treasury"):
        raise NotReady(code, message)
    raise LedgerError(code, message)


def _terms(dapp: DApp, shares: tuple[tuple[str, str, int], ...]) -> str:
    """A digest of prices and shares: when they change, calls that were quoted the old ones are quoted anew."""
    price = dapp.price
    terms = [price.per_item, price.maximum_items, price.alone, [list(row) for row in shares]]
    if price.per_gpu_second:
        terms += [price.per_gpu_second, price.most]
    return hashlib.sha256(orjson.dumps(terms)).hexdigest()[:16]
