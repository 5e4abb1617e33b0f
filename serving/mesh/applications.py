"""Starts, replaces and ends Serve applications: one for each DApp and version, each under its own route."""

from __future__ import annotations

import hashlib
import logging
import pickle
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import ray
from ray import serve
from ray._private.state import actors

from dapps.packages import registry
from serving.cluster import placement
from serving.cluster.placement import Demand, Place
from serving.errors import NoNode, NoRoom, StartError
from serving.protocol import CALL_TIMEOUT_S
from serving.replica import user_config
from serving.replica.deployment import Replica
from serving.replica.spec import ReplicaSpec

log = logging.getLogger("leben.applications")
NO_ROOM = "to be scheduled"
"""In Serve's message of a deployment with replicas that found no node for `RAY_SERVE_SLOW_STARTUP_WARNING_S`."""
SLOW_PROCESS_S = 60.0
"""Serve's message is the same while a placed replica's process starts; after this time the replica has no node."""
DRAIN_S = CALL_TIMEOUT_S + 5
"""How long an ending replica may take over its last calls: the longest call, and its answer."""
START_TIMEOUT_S = 600.0
QUIET = {"enable_access_log": False, "log_level": "WARNING"}
"""The audit log has a line for each call; Serve's own would take a twentieth of a small call's time."""


def start(spec: ReplicaSpec, check: Callable[[], None] = lambda: None) -> None:
    """Starts a DApp's application, or replaces it by one of another specification; returns once it answers.

    Args:
        spec: what its replicas are started with.
        check: called in each wait; an exception from it ends the wait.

    Raises:
        StartError: it does not.
        NoNode: no node can take it, or none has room.
    """
    place = _placed(spec, check)
    deployment = Replica.options(  # type: ignore[attr-defined]
        name=spec.kind,
        max_ongoing_requests=1_000,
        ray_actor_options=place.demand.options,
        graceful_shutdown_timeout_s=DRAIN_S,
        graceful_shutdown_wait_loop_s=0.2,
        max_surge_percent=place.surge,
        logging_config=QUIET,
        user_config=user_config.user_config(spec.dapp, spec.version, spec.config),
        version=_version(spec),
        _internal=True,
        **spec.scale.options(),
    )
    prefix = f"/v2/models/{registry.public(spec.dapp)}"
    if spec.dapp != registry.public(spec.dapp):
        prefix += f"/versions/{spec.version}"
    run(deployment.bind(spec), spec.dapp, prefix, place, check)
    for other in spec.others:
        start(other, check)


def end(spec: ReplicaSpec) -> None:
    """Ends the applications of a DApp and of its other versions, after their running calls."""
    for version in (*spec.others, spec):
        end_all([version.dapp])


def end_all(names: list[str]) -> None:
    """Ends applications, drained; returns once they are gone, or after the longest call.

    Kills a replica that waits for a node: Serve would ask it to shut down and wait for the answer of a process that has
    never begun.
    """
    until = time.monotonic() + DRAIN_S
    for name in names:
        serve.delete(name, _blocking=False)
    for applications in _looks():
        left = set(names).intersection(applications)
        if not left or time.monotonic() > until:
            break
        waiting = actors(actor_state_name="PENDING_CREATION")
        for name in [actor["Name"] for actor in waiting.values()]:
            if name.removeprefix("SERVE_REPLICA::").split("#")[0] in left:
                with suppress(ValueError):  # it has begun or ended since
                    ray.kill(ray.get_actor(name, "serve"))


def lost(spec: ReplicaSpec) -> str:
    """Why a started DApp has no replica now, and none can start; empty if it has one or one can start."""
    status = serve.status().applications.get(spec.dapp)
    if status is None or any("RUNNING" in deployment.replica_states for deployment in status.deployments.values()):
        return ""
    nodes = placement.nodes()
    demand = demand_of(spec, nodes)
    if any(demand.fits(node, now=True) for node in nodes):
        return ""
    return placement.unplaced(demand, nodes) or placement.full(demand, nodes)


