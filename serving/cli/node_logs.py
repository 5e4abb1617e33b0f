"""What the other machines of a mesh have written of a call: each looks into its own audit log. Used by `cli_logs.py`.

They are asked through Ray with the token of the data folder: whoever may read that folder may ask. The lines of the one
call are all that comes.
"""

from __future__ import annotations

from typing import Any

from serving.cluster import ray_head
from serving.config import Settings
from serving.telemetry import Line, chains, read

WAIT_S = 60.0
"""A machine starts a Python for it, which imports Ray first."""


def elsewhere(settings: Settings, ray_address: str, call: str) -> tuple[list[tuple[str, Line]], list[str]]:
    """Looks for a call on all machines but this one.

    Args:
        settings: of the head.
        ray_address: where its Ray is, `host:port`.
        call: a receipt's id.

    Returns:
        Lines of audit logs, each with the address of its machine; and which machines could not be asked, and why.
    """
    ray_head.connect(settings, ray_address)
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray_address.rpartition(":")[0]
    try:
        asked: dict[str, Any] = {}
        for node in ray.nodes():  # type: ignore[no-untyped-call]
            if node["Alive"] and node["NodeManagerAddress"] != here:
                there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                task = ray.remote(lines).options(num_cpus=0, scheduling_strategy=there, max_retries=0)
                asked[node["NodeManagerAddress"]] = task.remote(call)
        found, silent = [], []
        for address, answer in sorted(asked.items()):
            try:
                found += [(address, line) for line in ray.get(answer, timeout=WAIT_S)]
            except Exception as error:  # a machine that is going, or whose log is broken: the others are told
                silent.append(f"{address}: {type(getattr(error, 'cause', None) or error).__name__}")
        return found, silent
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
