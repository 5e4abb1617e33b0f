"""Serve applications: how a DApp's is started, replaced by another, and ended.

One application a DApp and version, each under its own route. Next: `replica.py`, what runs in it.
"""

from __future__ import annotations

import hashlib
import pickle
import time
from dataclasses import replace
from typing import Any

import ray
from ray import serve

from dapps import registry
from serving import dashboard
from serving.calls import CALL_TIMEOUT_S
from serving.errors import StartError
from serving.replica import Replica
from serving.replica_spec import ReplicaSpec

DRAIN_S = CALL_TIMEOUT_S + 5
"""How long a replica that goes may take over its last calls: the longest one, and its answer."""
START_TIMEOUT_S = 600.0


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
        user_config=dashboard.user_config(spec.dapp, spec.version, spec.config),
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
    wanted = {"CPU": device["num_cpus"], "GPU": device.get("num_gpus", 0), **device.get("resources", {})}
    return 100 if all(free.get(name, 0) >= share for name, share in wanted.items()) else 0
