"""What is full first as a mesh grows to ten thousand replicas and a million channels, and which knob moves it.

`python tests/benchmarks/scale.py` counts with `scale.json` and writes the tables and the plot of docs/scale.md.
`--measure store`, `books` or `mesh` measures a part of `scale.json` anew on this machine, a few minutes each.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path

from rich.console import Console

sys.path.insert(0, str(Path(__file__).parent))
from _queues import MOST_A_NODE, STORE_CLIENTS, Figures, Mesh, simulate, stations, used

ROOT = Path(__file__).parents[2]
COSTS, PAGE, PLOT = Path(__file__).with_suffix(".json"), ROOT / "docs" / "scale.md", ROOT / "docs" / "images"
SIZES = (10, 30, 100, 300, 1_000, 3_000, 10_000)
MEMORY_GB, CORE_HOUR, FULL = 64, 0.04, 0.7
"""Memory of the store's machine, price of a core; both assumed. How busy a server may be without queues that grow."""
CLAIM_GAS, BLOCK_GAS, BLOCK_S = 18_222, 30_000_000, 12
"""A channel in a claim of a hundred, measured by `gas.py`; a block and how often there is one, assumed."""
say = Console(stderr=True).print


def sized(replicas: int) -> Mesh:
    """A mesh with a hundred channels a replica."""
    return Mesh(replicas=replicas, channels=100 * replicas)


def percent(part: float) -> str:
    """Of a server's time; more than it has is bold."""
    text = f"{part * 100:,.0f} %".replace(",", " ")
    return f"**{text}**" if part > 1 else text


def number(value: float) -> str:
    """With thin groups of three digits, as in the other pages."""
    return f"{value:,.0f}".replace(",", " ")


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def texts(mesh: Mesh, costs: Figures) -> tuple[str, str]:
    """Calls a second that are answered, and the slowest hundredth's milliseconds, unless they wait ever longer."""
    result = simulate(mesh, costs, int(min(max(2 * mesh.offered, 100_000), 700_000)))
    keeps = result.answered > 0.95 * mesh.offered
    return number(min(result.answered, mesh.offered)), f"{result.p99_ms:.1f}" if keeps else "ever longer"


def growing(costs: Figures) -> str:
    """A mesh as it is built, by its size."""
    rows = []
    for replicas in SIZES:
        mesh = sized(replicas)
        busy = used(mesh, costs)
        parts = [percent(busy[name]) for name in ("HAProxy", "replicas", "Valkey", "treasury")]
        rows.append([number(replicas), number(mesh.offered), *parts, *texts(mesh, costs)])
    head = ("replicas", "calls/s asked", "HAProxy", "replica's loop", "Valkey", "treasury", "answered/s", "p99 ms")
    return markdown(head, rows)


def walls(costs: Figures) -> str:
    """Each limit: where it is met by a mesh as it is built, and how much of its knob the largest one needs."""
    top = Mesh()
    busy, at = used(top, costs), stations(top, costs)
    gb_s = top.offered * costs["store_further_call_bytes"] / 1e9
    one_s = sized(100).offered * costs["store_further_call_bytes"] / 1e9

    def met(name: str, most: float = 1.0) -> str:
        low, high = 1, 1_000_000
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if used(sized(middle), costs)[name] > most else (middle + 1, high)
        return f"{number(low)} replicas"

    at_once = stations(replace(top, settle_s=300.0), costs)["treasury"].taken
    daily = stations(replace(top, settle_s=86_400.0), costs)["treasury"].taken
    connections = costs["store_connections_a_replica"]
    again_s = top.channels * costs["postgresql_mirror_channel_us"] / 1e6
    rows = [
        (
            "memory of the store: a keyed call's key is kept for ever",
            f"{MEMORY_GB} GB in {MEMORY_GB / one_s / 3600:.0f} h at 100 replicas",
            f"{MEMORY_GB} GB in {MEMORY_GB / gb_s / 60:.0f} min",
        ),
        ("treasury: drain", met("treasury"), f"{ceil(top.offered * at['treasury'].call_s / FULL)} treasuries"),
        ("treasury: claims", "beside the drain", f"{at_once:.1f} treasuries at 300 s, {daily:.2f} at a day"),
        (
            "Valkey: started again, it serves nothing meanwhile",
            f"{costs['postgresql_mirror_channel_us'] / 1000:.2f} ms a channel, "
            f"{costs['postgresql_restore_entry_us'] / 1000:.2f} ms a call kept",
            f"{again_s / 60:.0f} min, and the calls kept",
        ),
        ("Valkey: CPU", met("Valkey"), f"{ceil(busy['Valkey'] / FULL)} servers"),
        (
            "Valkey: each replica's counters, once a second",
            f"{number(1e6 / costs['store_statistics_cpu_us'])} replicas",
            f"{percent(at['Valkey'].taken)} of its thread",
        ),
        (
            "Valkey: connections",
            f"{number(STORE_CLIENTS / connections)} replicas",
            f"`maxclients` above {number(connections * top.replicas)}",
        ),
        ("HAProxy: calls and checks", met("HAProxy"), f"{percent(busy['HAProxy'])} of each node's one thread"),
        ("replica's loop: it is checked", met("replicas"), f"{percent(at['replicas'].taken)} of it goes into checks"),
        (
            "ledger on a chain: blocks",
            f"{BLOCK_GAS / CLAIM_GAS / BLOCK_S:.0f} channels/s, in blocks of nothing else",
            f"{top.channels * CLAIM_GAS / BLOCK_GAS * BLOCK_S / 3600:.1f} h for every channel once",
        ),
        ("node: ports", f"{MOST_A_NODE} replicas a node", f"at least {number(top.replicas / MOST_A_NODE)} nodes"),
    ]
    return markdown(("limit", "met at", "at 10 000 replicas"), rows)


