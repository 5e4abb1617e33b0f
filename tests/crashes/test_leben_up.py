"""A whole mesh, as an operator runs it, whose store is killed while calls run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest
import redis

from channels.journal.journal import Journal
from channels.ledger.sql_ledger import SqlLedger
from channels.payer import ChannelAuth, Wallet, receipt
from dapps.packages import registry
from serving.config.settings import Settings
from tests.conftest import RunningMesh, free_ports

ROUTE, CALLS, LANES = "/v2/models/chdr/diagnose", 24, 4
PATIENCE_S = 100.0


@pytest.fixture
def own_mesh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningMesh]:
    """A mesh that no other test uses, with one DApp."""
    monkeypatch.setenv("LEBEN_TRUSTED_DAPPS", "chdr")
    with RunningMesh(tmp_path / "data", free_ports()) as running:
        yield running


def kill_store(mesh: RunningMesh) -> None:
    with redis.Redis.from_url(Settings(data=mesh.data).redis_url()) as client:
        client.config_set("appendfsync", "always")  # the file is whole from here on, and nothing may be lost
        server = psutil.Process(client.info("server")["process_id"])
    server.kill()


async def answered(client: httpx.AsyncClient, key: str, body: bytes) -> httpx.Response:
    """The answer to a call, asked for again under its key until it comes."""
    until = time.monotonic() + PATIENCE_S
    while True:
        reply = "nothing"
        try:
            answer = await client.post(ROUTE, content=body, headers={"Idempotency-Key": key})
            if answer.status_code == 200:
                return answer
            reply = f"{answer.status_code} {answer.text}"
        except httpx.TransportError as error:
            reply = repr(error)
        assert time.monotonic() < until, f"call {key} is not answered: {reply}"
        await asyncio.sleep(0.25)


async def calls_with(
    mesh: RunningMesh, auth: ChannelAuth, name: str, strike: Callable[[], Awaitable[None]]
) -> dict[str, httpx.Response]:
    """Keyed calls in several lanes; `strike` happens when a third of them is answered."""
    body, answers = registry.load("chdr").sample().data, {}
    struck: list[asyncio.Task[None]] = []
    async with httpx.AsyncClient(base_url=mesh.url, auth=auth, timeout=60) as client:

        async def lane(number: int) -> None:
            for turn in range(CALLS // LANES):
                key = f"{name}-{number}-{turn}"
                answers[key] = await answered(client, key, body)
                if len(answers) == CALLS // 3:
                    struck.append(asyncio.create_task(strike()))

        await asyncio.gather(*(lane(number) for number in range(LANES)))
        await asyncio.gather(*struck)
        assert struck
        for key, first in answers.items():
            again = await answered(client, key, body)
            assert (again.content, receipt(again)) == (first.content, receipt(first)), key
    return answers


def check_books(mesh: RunningMesh, wallet: Wallet, auth: ChannelAuth, answers: dict[str, httpx.Response]) -> None:
    mesh.leben("settle")
    mesh.leben("ledger", "verify")
    (channel,) = auth.channels.values()
    url = Settings(data=mesh.data).sql_url()
    ledger, journal = SqlLedger.open(url), Journal.open(url)
    try:
        stored, handed = journal.receipts(channel.id), [receipt(answer).receipt for answer in answers.values()]
        assert sorted(handed, key=lambda receipt: receipt.seq) == stored, "a receipt a key, none lost, none twice"
        assert [receipt.seq for receipt in stored] == list(range(1, len(answers) + 1))
        total, on_ledger = sum(receipt.amount for receipt in stored), ledger.channel(channel.id)
        assert on_ledger is not None and total == on_ledger.total_claimed == channel.charged
        shares = [share for receipt in stored for share in receipt.shares]
        for owner in {share.owner for share in shares}:
            assert ledger.earnings(owner) == sum(share.amount for share in shares if share.owner == owner)
        assert journal.verify() == len(stored)
    finally:
        ledger.close()
        journal.close()
    assert not channel.outstanding and int(mesh.channel(wallet, auth)["charged"]) == total


@pytest.mark.starts_mesh
def test_the_store_is_killed_while_calls_run(own_mesh: RunningMesh) -> None:
    wallet = own_mesh.payer()
    auth = ChannelAuth(wallet)

    async def store_dies() -> None:
        kill_store(own_mesh)

    answers = asyncio.run(calls_with(own_mesh, auth, "store", store_dies))
    check_books(own_mesh, wallet, auth, answers)
