"""Starts Ray and Serve on the machine of `leben up`, or connects a command to them.

Call `ray_environment.prepare` before this module is imported: Ray reads its environment when it is imported.
"""

from __future__ import annotations

import logging
import shutil
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray import serve

from channels import private_files
from serving.config import Settings
from serving.errors import StartError


def start(settings: Settings, check: Callable[[], None] = lambda: None) -> str:
    """Starts Ray and Serve in this process; returns the dashboard's URL.

    Args:
        settings: of the mesh.
        check: called between the steps; an exception from it ends the start.
    """
    # A killed mesh leaves its session here; we hold the lock, so nobody uses it.
    shutil.rmtree(settings.runtime / "ray", ignore_errors=True)
    check()
    _quiet()
    # Ray would take SIGTERM over in this process, to exit and to abort, before the store has saved. A signal may come
    # while Ray starts, so that restoring our handler afterwards would be too late.
    ray._private.utils.set_sigterm_handler = lambda handler: None
    ray._private.ray_constants.RAY_DISABLE_FAILURE_SIGNAL_HANDLER = True
    with start_failure("Ray", settings):
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
    # Without a host Serve binds every interface; a mesh of one machine binds loopback, frontend and replicas.
    http = {"host": settings.bind, "port": settings.port}
    quiet = {"enable_access_log": False, "log_level": "INFO"}
    with start_failure("Ray Serve", settings):
        serve.start(proxy_location="EveryNode", http_options=http, logging_config=quiet)
    return f"http://{context.dashboard_url}"


@contextmanager
def start_failure(what: str, settings: Settings) -> Iterator[None]:
    """Turns what Ray raises in the block into one sentence; a full log is kept.

    Raises:
        StartError: with the cause, the logs and the usual remedy.
    """
    try:
        yield
    except Exception as error:  # Ray raises dozens of types when a machine lacks memory, time, ports or files
        path = settings.home / "start.log"
        private_files.make_file(path)
        path.write_text("".join(traceback.format_exception(error)))
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise StartError(
            f"{what} does not start: {lines[-1][:200]} (the whole error is in {path}). A machine that is short of "
            "memory, of time or of room in /tmp and /dev/shm is the usual cause: free some and start again"
        ) from error


def connect(ray_address: str) -> None:
    """Connects this process, a command on the head, to the running mesh; the connection ends with the process.

    Args:
        ray_address: `host:port` of Ray.
    """
    _quiet()
    host = ray_address.rpartition(":")[0]  # a machine has several addresses, and Ray would choose one
    ray.init(ray_address, _node_ip_address=host, namespace="leben", log_to_driver=False, logging_level=logging.ERROR)


def address() -> str:
    """The address at which commands and nodes reach Ray of this mesh."""
    return str(ray.get_runtime_context().gcs_address)


def driver_handle(deployment: str, application: str) -> Any:
    """A handle for a process outside Serve, whose threads have no event loop.

    In throughput mode a handle would otherwise look for a running loop at each call.
    """
    handle = serve.get_deployment_handle(deployment, app_name=application)
    handle._init(_run_router_in_separate_loop=True)  # type: ignore[no-untyped-call]
    return handle


def _quiet() -> None:
    for name in ("ray", "ray.serve"):
        logging.getLogger(name).setLevel(logging.WARNING)
