"""A mesh as a line of queues: how many calls a second go through it, how long they wait, and what is full first.

Every cost comes from `scale.json`, measured by `_costs.py`. What was not measured is an argument of `Mesh`, and an
assumption. Calls come at random, each on a channel that is drawn from all with the same chance; a server takes one
after the other, in order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp
from typing import Any

import numpy as np

Figures = Mapping[str, float]
Array = np.ndarray[Any, np.dtype[np.float64]]
CHECK_S = 5.0
"""How often Serve has each HAProxy look at each replica."""
MOST_A_NODE = 40
"""Ports that `Settings` leaves to the replicas of a node."""
STORE_CLIENTS = 10_000
"""`maxclients` of Valkey, if nobody sets it."""


@dataclass(frozen=True, slots=True)
class Mesh:
    """A mesh of some size; what is marked *assumed* was not measured here.

    Args:
        replicas: of all DApps together.
        channels: from which calls are paid, each as likely.
        load: of the devices' time, how much is asked for; assumed.
        device_ms: how long a call has the device; assumed.
        node: replicas a node; assumed, at most `MOST_A_NODE`.
        threads: of each node's HAProxy: `RAY_SERVE_HAPROXY_NBTHREAD`, which the mesh sets to 1.
        valkeys: over which channels are divided; the code can use one.
        treasuries: that work at once, each with its own books; the code can use one.
        engine: of the ledger, `sqlite` or `postgresql`.
        settle_s: `LEBEN_SETTLE_INTERVAL_S`; `LEBEN_SETTLE_AMOUNT` is thought so high that it does not come first.
    """

    replicas: int = 10_000
    channels: int = 1_000_000
    load: float = 0.7
    device_ms: float = 20.0
    node: int = 8
    threads: int = 1
    valkeys: int = 1
    treasuries: int = 1
    engine: str = "postgresql"
    settle_s: float = 300.0

    @property
    def offered(self) -> float:
        """Calls a second that callers make."""
        return self.load * self.replicas * 1000 / self.device_ms

    @property
    def nodes(self) -> int:
        """Nodes of the cluster, each with an HAProxy."""
        return -(-self.replicas // self.node)


@dataclass(frozen=True, slots=True)
class Station:
    """Servers of one kind: seconds of one for a call, and the part of each that is taken whatever is called."""

    servers: int
    call_s: float
    taken: float = 0.0

    @property
    def capacity(self) -> float:
        """Calls a second that all of them can take."""
        return self.servers * max(0.0, 1 - self.taken) / self.call_s

    @property
    def service_s(self) -> float:
        """How long a call has a server, what else that server does included; without end if it has no time at all."""
        return self.call_s / (1 - self.taken) if self.taken < 1 else np.inf


def stations(mesh: Mesh, costs: Figures) -> dict[str, Station]:
    """What a call goes through, in order, and behind it the treasury, which must keep up but delays nobody."""
    us = 1e-6
    proxy = mesh.replicas / CHECK_S * costs["haproxy_check_cpu_us"] * us / mesh.threads
    loop = mesh.nodes / CHECK_S * costs["replica_check_cpu_us"] * us
    # A replica adds its counters once a second, if it was called.
    beats = mesh.replicas * (1 - exp(-mesh.offered / mesh.replicas))
    beat = beats * costs["store_statistics_cpu_us"] * us / mesh.valkeys
    # A channel that was charged within an interval is claimed once at its end.
    claims = mesh.channels * (1 - exp(-mesh.offered * mesh.settle_s / mesh.channels)) / mesh.settle_s
    settle = claims * costs[f"{mesh.engine}_settle_channel_us"] * us / mesh.treasuries
    return {
        "HAProxy": Station(mesh.nodes * mesh.threads, costs["haproxy_call_cpu_us"] * us, proxy),
        "replicas": Station(mesh.replicas, costs["replica_call_cpu_us"] * us, loop),
        "Valkey": Station(mesh.valkeys, costs["valkey_call_cpu_us"] * us, beat),
        "devices": Station(mesh.replicas, mesh.device_ms / 1000),
        "treasury": Station(mesh.treasuries, costs[f"{mesh.engine}_drain_entry_us"] * us, settle),
    }


def used(mesh: Mesh, costs: Figures) -> dict[str, float]:
    """Of each kind of server, the part that is busy when everything asked for were served; above 1, it cannot be."""
    return {
        name: station.taken + mesh.offered * station.call_s / station.servers
        for name, station in stations(mesh, costs).items()
    }


def through(arrive_s: Array, server: Array, service_s: float) -> Array:
    """When each call leaves its server, which takes them in the order of their arrival, each for `service_s`."""
    order = np.lexsort((arrive_s, server))
    place = np.arange(len(order))
    # Far enough apart that no server's backlog reaches into the next one's calls: all of them in one pass.
    apart = (arrive_s.max() - arrive_s.min() + service_s * (len(order) + 1)) * np.unique(server, return_inverse=True)[1]
    begins = np.maximum.accumulate((arrive_s + apart)[order] - service_s * place) + service_s * place
    left = np.empty(len(order))
    left[order] = begins + service_s
    return left - apart


@dataclass(frozen=True, slots=True)
class Told:
    """What became of some calls: how many a second were answered, and milliseconds of a call without its device."""

    answered: float
    p50_ms: float
    p99_ms: float


def simulate(mesh: Mesh, costs: Figures, calls: int = 200_000, seed: int = 1) -> Told:
    """Sends calls through every station that a caller waits for."""
    dice = np.random.default_rng(seed)
    arrive = np.cumsum(dice.exponential(1 / mesh.offered, calls))
    node, shard = dice.random((2, calls))
    at = stations(mesh, costs)
    if any(at[name].taken >= 1 for name in ("HAProxy", "replicas", "Valkey")):
        return Told(0.0, np.inf, np.inf)
    node, shard = np.floor(node * at["HAProxy"].servers), np.floor(shard * mesh.valkeys)
    replica = np.arange(calls) % mesh.replicas * 1.0  # whichever has least to do: that is each in turn
    here = through(arrive, node, at["HAProxy"].service_s)
    here = through(here, replica, at["replicas"].service_s)
    # Hold and charge meet in one line; how late a charge comes there depends on its hold, so go round until it rests.
    shards, half, charged = np.tile(shard, 2), at["Valkey"].service_s / 2, here
    for _ in range(4):
        held = through(np.concatenate([here, charged]), shards, half)[:calls]
        charged = through(held, replica, at["devices"].service_s)
    done = through(np.concatenate([here, charged]), shards, half)[calls:]
    device = charged - held
    p50, p99 = np.percentile((done - arrive - device) * 1000, [50, 99])
    return Told(calls / (done.max() - arrive[0]), float(p50), float(p99))