def held(specs: Iterable[ReplicaSpec]) -> dict[str, tuple[int, Demand]]:
    """The running replicas of each application, and what each of them reserves."""
    nodes, applications = placement.nodes(), serve.status().applications
    versions = [version for spec in specs for version in (spec, *spec.others) if version.dapp in applications]
    return {version.dapp: (_running(applications[version.dapp]), demand_of(version, nodes)) for version in versions}


def _running(application: Any) -> int:
    states = [deployment.replica_states for deployment in application.deployments.values()]
    return sum(count for counts in states for state, count in counts.items() if state == "RUNNING")


def _version(spec: ReplicaSpec) -> str:
    """Serve's name for a specification: those that differ in their configuration alone have the same."""
    return hashlib.sha256(pickle.dumps(replace(spec, config={}, others=()))).hexdigest()[:16]


def run(
    application: Any,
    name: str,
    prefix: str,
    place: Place | None = None,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Runs a Serve application under a route; returns once it answers, in fewer replicas if there is no room for all.

    `check` is called while it waits; an exception from it ends the wait.

    Raises:
        StartError: it does not, or not in time.
        NoRoom: no node has room for a replica.
    """
    # Serve's own wait has no limit, and weights may never finish loading.
    target = serve.RunTarget(application, name=name, route_prefix=prefix)
    serve.run_many([target], wait_for_applications_running=False)
    until, since = time.monotonic() + START_TIMEOUT_S, 0.0
    for applications in _looks():
        status = applications[name]
        if status.status in ("RUNNING", "DEPLOY_FAILED"):
            break
        check()
        if time.monotonic() > until:
            break
        if place is not None and any(NO_ROOM in deployment.message for deployment in status.deployments.values()):
            since = since or time.monotonic()
            states = [deployment.replica_states for deployment in status.deployments.values()] if place.fresh else []
            running = sum(
                count for states_of_one in states for state, count in states_of_one.items() if state == "RUNNING"
            )
            short = place.fresh and place.room < place.replicas and running >= place.room
            if short or time.monotonic() - since > SLOW_PROCESS_S:
                why = f"{name}: {placement.full(place.demand, placement.nodes())}"
                if not running:
                    raise NoRoom(why)
                log.warning("%s; it runs in %d of %d", why, running, place.replicas)
                return
    if status.status != "RUNNING":
        deployments = status.deployments.values()
        messages = " ".join(
            deployment.message.strip().splitlines()[-1] for deployment in deployments if deployment.message
        )
        raise StartError(f"{name} does not start: {messages or status.message or 'it takes too long'}")


def _looks() -> Iterator[dict[str, Any]]:
    """Serve's applications by name, again and again.

    A look makes Serve validate the configuration of every deployment anew. The pause after it is four times as long:
    a wait takes at most a fifth of a core from the replicas that it waits for.
    """
    while True:
        began = time.monotonic()
        yield serve.status().applications
        time.sleep(max(0.1, 4 * (time.monotonic() - began)))


def demand_of(spec: ReplicaSpec, nodes: list[placement.Node]) -> Demand:
    """What a replica reserves of its node: part of a GPU where it may run on a node that has one, else half a core."""
    where: dict[str, Any] = {"resources": dict(spec.resources), "labels": dict(spec.labels)}
    gpus = spec.gpus
    if gpus is None:
        share = spec.gpu_share
        gpus = share if any(Demand(0, share, **where).fits(node) for node in nodes) else 0.0
    return Demand((0 if gpus else 0.5) if spec.cpus is None else spec.cpus, gpus, **where)


def _placed(spec: ReplicaSpec, check: Callable[[], None]) -> Place:
    """Where replicas can run, once a node can take them.

    Raises:
        NoNode: there is none.
    """
    until = time.monotonic() + spec.placement_timeout_s
    while True:
        check()
        nodes = placement.nodes()
        demand = demand_of(spec, nodes)
        why = placement.unplaced(demand, nodes)
        if not why:
            fresh = spec.dapp not in serve.status().applications
            return Place(demand, spec.scale.least, sum(demand.room(node) for node in nodes), fresh)
        if time.monotonic() > until:
            raise NoNode(f"{spec.dapp}: {why}")
        time.sleep(0.5)
