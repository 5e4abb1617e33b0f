"""A mesh of several machines: where replicas run, what a machine's end costs its callers, and how one leaves."""

from __future__ import annotations

import asyncio
import csv
import json
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from channels.payer import ChannelAuth, Wallet, receipt
from channels.protocol.signer import Signer
from serving.cli.node_logs import in_log
from serving.config.settings import Settings
from tests import machines, postgresql
from tests.conftest import SIMPLE
from tests.machines import Machine, Network
from tests.scheduling import one_at_a_time

PORT = 8_700
PAID, PLACED = "/v2/models/simple_busy", "/v2/models/simple"
FILE = """\
dapps:
  simple: {trusted: true, where: {cpus: 0, resources: {scanner: 1}, labels: {room: ct}}}
  simple_busy: {trusted: true, replicas: 2, where: {cpus: 0.6}}
  simple_paid: {trusted: true, where: {gpus: 2}}
"""
BODY = {"inputs": [{"name": "INPUT0", "datatype": "INT32", "shape": [1, 1], "data": [20]}]}


@dataclass
class Cluster:
    """A head and the machines that have joined it."""

    network: Network
    head: Machine
    nodes: list[Machine]

    @property
    def url(self) -> str:
        return url(self.head)

    def payer(self) -> Wallet:
        wallet = Wallet(Signer.generate())
        assert self.head.leben("wallet", "fund", wallet.address, "10000000", stdout=-3).wait(60) == 0
        return wallet

    def join(self) -> Machine:
        """One more machine: with a CT scanner in its room, and a token copied to it."""
        here = {
            "LEBEN_CPUS": "1",
            "LEBEN_PLACE_S": "1",
            "LEBEN_LABELS": '{"room": "ct"}',
            "LEBEN_RESOURCES": '{"scanner": 1}',
        }
        machine = self.network.machine({"PYTHONPATH": str(SIMPLE), **here})
        keys = machine.data / "keys"
        keys.mkdir(parents=True)
        (keys / "ray.token").write_bytes((self.head.data / "keys" / "ray.token").read_bytes())
        self.nodes.append(machine)
        return machine.up("--join", f"{self.head.address}:{PORT}")


def url(machine: Machine) -> str:
    return f"http://{machine.address}:{PORT}"


def until(what: Callable[[], bool], limit_s: float = 240) -> float:
    """Waits until something holds; how many seconds it took."""
    began = time.monotonic()
    while not what():
        assert time.monotonic() - began < limit_s
        time.sleep(0.2)
    return time.monotonic() - began


def replicas(machine: Machine, name: str) -> set[int]:
    """The processes of a DApp's replicas on a machine."""
    processes = set()
    for pid in machine.pids():
        try:
            if f"ServeReplica:{name}:" in " ".join(psutil.Process(pid).cmdline()):
                processes.add(pid)
        except psutil.NoSuchProcess:
            continue
    return processes


def servers(machine: Machine, name: str) -> int:
    """To how many replicas of a DApp a machine's proxy sends calls; none if it has no proxy."""
    try:
        page = httpx.get(f"http://{machine.address}:{PORT + 1}/stats;csv").text.lstrip("# ")
    except httpx.TransportError:
        return 0
    rows = [row for row in csv.DictReader(page.splitlines()) if row["pxname"] == f"http-{name}"]
    return sum(
        row["svname"] not in ("FRONTEND", "BACKEND") and row["act"] == "1" and row["status"] == "UP" for row in rows
    )


def answers(machine: Machine, path: str) -> bool:
    try:
        return httpx.get(f"{url(machine)}{path}/ready", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, postgresql: postgresql.Server) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("cluster")
    with machines.network(folder) as network:
        here = {"PYTHONPATH": str(SIMPLE), "LEBEN_CPUS": "1", "LEBEN_PLACE_S": "1"}
        ledger = postgresql.database()
        head = network.machine({**here, "LEBEN_STORE_URL": network.store_url, "LEBEN_LEDGER_URL": ledger})
        head.data.mkdir()
        (head.data / "leben.yaml").write_text(FILE)
        cluster = Cluster(network, head, [])
        with one_at_a_time("start"):
            head.up("--port", str(PORT), "--listen", head.address)
            until((head.data / "keys" / "ray.token").exists)
            cluster.join()
            assert head.line() == f"ready {cluster.url}"
        yield cluster
    postgresql.drop(ledger)


def test_each_dapp_runs_where_it_is_asked_to_and_every_proxy_leads_to_all(cluster: Cluster) -> None:
    (node,) = cluster.nodes
    line = node.line()
    assert line == f"joined {cluster.url} as {node.address} (CPU 1, scanner 1, room=ct)"
    shown = " ".join(node.leben("status", stdout=-1).communicate(timeout=60)[0].split())
    assert f"mesh {cluster.url} (answers) brings CPU 1, scanner 1, room=ct" in shown and "state joined" in shown
    for machine in (cluster.head, node):
        until(lambda machine=machine: servers(machine, "simple_busy") == 2 and answers(machine, PLACED))
        assert len(replicas(machine, "simple_busy")) == 1
    assert (len(replicas(cluster.head, "simple")), len(replicas(node, "simple"))) == (0, 1)


