"""Matches what a replica reserves with what the nodes of the mesh have.

Ray waits for a suitable node for ever; this module reports at once that there is none, in the words of the mesh file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ray

MANY = 1_000
"""The capacity of a node for replicas that reserve nothing."""
Resources = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Node:
    """A running node: its address, its total and free resources, and its labels."""

    address: str
    total: Resources
    free: Resources
    labels: Mapping[str, str]

    def __str__(self) -> str:
        named = {name: amount for name, amount in self.total.items() if name not in ("memory", "object_store_memory")}
        parts = [
            f"{name} {amount:g}" for name, amount in sorted(named.items()) if not name.startswith(("node:", "acc"))
        ]
        parts += [f"{name}={value}" for name, value in sorted(self.labels.items()) if name != "ray.io/node-id"]
        return f"{self.address} ({', '.join(parts)})"


@dataclass(frozen=True, slots=True)
class Demand:
    """The resources and labels that one replica reserves."""

    cpus: float
    gpus: float = 0.0
    resources: Resources = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def options(self) -> dict[str, Any]:
        """Ray's actor options."""
        options: dict[str, Any] = {"num_cpus": self.cpus}
        options |= {"num_gpus": self.gpus} if self.gpus else {}
        options |= {"resources": dict(self.resources)} if self.resources else {}
        return options | ({"label_selector": dict(self.labels)} if self.labels else {})

    def fits(self, node: Node, *, now: bool = False) -> bool:
        """True if a node has as much in total, or with `now` as much free."""
        amounts = {"CPU": self.cpus, "GPU": self.gpus, **self.resources}
        available = node.free if now else node.total
        enough = all(available.get(name, 0) >= amount for name, amount in amounts.items() if amount)
        return enough and all(node.labels.get(name) == value for name, value in self.labels.items())

    def room(self, node: Node) -> int:
        """How many replicas a node can take now."""
        if not self.fits(node, now=True):
            return 0
        amounts = {"CPU": self.cpus, "GPU": self.gpus, **self.resources}
        return min((int(node.free[name] / amount) for name, amount in amounts.items() if amount), default=MANY)

    def __str__(self) -> str:
        parts = [f"cpus: {self.cpus:g}"] if self.cpus else []
        parts += [f"gpus: {self.gpus:g}"] if self.gpus else []
        for word, named in (("resources", self.resources), ("labels", self.labels)):
            if named:
                parts.append(f"{word}: {{{', '.join(f'{name}: {value}' for name, value in sorted(named.items()))}}}")
        return "{" + ", ".join(parts) + "}"


@dataclass(frozen=True, slots=True)
class Place:
    """Where the replicas of a DApp can run, before they start.

    Attributes:
        demand: of each replica.
        replicas: the number of replicas to start.
        room: the number that free resources allow.
        fresh: none runs yet; else the replaced ones free their resources too.
    """

    demand: Demand
    replicas: int
    room: int
    fresh: bool

    @property
    def surge(self) -> int:
        """Percent of replicas that may start before those they replace end: 100 if one fits beside them, else 0.

        Otherwise a new replica would wait for ever for the resources of the old one, which waits for it.
        """
        return 100 if self.room else 0


def nodes() -> list[Node]:
    """The nodes that run now, by address."""
    from ray._private.state import available_resources_per_node

    free = available_resources_per_node()  # type: ignore[no-untyped-call]
    running = [
        Node(row["NodeManagerAddress"], row["Resources"], free.get(row["NodeID"], {}), row.get("Labels", {}))
        for row in ray.nodes()  # type: ignore[no-untyped-call]
        if row["Alive"]
    ]
    return sorted(running, key=lambda node: node.address)


def unplaced(demand: Demand, there: list[Node]) -> str:
    """Why no node can ever take a replica; empty if one can."""
    if any(demand.fits(node) for node in there):
        return ""
    return f"no node has what it needs, `where: {demand}`; there are {'; '.join(map(str, there))}"


def full(demand: Demand, there: list[Node]) -> str:
    """Why no node can take one more replica now."""
    free = [Node(node.address, node.free, {}, {}) for node in there if demand.fits(node)]
    return f"no node has room for one more replica, `where: {demand}`; free are {'; '.join(map(str, free)) or 'none'}"


def make_room(held: Mapping[str, tuple[int, Demand]]) -> str:
    """Which DApps hold resources, by name with running replicas and what each reserves, and how to free them."""
    parts = [f"{name} holds {count} x {demand}" for name, (count, demand) in sorted(held.items()) if count]
    way = "`leben dapp disable NAME`, or fewer `replicas` or a smaller `where` in leben.yaml, makes room"
    return f"{', '.join(parts) or 'no DApp holds any'}: {way}"
