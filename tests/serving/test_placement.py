"""Which node can take a replica, and the message when none can."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from serving.cluster.placement import Demand, Node, Place, full, make_room, unplaced
from serving.mesh.applications import demand_of

GPU = Node("10.0.0.2", {"CPU": 8, "GPU": 2, "memory": 1e9, "node:10.0.0.2": 1}, {"CPU": 8, "GPU": 0.2}, {"room": "ct"})
PLAIN = Node("10.0.0.1", {"CPU": 4, "scanner": 1}, {"CPU": 4, "scanner": 1}, {"ray.io/node-id": "ab"})


@pytest.mark.parametrize(
    ("demand", "fit"),
    [
        (Demand(4), [PLAIN, GPU]),
        (Demand(0.5, 0.4), [GPU]),
        (Demand(0, resources={"scanner": 1}), [PLAIN]),
        (Demand(0, labels={"room": "ct"}), [GPU]),
        (Demand(0, resources={"scanner": 1}, labels={"room": "ct"}), []),
        (Demand(0, labels={"room": "mr"}), []),
        (Demand(9), []),
    ],
)
def test_a_node_fits_if_it_has_all_that_is_asked_for(demand: Demand, fit: list[Node]) -> None:
    assert [node for node in (PLAIN, GPU) if demand.fits(node)] == fit
    assert bool(unplaced(demand, [PLAIN, GPU])) == (not fit)


def test_what_cannot_be_placed_is_told_in_the_words_of_the_mesh_file() -> None:
    demand = Demand(2, 3, {"scanner": 2}, {"room": "mr"})
    cause = unplaced(demand, [PLAIN, GPU])
    assert cause == (
        "no node has what it needs, `where: {cpus: 2, gpus: 3, resources: {scanner: 2}, labels: {room: mr}}`; "
        "there are 10.0.0.1 (CPU 4, scanner 1); 10.0.0.2 (CPU 8, GPU 2, room=ct)"
    )
    assert "free are 10.0.0.2 (CPU 8, GPU 0.2)" in full(Demand(0.5, 0.4), [PLAIN, GPU])


def test_a_full_machine_names_who_holds_what_and_how_to_make_room() -> None:
    held = {"strokedr": (2, Demand(0, 0.4)), "chdr": (1, Demand(0.5)), "waiting": (0, Demand(4))}
    assert make_room(held) == (
        "chdr holds 1 x {cpus: 0.5}, strokedr holds 2 x {gpus: 0.4}: `leben dapp disable NAME`, "
        "or fewer `replicas` or a smaller `where` in leben.yaml, makes room"
    )


def test_room_is_counted_in_whole_replicas_on_each_node() -> None:
    rows = [
        (Demand(3), 1, 2),
        (Demand(0.5, 0.1), 0, 2),
        (Demand(0, 0.4), 0, 0),
        (Demand(0, resources={"scanner": 1}), 1, 0),
    ]
    assert [(demand, demand.room(PLAIN), demand.room(GPU)) for demand in (row[0] for row in rows)] == rows
    assert Demand(0).room(PLAIN) > 100
    assert Place(Demand(3), 2, 1, True).surge == 100 and Place(Demand(3), 2, 0, True).surge == 0


@pytest.mark.parametrize(
    ("where", "there", "demand"),
    [
        ({}, [PLAIN], Demand(0.5)),
        ({}, [PLAIN, GPU], Demand(0, 0.4)),
        ({"resources": {"scanner": 1}}, [PLAIN, GPU], Demand(0.5, resources={"scanner": 1})),
        ({"labels": {"room": "ct"}}, [PLAIN, GPU], Demand(0, 0.4, labels={"room": "ct"})),
        ({"gpus": 0}, [PLAIN, GPU], Demand(0.5)),
        ({"gpus": 1, "cpus": 2}, [PLAIN], Demand(2, 1)),
    ],
)
def test_a_replica_has_part_of_a_gpu_where_it_may_run_on_a_node_with_one(
    where: dict[str, Any], there: list[Node], demand: Demand
) -> None:
    spec: Any = SimpleNamespace(**{"gpus": None, "cpus": None, "resources": {}, "labels": {}, "gpu_share": 0.4} | where)
    assert demand_of(spec, there) == demand
