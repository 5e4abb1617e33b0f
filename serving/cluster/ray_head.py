"""Ray and Serve on the machine of `leben up`, the head of its mesh: alone on loopback, or open for nodes to join."""

from __future__ import annotations

import ipaddress
import logging
import os
import shutil
import sys
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from serving.config import Settings
from serving.errors import StartError


def start(settings: Settings, check: Callable[[], None] = lambda: None) -> str:
    """Starts Ray and Serve in this process; returns the dashboard's URL.

    Args:
        settings: of the mesh.
        check: called between the steps; what it raises ends the start.

    Raises:
        StartError: Ray was imported too early.
    """
    if "ray" in sys.modules:
        raise StartError("Ray was imported before its settings were made: start the mesh in a process of its own")
    os.environ.update(environment(settings))
    settings.forget_secrets()
    # A mesh that was killed left its session here; the lock says that nobody uses it.
    shutil.rmtree(settings.runtime / "ray", ignore_errors=True)
    import ray
    from ray import serve

    check()
    for name in ("ray", "ray.serve"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Ray would take SIGTERM in this process twice over, to exit and to abort, before the store has saved. It may come
    # while Ray starts: a handler that is put back afterwards comes too late.
    ray._private.utils.set_sigterm_handler = lambda handler: None
    ray._private.ray_constants.RAY_DISABLE_FAILURE_SIGNAL_HANDLER = True
    context = ray.init(
        num_cpus=settings.cpus or None,
        resources=settings.resources or None,
        labels=settings.labels or None,
        include_dashboard=True,
        dashboard_host="127.0.0.1",
        dashboard_port=settings.dashboard_port,
        _metrics_export_port=settings.metrics_port,
        _node_ip_address=str(settings.listen),
        _temp_dir=str(settings.runtime / "ray"),
        log_to_driver=False,
        logging_level=logging.WARNING,
        namespace="leben",
    )
    check()
    # No host means every interface: a mesh of one machine, frontend and replicas, answers on loopback only.
    http = {"host": settings.bind, "port": settings.port}
    quiet = {"enable_access_log": False, "log_level": "INFO"}
    serve.start(proxy_location="EveryNode", http_options=http, logging_config=quiet)
    return f"http://{context.dashboard_url}"


def connect(settings: Settings, ray_address: str) -> None:
    """Makes this process, a command on the head, one that can ask the mesh that runs there; ends with it.

    Args:
        settings: of the mesh's data folder, which has Ray's token.
        ray_address: where Ray is, `host:port`.
    """
    os.environ.update(environment(settings))

    import ray

    for name in ("ray", "ray.serve"):
        logging.getLogger(name).setLevel(logging.WARNING)
    here = ray_address.rpartition(":")[0]  # a machine has several addresses, and Ray would choose
    ray.init(ray_address, _node_ip_address=here, namespace="leben", log_to_driver=False, logging_level=logging.ERROR)


def address() -> str:
    """Where Ray of this mesh is joined, by commands and by nodes."""
    import ray

    return str(ray.get_runtime_context().gcs_address)


def environment(settings: Settings) -> dict[str, str]:
    """Ray Serve's environment; must be set before Ray is imported, and the same on every node."""
    runtime, port = settings.runtime, settings.port
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        # A payment header is about 2 KB; with a 16 KB buffer HAProxy refuses long ones before we can say why.
        "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": "131072",
        # Who sends nothing for longer than the longest call lasts is let go: the default is an hour.
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "130",
        # What the proxy tells the machine's syslog: lost replicas, and no call, for its query may name a patient. Serve
        # adds a level of its own, at which every call is told: `#` takes it away.
        "RAY_SERVE_HAPROXY_LOG_TARGET": "127.0.0.1:514 local0 notice #",
        # Takes calls of a DApp that has no replica.
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(port + 7),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(port + 8),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(port + 1),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(port + 2),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(runtime / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(runtime / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(runtime / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(runtime),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(runtime / "server-state"),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(port + 20),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(port + 59),
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(port + 60),
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(port + 99),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0.5",
        # A CT volume between deployments is larger than gRPC's 4 MiB.
        "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(2**31 - 1),
        # Ray's workers give way to all else on their machine (niceness 15); ours have callers who wait.
        "RAY_worker_niceness": "0",
        "RAY_SERVE_SLOW_STARTUP_WARNING_S": str(int(settings.place_s)),
        "RAY_SERVE_SLOW_STARTUP_WARNING_PERIOD_S": "1",
        # A machine that has died is known to be dead after five of these, and its replicas are started elsewhere.
        "RAY_health_check_period_ms": "1000",
        # Who sends calls to the proxy of a node that leaves has so long to see it.
        "RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S": "5",
        # Replicas find their own node's folders by it.
        "LEBEN_DATA": str(settings.home),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(settings.ray_token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DEDUP_LOGS": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    } | ({"RAY_GCS_SERVER_PORT": str(settings.join_port)} if settings.clustered else {})


def check_reach(settings: Settings) -> None:
    """Refuses to let machines join whose replicas could not reach what their calls need.

    Raises:
        StartError: store or ledger are of this machine alone.
    """
    if not settings.clustered:
        return
    store, ledger = settings.store_url.get_secret_value(), settings.ledger_url.get_secret_value()
    if not store or not ledger:
        missing = " and ".join(
            name for name, url in (("LEBEN_STORE_URL", store), ("LEBEN_LEDGER_URL", ledger)) if not url
        )
        raise StartError(
            f"a mesh that other machines join has its store and ledger by URL: set {missing}, or leave out --listen"
        )
    name = "LEBEN_REPLICA_STORE_URL" if settings.replica_store_url.get_secret_value() else "LEBEN_STORE_URL"
    host = urlsplit(settings.metering_url()).hostname or ""
    if not host or host == "localhost" or _is_loopback(host):
        raise StartError(f"{name} names this machine alone: replicas on others need its address in their network")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


HEAD_NODE: dict[str, Any] = {"num_cpus": 0, "resources": {"node:__internal_head__": 0.001}}
"""Of deployments that stay where `leben up` runs: its keys, its ledger's file and its gRPC port are there."""
