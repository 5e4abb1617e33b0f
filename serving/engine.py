"""Ray and Serve on the machine of `leben up`, the head of its mesh: alone on loopback, or open for nodes to join.

Next: `node.py`, the other machines of a mesh.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import shutil
import signal
import sys
from urllib.parse import urlsplit

from serving.errors import StartError
from serving.settings import Settings


def start(settings: Settings) -> str:
    """Starts Ray and Serve in this process; returns the dashboard's URL.

    Raises:
        StartError: Ray was imported too early.
    """
    if "ray" in sys.modules:
        raise StartError("Ray was imported before its settings were made: start the mesh in a process of its own")
    os.environ.update(settings.engine_environment())
    settings.forget_secrets()
    # A mesh that was killed left its session here; the lock says that nobody uses it.
    shutil.rmtree(settings.runtime / "ray", ignore_errors=True)
    import ray
    from ray import serve

    for name in ("ray", "ray.serve"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Ray puts its own handler on SIGTERM, which ends the process before the store has saved.
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
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
    for number, handler in handlers.items():
        signal.signal(number, handler)
    # No host means every interface: a mesh of one machine, frontend and replicas, answers on loopback only.
    http = {"host": settings.bind, "port": settings.port}
    quiet = {"enable_access_log": False, "log_level": "INFO"}
    serve.start(proxy_location="EveryNode", http_options=http, logging_config=quiet)
    return f"http://{context.dashboard_url}"


def address() -> str:
    """Where Ray of this mesh is joined, by commands and by nodes."""
    import ray

    return str(ray.get_runtime_context().gcs_address)


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
