"""Reads the lines of one call in the audit logs of a mesh's other machines, for `leben logs`.

It reaches them through Ray with the token of the data folder, so only a reader of that folder can. Nothing but the
lines of the call is sent.
"""

from __future__ import annotations

from typing import Any

from serving.cluster import ray_environment
from serving.config import Settings
from serving.telemetry import Line, chains, read

WAIT_S = 60.0
"""Each machine starts a Python process for it, which imports Ray first."""


def elsewhere(settings: Settings, ray_address: str, call: str) -> tuple[list[tuple[str, Line]], list[str]]:
    """Reads the lines of a call on all machines but this one.

    Args:
        settings: those of the head.
        ray_address: of its Ray, `host:port`.
        call: a receipt's id.

    Returns:
        Lines of audit logs, each with its machine's address; and the machines that did not answer, each with the
        reason.
    """
    ray_environment.prepare(settings)
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from serving.cluster import ray_head

    ray_head.connect(ray_address)

    here = ray_address.rpartition(":")[0]
    try:
        tasks: dict[str, Any] = {}
        for node in ray.nodes():  # type: ignore[no-untyped-call]
            if node["Alive"] and node["NodeManagerAddress"] != here:
                there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                task = ray.remote(lines).options(num_cpus=0, scheduling_strategy=there, max_retries=0)
                tasks[node["NodeManagerAddress"]] = task.remote(call)
        rows, silent = [], []
        for address, result in sorted(tasks.items()):
            try:
                rows += [(address, line) for line in ray.get(result, timeout=WAIT_S)]
            except Exception as error:  # a machine that leaves, or whose log is broken, must not hide the others
                silent.append(f"{address}: {type(getattr(error, 'cause', None) or error).__name__}")
        return rows, silent
    finally:
        ray.shutdown()


def lines(call: str) -> list[Line]:
    """The lines of a call in this machine's audit log.

    Raises:
        BrokenChain: the log was changed.
    """
    return in_log(Settings(), call)


def in_log(settings: Settings, call: str) -> list[Line]:
    """The lines of a call in the audit log of a data folder.

    Raises:
        BrokenChain: the log was changed.
    """
    return [line for chain in chains(settings.audit) for line in read(chain) if line.get("receipt") == call]
