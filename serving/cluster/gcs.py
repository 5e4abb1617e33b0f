"""Asks Ray's head for its nodes and drains one, from a node that is not connected to Ray itself.

Call `ray_environment.prepare` before this module is imported: Ray reads its environment when it is imported.
"""

from __future__ import annotations

from typing import Any

from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.core.generated.autoscaler_pb2 import DRAIN_NODE_REASON_PREEMPTION  # type: ignore[attr-defined]

ALIVE = 0


def nodes(address: str) -> list[dict[str, Any]]:
    """The running nodes: `id` (hex), `address`, and `resources` by Ray's names."""
    rows = GcsClient(address=address).get_all_node_info(timeout=5).values()
    return [
        {"id": row.node_id.hex(), "address": row.node_manager_address, "resources": dict(row.resources_total)}
        for row in rows
        if row.state == ALIVE
    ]


def drain(address: str, node_id: str, deadline_ms: int) -> None:
    """Asks the head to empty a node until `deadline_ms` (Unix time).

    Raises:
        Exception: the head does not answer.
    """
    GcsClient(address=address).drain_node(node_id, DRAIN_NODE_REASON_PREEMPTION, "leben up stops", deadline_ms)
