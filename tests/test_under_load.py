"""A running mesh under load, from outside: many connections, a rolling update, scaling, a stop with calls in flight."""

from __future__ import annotations

import asyncio
import csv
import json
from typing import Any

import httpx
import pytest

from channels.payer import ChannelAuth, receipt
from tests.conftest import RunningMesh

SIMPLE, BUSY, SLOW = (f"/v2/models/{name}/infer" for name in ("simple", "simple_busy", "simple_slow"))
CONNECTIONS = 256


def call(milliseconds: int) -> dict[str, Any]:
    """A call of a model that takes so long."""
    return {"inputs": [{"name": "INPUT0", "datatype": "INT32", "shape": [1, 1], "data": [milliseconds]}]}


def client(mesh: RunningMesh, auth: ChannelAuth | None = None) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=mesh.url, auth=auth, timeout=60)


def rows_of(mesh: RunningMesh, name: str) -> list[dict[str, str]]:
    """What the proxy tells about the replicas of a DApp."""
    page = httpx.get(f"http://127.0.0.1:{mesh.port + 1}/stats;csv", timeout=60).text.lstrip("# ")
    rows = [row for row in csv.DictReader(page.splitlines()) if name in row["pxname"]]
    return [row for row in rows if row["svname"] not in ("FRONTEND", "BACKEND") and row["act"] == "1"]


def servers(mesh: RunningMesh, name: str) -> int:
    """How many replicas of a DApp the proxy sends calls to."""
    return sum(row["status"].startswith("UP") for row in rows_of(mesh, name))


def under_way(mesh: RunningMesh, name: str) -> int:
    """How many calls are with the replicas of a DApp."""
    return sum(int(row["scur"]) for row in rows_of(mesh, name))


def test_256_callers_send_their_bodies_slowly_and_keep_nobody_out(simple: RunningMesh) -> None:
    rows = [{"name": name, "datatype": "INT32", "shape": [1, 16], "data": [1] * 16} for name in ("INPUT0", "INPUT1")]
    body = json.dumps({"inputs": rows}).encode()
    head = f"POST {SIMPLE} HTTP/1.1\r\nhost: mesh\r\ncontent-length: {len(body)}\r\n\r\n".encode()

    async def run() -> None:
        lines = [await asyncio.open_connection("127.0.0.1", simple.port) for _ in range(CONNECTIONS)]
        for _, writer in lines:
            writer.write(head + body[:9])
        async with client(simple) as other:
            assert (await other.get("/v2/health/ready")).status_code == 200
            assert (await other.get("/v2/models/simple/ready")).status_code == 200
            assert (await other.post(SIMPLE, content=body)).json()["outputs"][0]["data"] == [2] * 16
        for _, writer in lines:
            writer.write(body[9:])
        statuses = [(await reader.readuntil(b"\r\n"))[9:12] for reader, _ in lines]
        assert set(statuses) == {b"200"}
        for _, writer in lines:
            writer.close()

    asyncio.run(run())


def test_an_update_of_a_dapp_under_load_loses_no_paid_call(simple: RunningMesh) -> None:
    wallet = simple.payer()
    auth = ChannelAuth(wallet)

    async def run() -> list[httpx.Response]:
        answers: list[httpx.Response] = []
        updated = asyncio.Event()

        async def caller(http: httpx.AsyncClient) -> None:
            while not updated.is_set():
                answers.append(await http.post(BUSY, json=call(20)))

        async with client(simple, auth) as http, client(simple) as operator:
            answers.append(await http.post(BUSY, json=call(1)))
            long = asyncio.create_task(http.post(BUSY, json=call(3_000)))
            await asyncio.sleep(0.1)
            callers = [asyncio.create_task(caller(http)) for _ in range(4)]
            parameters = {"parameters": {"config": '{"max_batch_size": 3}'}}
            loaded = await operator.post("/v2/repository/models/simple_busy/load", json=parameters)
            assert loaded.status_code == 200, loaded.text
            config = await operator.get("/v2/models/simple_busy/config")
            assert config.json()["max_batch_size"] == 3, "the new replica answers"
            for _ in range(5):
                answers.append(await http.post(BUSY, json=call(1)))
            updated.set()
            await asyncio.gather(*callers)
            answers.append(await long)
        return answers

    answers = asyncio.run(run())
    assert [answer.text for answer in answers if answer.status_code != 200] == []
    assert len({receipt(answer).receipt.call_id for answer in answers}) == len(answers)
    state = simple.channel(wallet, auth)
    assert (int(state["charged"]), state["receipts"]) == (10 * len(answers), len(answers))


def test_replicas_come_with_the_calls_and_go_with_them(simple: RunningMesh) -> None:
    async def run() -> None:
        assert servers(simple, "simple_slow") == 1
        grown = asyncio.Event()

        async def caller(http: httpx.AsyncClient) -> set[int]:
            statuses = set()
            while not grown.is_set():
                statuses.add((await http.post(SLOW, json=call(50))).status_code)
            return statuses

        async def until(count: int) -> None:
            async with asyncio.timeout(240):
                while await asyncio.to_thread(servers, simple, "simple_slow") != count:
                    await asyncio.sleep(0.2)

        async with client(simple) as http:
            callers = [asyncio.create_task(caller(http)) for _ in range(8)]
            await until(3)
            grown.set()
            assert set.union(*await asyncio.gather(*callers)) == {200}
            await until(1)
            assert (await http.post(SLOW, json=call(1))).status_code == 200

    asyncio.run(run())


@pytest.mark.stops_mesh
def test_calls_in_flight_are_answered_and_charged_before_a_mesh_stops(simple: RunningMesh) -> None:
    wallet = simple.payer()
    auth = ChannelAuth(wallet)

    async def run() -> list[Any]:
        async with client(simple, auth) as http:
            assert (await http.post(BUSY, json=call(1))).status_code == 200
            calls = [asyncio.create_task(http.post(BUSY, json=call(1_500))) for _ in range(3)]
            while await asyncio.to_thread(under_way, simple, "simple_busy") < 3 and not any(
                map(asyncio.Task.done, calls)
            ):
                await asyncio.sleep(0.02)
            await asyncio.to_thread(simple.stop)
            return list(await asyncio.gather(*calls, return_exceptions=True))

    answers = asyncio.run(run())
    assert [getattr(answer, "status_code", answer) for answer in answers] == [200] * 3
    assert sorted(receipt(answer).receipt.after for answer in answers) == [20, 30, 40]
