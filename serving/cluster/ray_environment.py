"""Sets Ray's environment, which Ray reads when it is imported; a process that uses Ray calls `prepare` before.

Imports no Ray, so that commands which need none start without it.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from serving.cluster import proxy_errors, surroundings
from serving.config import Settings
from serving.errors import StartError

HEAD_NODE: dict[str, Any] = {"num_cpus": 0, "resources": {"node:__internal_head__": 0.001}}
"""Actor options of deployments that need the machine of `leben up`: its keys, its ledger's file, its gRPC port."""


def prepare(settings: Settings) -> None:
    """Sets this process's environment for Ray, and takes the secrets out of it.

    Raises:
        StartError: Ray has been imported already, or the surroundings do not allow a mesh.
    """
    if "ray" in sys.modules:
        raise StartError("Ray was imported before its settings were made: start the mesh in a process of its own")
    surroundings.prepare(settings)
    os.environ.update(environment(settings))
    settings.forget_secrets()


def environment(settings: Settings) -> dict[str, str]:
    """The variables of Ray and Ray Serve, the same on every node."""
    runtime, port = settings.runtime, settings.port
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        # A payment header is about 2 KB; with a 16 KB buffer HAProxy refuses long ones before we can say why.
        "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": "131072",
        # Closes a connection that is silent for longer than the longest call lasts; the default is an hour.
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "130",
        # Headers have ten seconds, or idle connections take every place. Serve has no variable for this timeout: the
        # line follows the one of this value in the proxy's `defaults`.
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure\n    timeout http-request 10s",
        "RAY_SERVE_HAPROXY_INGRESS_RETRY_ON": "conn-failure",
        # Serve names pages of plain text for 502 to 504. The line of this value is the last of `defaults`: lines that
        # follow it replace them.
        "RAY_SERVE_HAPROXY_BALANCE_ALGORITHM": "\n    ".join(["leastconn", *proxy_errors.directives(runtime)]),
        # The proxy logs lost replicas to syslog, but no call: its query may name a patient. Serve appends a level at
        # which every call is logged: `#` comments that out.
        "RAY_SERVE_HAPROXY_LOG_TARGET": "127.0.0.1:514 local0 notice #",
        # Takes the calls of a DApp without a replica.
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
        # Ray starts workers at niceness 15; callers wait for ours.
        "RAY_worker_niceness": "0",
        "RAY_SERVE_SLOW_STARTUP_WARNING_S": str(int(settings.place_s)),
        "RAY_SERVE_SLOW_STARTUP_WARNING_PERIOD_S": "1",
        # Ray's monitor kills workers when the machine is short of memory, whoever uses it: controller, proxies and all
        # replicas could end because of another program. Linux ends the greatest consumer instead, and only when there
        # is no memory left; replicas offer themselves first, see `serving/replica/memory.py`.
        "RAY_memory_monitor_refresh_ms": "0",
        "RAY_worker_oom_score_adjustment": "0",
        # After five missed checks a machine counts as dead, and its replicas start elsewhere.
        "RAY_health_check_period_ms": "1000",
        # How long clients of a leaving node's proxy have to notice.
        "RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S": "5",
        # Replicas find their node's folders by it.
        "LEBEN_DATA": str(settings.home),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(settings.ray_token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DEDUP_LOGS": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        **surroundings.direct(settings),
    } | ({"RAY_GCS_SERVER_PORT": str(settings.join_port)} if settings.clustered else {})
