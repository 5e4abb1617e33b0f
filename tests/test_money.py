"""Money as people handle it, through the commands and a running mesh: receipts, statements, earnings, withdrawals."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from channels.payer import ChannelAuth, Wallet, receipt
from channels.protocol.signer import Signer
from dapps.packages import registry
from tests.conftest import LEBEN, RunningMesh, free_ports

CHDR = "/v2/models/chdr/diagnose"


def paid(mesh: RunningMesh, auth: ChannelAuth, count: int) -> list[Any]:
    async def run() -> list[Any]:
        sound = registry.load("chdr").sample().data
        async with httpx.AsyncClient(base_url=mesh.url, auth=auth, timeout=120) as client:
            answers = [await client.post(CHDR, content=sound) for _ in range(count)]
        assert {answer.status_code for answer in answers} == {200}, [answer.text for answer in answers]
        return [receipt(answer).receipt for answer in answers]

    return asyncio.run(run())


def held(mesh: RunningMesh, address: str) -> int:
    return int(mesh.leben("wallet", "show", address))


def refused(mesh: RunningMesh, *words: str) -> str:
    done = subprocess.run([LEBEN, *words, "--data", str(mesh.data)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stdout + done.stderr
    return done.stderr


def test_a_payer_and_an_owner_see_and_take_what_is_theirs(mesh: RunningMesh, tmp_path: Path) -> None:
    key = tmp_path / "payer.key"
    wallet = Wallet.from_file(key)
    mesh.leben("wallet", "fund", wallet.address, "1000000")
    auth = ChannelAuth(wallet)
    calls = paid(mesh, auth, 3)
    total = sum(call.amount for call in calls)
    mesh.leben("settle")

    file = tmp_path / "receipt.json"
    assert "settled in epoch" in mesh.leben("receipt", "get", calls[0].call_id, "--key", str(key), "--out", str(file))
    raw = json.loads(file.read_text())
    facts = httpx.get(f"{mesh.url}/v1/catalogue").json()["mesh"]
    words = [LEBEN, "receipt", "verify", str(file), "--mesh", facts["receipts"], "--root", raw["proof"]["root"]]
    offline = {"PATH": os.environ["PATH"], "COLUMNS": "120"} | {
        name: os.environ[name] for name in ("PYTHONPATH", "HOME") if name in os.environ
    }
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, cwd=tmp_path, env=offline)
    assert done.returncode == 0 and done.stdout.count("holds") == 3, done.stdout + done.stderr

    table = list(csv.DictReader(mesh.leben("statement", "--key", str(key), "--csv").splitlines()))
    assert [row["receipt"] for row in table] == [call.call_id for call in calls]
    assert sum(int(row["amount"]) for row in table) == total
    assert {(row["carrier"], row["role"]) for row in table} == {("payer", "payer")}
    assert "charged" in mesh.leben("statement", "--key", str(key))

    owner = mesh.data / "keys" / "chdr-knowledge.key"
    earned = json.loads(mesh.leben("earnings", "show", "--key", str(owner), "--json"))
    assert int(earned["available"]) >= total // 4 > 0
    to = Signer.generate().address
    assert "0 left" in mesh.leben("earnings", "withdraw", "--key", str(owner), "--to", to)
    assert held(mesh, to) == int(earned["available"])
    assert "nothing to withdraw" in refused(mesh, "earnings", "withdraw", "--key", str(owner))

    (channel,) = auth.channels.values()
    output = mesh.leben("withdraw", "start", channel.id, "--key", str(key))
    assert "leben withdraw finish" in output
    assert "delay has not passed" in refused(mesh, "withdraw", "finish", channel.id, "--key", str(key))
    stranger = tmp_path / "stranger.key"
    Signer.from_file(stranger)
    for command in (["receipt", "get", calls[0].call_id], ["withdraw", "finish", channel.id]):
        assert "not yours" in refused(mesh, *command, "--key", str(stranger))
    assert "there is no key file" in refused(mesh, "statement", "--key", str(tmp_path / "none.key"))
    mesh.leben("ledger", "verify")
    mesh.leben("ledger", "backup", str(tmp_path / "ledger.backup"))
    assert "set aside" not in mesh.leben("status") and "at work" not in mesh.leben("status")


@pytest.mark.starts_mesh
def test_a_mesh_keeps_its_ledger_on_postgresql(
    postgresql: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = postgresql.database()
    monkeypatch.setenv("LEBEN_LEDGER_URL", url)
    monkeypatch.setenv("LEBEN_TRUSTED_DAPPS", "chdr")
    mesh = RunningMesh(tmp_path / "data", free_ports())
    mesh.start()
    try:
        wallet = mesh.payer(1_000_000)
        auth = ChannelAuth(wallet)
        first = paid(mesh, auth, 2)
        postgresql.kill()  # calls that are paid from an open channel go on, and wait in the store
        second = paid(mesh, auth, 2)
        postgresql.start()
        done = json.loads(mesh.leben("settle", "--json"))
        total = sum(call.amount for call in (*first, *second))
        assert done["claimed"] == total and int(mesh.channel(wallet, auth)["claimed"]) == total
        assert "adds up: 4 receipts" in mesh.leben("ledger", "verify")
        assert not (mesh.data / "ledger.db").exists()
    finally:
        mesh.stop()
        postgresql.drop(url)
