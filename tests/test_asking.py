"""A DApp that asks another on a running mesh: one charge, and the owners of both are paid at settlement."""

from __future__ import annotations

import json
from typing import Any

import httpx

from channels.payer import ChannelAuth, receipt
from tests.conftest import RunningMesh

DAPPS = ("simple_paid", "simple_asking")


def earned(mesh: RunningMesh, dapp: str) -> int:
    """What the owner of a DApp's knowledge has earned with it so far."""
    key = mesh.data / "keys" / f"{dapp}-knowledge.key"
    totals = json.loads(mesh.leben("earnings", "show", "--key", str(key), "--json"))["totals"]
    return sum(int(row["amount"]) for row in totals if (row["dapp"], row["carrier"]) == (dapp, "knowledge"))


def test_a_dapp_that_asks_another_pays_its_owners(simple: RunningMesh) -> None:
    simple.leben("settle")
    before = {name: earned(simple, name) for name in DAPPS}
    with httpx.Client(auth=ChannelAuth(simple.payer()), timeout=60) as client:

        def ask(*values: int) -> tuple[list[int], Any]:
            tensor = {"name": "INPUT0", "datatype": "UINT8", "shape": [1, len(values)], "data": list(values)}
            answer = client.post(f"{simple.url}/v2/models/simple_asking/infer", json={"inputs": [tensor]})
            assert answer.status_code == 200, answer.text
            return answer.json()["outputs"][0]["data"], receipt(answer).receipt

        data, spent = ask(1, 2, 3)
        (part,) = spent.parts
        assert data == [12] and (spent.amount, part.dapp, part.amount) == (250, "simple_paid", 100)
        # The other refuses what is no UINT8: it costs nothing, and this one answers without it.
        data, alone = ask(1, 2, 99)
        assert data == [-1] and (alone.amount, alone.parts) == (250, ())
    simple.leben("settle")
    # Half of 100 for who was asked; half of what is left of 250, and half of 250, for who asked.
    assert {name: earned(simple, name) - before[name] for name in DAPPS} == {"simple_paid": 50, "simple_asking": 200}
    assert simple.leben("ledger", "verify")
    rows = {row["name"]: row for row in httpx.get(f"{simple.url}/v1/dapps").json()["dapps"]}
    assert rows["simple_asking"]["calls"] == ["simple_paid"] and rows["simple_asking"]["health"]["state"] == "READY"