def knobs(costs: Figures) -> str:
    """Turned one after the other at the full size: what is full next, and what a call costs in CPU."""
    mesh, rows = Mesh(), []
    steps: list[tuple[str, dict[str, float]]] = [
        ("as built", {}),
        ("settle once a day", {"settle_s": 86_400.0}),
        ("treasuries", {"treasuries": 0}),
        ("Valkeys", {"valkeys": 0}),
        ("nodes of 40 replicas", {"node": MOST_A_NODE}),
        ("two HAProxy threads", {"threads": 2}),
    ]
    for name, change in steps:
        told_name = name
        for knob, value in change.items():
            if value == 0:
                station = {"treasuries": "treasury", "valkeys": "Valkey"}[knob]
                value = ceil(used(mesh, costs)[station] / FULL)
                told_name = f"{number(value)} {name}"
            mesh = replace(mesh, **{knob: value})
        busy = used(mesh, costs)
        parts = {name: part for name, part in busy.items() if name != "devices"}
        first = max(parts, key=parts.__getitem__)
        lasting = min(station.capacity for station in stations(mesh, costs).values())
        answered, late = texts(mesh, costs)
        rows.append([told_name, first, percent(parts[first]), answered, late, number(min(lasting, mesh.offered))])
    head = ("step, on top of those above", "fullest", "busy", "answered/s", "p99 ms", "for good/s")
    return markdown(head, rows)


def call(costs: Figures) -> str:
    """What one call costs, by who does the work."""
    parts = {
        "replica: door, paywall, batcher, counters": "replica",
        "Valkey": "valkey",
        "treasury": "treasury",
        "HAProxy": "haproxy",
        "its manager, which counts calls": "haproxy_manager",
    }
    us = {name: costs[f"{part}_call_cpu_us"] for name, part in parts.items()}
    rows = [[name, number(cost)] for name, cost in us.items()]
    whole = sum(us.values())
    price = whole / 3600e6 * CORE_HOUR * 1e6
    rows.append(["together", f"{number(whole)}, {price:.3f} atomic units at {CORE_HOUR:.2f} a core and hour"])
    store_row = ["kept in the store, a call with a key", f"{number(costs['store_further_call_bytes'])} bytes, for ever"]
    written = ["written to the append-only file", f"{number(costs['store_written_call_bytes'])} bytes"]
    return markdown(
        ("a call of 7 B", "CPU µs"),
        [*rows, store_row, written, ["kept in SQLite", f"{number(costs['sqlite_entry_bytes'])} bytes"]],
    )


def measured(costs: Figures) -> str:
    """The figures themselves."""
    rows = [[f"`{name}`", f"{value:.3g}" if value < 100 else number(value)] for name, value in sorted(costs.items())]
    return markdown(("figure", "value"), rows)


BLOCKS = {"growing": growing, "walls": walls, "knobs": knobs, "call": call, "measured": measured}
"""What writes each table of the page, by the name that its place there has."""


def plot(costs: Figures) -> None:
    """How busy each kind of server is, by the mesh's size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.2, 4.2), layout="constrained")
    for name, mark in (("treasury", "o"), ("Valkey", "s"), ("HAProxy", "^"), ("replicas", "D"), ("devices", "x")):
        label = {"replicas": "a replica's loop", "devices": "devices (asked for)"}.get(name, name)
        axes.plot(SIZES, [100 * used(sized(size), costs)[name] for size in SIZES], marker=mark, label=label)
    axes.axhline(100, color="black", linewidth=0.8, linestyle="--")
    axes.set(xscale="log", yscale="log", xlabel="replicas, with a hundred channels each", ylabel="busy, %")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3, which="both", linewidth=0.4)
    figure.savefig(PLOT / "scale.png", dpi=110, metadata={"Software": None})
    pyplot.close(figure)


def measure(part: str) -> None:
    """Puts one part's figures into `scale.json`."""
    import _costs

    measured = {
        "store": lambda: _costs.store(100_000, say),
        "books": lambda: _costs.both_books(2_000, 50, say),
        "mesh": lambda: _costs.mesh(4_000, say),
    }[part]()
    costs = json.loads(COSTS.read_text()) if COSTS.exists() else {}
    COSTS.write_text(json.dumps(costs | measured, indent=1, sort_keys=True) + "\n")
    say(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


def main() -> None:
    """Measures, or counts and writes."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--measure", choices=["store", "books", "mesh"])
    words = options.parse_args()
    if words.measure:
        measure(words.measure)
        return
    costs: Figures = json.loads(COSTS.read_text())
    text = PAGE.read_text()
    for name, table in BLOCKS.items():
        say(f"{name} …")
        head, mark, rest = text.partition(f"<!-- scale.py: {name} -->\n")
        _, end, tail = rest.partition("<!-- end -->")
        if not mark or not end:
            raise SystemExit(f"docs/scale.md has no place for {name}")
        texts = table(costs)
        print(texts, end="\n\n")
        text = f"{head}{mark}\n{texts}\n\n{end}{tail}"
    PAGE.write_text(text)
    plot(costs)


if __name__ == "__main__":
    main()