def test_a_dapp_that_no_node_can_take_is_told_with_what_there_is(cluster: Cluster) -> None:
    rows = {row["name"]: row for row in httpx.get(f"{cluster.url}/v1/dapps").json()["unserved"]}
    why = "no node has what it needs, `where: {gpus: 2}`; there are "
    assert why in rows["simple_paid"]["reason"] and f"{cluster.head.address} (CPU 1)" in rows["simple_paid"]["reason"]

    def shown() -> str:
        return " ".join(cluster.head.leben("status", stdout=-1).communicate(timeout=60)[0].split())

    # A node that has joined is noted once what it can take has been placed.
    until(lambda: f"{cluster.head.address} (CPU 1) {cluster.nodes[0].address} (CPU 1, scanner 1, room=ct)" in shown())
    assert "not as asked simple_paid: no node has what it needs" in shown()


def test_a_machine_killed_and_another_added_lose_no_paid_call_and_charge_none_twice(cluster: Cluster) -> None:
    node, began = cluster.nodes[-1], time.monotonic()
    other, wallet = cluster.join(), cluster.payer()
    auth = ChannelAuth(wallet)
    done: dict[str, httpx.Response | None] = {}
    stop = asyncio.Event()

    async def ask(http: httpx.AsyncClient, machine: Machine, key: str) -> None:
        done[key] = None
        with suppress(httpx.TransportError):
            done[key] = await http.post(f"{url(machine)}{PAID}/infer", json=BODY, headers={"Idempotency-Key": key})

    async def caller(http: httpx.AsyncClient, machine: Machine) -> None:
        while not stop.is_set():
            await ask(http, machine, uuid.uuid4().hex)
            await asyncio.sleep(0.05)  # all machines share this one's cores

    async def run() -> None:
        async with httpx.AsyncClient(auth=auth, timeout=30) as http:
            await ask(http, cluster.head, "first")
            through = asyncio.create_task(caller(http, node))
            callers = [asyncio.create_task(caller(http, cluster.head)) for _ in range(2)]
            await asyncio.to_thread(other.line)
            joined_s = time.monotonic() - began
            through.cancel()
            await asyncio.to_thread(node.kill)
            gone_s = await asyncio.to_thread(until, lambda: servers(cluster.head, "simple_busy") == 1)
            back_s = await asyncio.to_thread(
                until, lambda: all(servers(m, "simple_busy") == 2 and answers(m, PLACED) for m in (cluster.head, other))
            )
            stop.set()
            await asyncio.gather(*callers)
            lost = [key for key, answer in done.items() if answer is None or answer.status_code != 200]
            print(f"\n{len(done)} calls, {len(lost)} of them asked again: {[str(done[key]) for key in lost]}")
            for key in lost:
                await ask(http, other, key)
        print(f"joined after {joined_s:.1f} s; killed: let go after {gone_s:.1f} s, replaced {back_s:.1f} s later")

    asyncio.run(run())
    assert [answer for answer in done.values() if answer is None or answer.status_code != 200] == []
    receipts = [receipt(answer).receipt for answer in done.values() if answer is not None]
    assert len({row.call_id for row in receipts}) == len(done) > 20
    assert sum(row.amount for row in receipts) == max(row.after for row in receipts) == 10 * len(done)
    (channel,) = auth.channels.values()
    path = f"{cluster.url}/v1/channels/{channel.id}"
    channel: dict[str, Any] = httpx.get(
        path, headers=wallet.read_headers(path, channel.chain_id, channel.mesh), timeout=30
    ).json()
    assert (int(channel["charged"]), channel["receipts"]) == (10 * len(done), len(done))
    assert (len(replicas(node, "simple_busy")), len(replicas(other, "simple_busy"))) == (0, 1)
    # A call's line is where its replica was, and is found from the head; one asked again has another where it was kept.
    there = next(row.call_id for row in receipts if in_log(Settings(data=other.data), row.call_id))
    output = cluster.head.leben("logs", there, stdout=-1).communicate(timeout=120)[0]
    rows = [json.loads(line) for line in output.splitlines()]
    assert {("audit", other.address), ("receipt", None)} <= {(row["from"], row.get("node")) for row in rows}, output


def test_what_replicas_are_given_stands_in_no_file_and_no_environment(cluster: Cluster) -> None:
    key = Signer.from_file(cluster.head.data / "keys" / "receipt.key", "").secret().removeprefix("0x")
    read = 0
    for machine in (cluster.head, *cluster.nodes):
        places = [machine.log, machine.data / "node.log", Settings(data=machine.data).runtime / "ray"]
        files = [path for place in places for path in (place.rglob("*") if place.is_dir() else [place])]
        for path in (path for path in files if path.is_file() and not path.is_symlink()):
            content, read = path.read_bytes(), read + 1
            assert b"hunter2" not in content and key.encode() not in content, path
        for pid in machine.pids():
            if machine.process is None or pid != machine.process.pid:  # which the operator gave it to
                assert b"hunter2" not in Path(f"/proc/{pid}/environ").read_bytes()
    assert read > 50


def test_a_machine_that_leaves_ends_what_it_has_begun(cluster: Cluster) -> None:
    node, auth = cluster.nodes[-1], ChannelAuth(cluster.payer())

    async def run() -> list[httpx.Response]:
        answers = []
        leaving = asyncio.create_task(asyncio.to_thread(node.stop))

        async def caller(http: httpx.AsyncClient) -> None:
            while not leaving.done():
                answers.append(await http.post(f"{cluster.url}{PAID}/infer", json=BODY))
                await asyncio.sleep(0.05)

        async with httpx.AsyncClient(auth=auth, timeout=60) as http:
            await asyncio.gather(*[caller(http) for _ in range(3)])
        assert leaving.result().endswith("left the mesh\n")
        return answers

    answers = asyncio.run(run())
    assert [answer.text for answer in answers if answer.status_code != 200] == []
    assert not node.pids() and servers(cluster.head, "simple_busy") == 1
