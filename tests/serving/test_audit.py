"""Checks the audit log: one line for each call, without a caller's words, in a chain that shows any change."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from channels.payer import ChannelAuth, receipt
from serving.replica.audit import REFUSED_A_SECOND, AuditMiddleware
from serving.telemetry.audit_log import AuditLog, BrokenChain, chains, read
from tests.examples import examples
from tests.serving.test_cli import leben


def lines(folder: Path) -> list[dict[str, Any]]:
    return [line for chain in chains(folder) for line in read(chain)]


def test_a_chain_goes_on_over_rotation_restart_and_half_a_line(tmp_path: Path) -> None:
    log = AuditLog(tmp_path, "chdr", rotate_bytes=1_000, keep_files=3)
    for number in range(20):
        log.write({"at_ms": number})
    log.close()
    open_file = tmp_path / "chdr-0.jsonl"
    with open_file.open("ab") as file:
        file.write(b'{"n": 21, "half a li')
    again = AuditLog(tmp_path, "chdr", rotate_bytes=1_000, keep_files=3)
    for number in range(20, 25):
        again.write({"at_ms": number})
    written_lines = lines(tmp_path)
    assert [line["at_ms"] for line in written_lines] == list(range(written_lines[0]["at_ms"], 25))
    assert len(list(tmp_path.glob("chdr-0.*.jsonl"))) == 3, "the oldest files are gone, what is left is one chain"
    assert {path.stat().st_mode & 0o077 for path in tmp_path.iterdir()} == {0}
    again.close()


def test_two_writers_have_a_chain_each(tmp_path: Path) -> None:
    first, second = AuditLog(tmp_path, "chdr"), AuditLog(tmp_path, "chdr")
    for log in (first, second, first):
        log.write({"at_ms": 1})
    assert sorted(sum(1 for _ in read(chain)) for chain in chains(tmp_path)) == [1, 2]
    first.close()
    third = AuditLog(tmp_path, "chdr")
    third.write({"at_ms": 2})
    assert [line["n"] for line in read(tmp_path / "chdr-0.jsonl")] == [1, 2, 3]
    second.close()
    third.close()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audit")
    log = AuditLog(folder, "chdr", rotate_bytes=700)
    for number in range(9):
        log.write({"at_ms": number, "ms": 0.25, "code": ""})
    log.close()
    return folder


@settings(max_examples=examples(80))
@given(st.data())
def test_any_changed_byte_and_any_missing_line_is_found(
    written: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("changed")
    for path in written.glob("*.jsonl"):
        (folder / path.name).write_bytes(path.read_bytes())
    victim = data.draw(st.sampled_from(sorted(path for path in folder.glob("*.jsonl") if path.stat().st_size)))
    raw = victim.read_bytes()
    if data.draw(st.booleans()):
        place, byte = data.draw(st.integers(0, len(raw) - 1)), data.draw(st.integers(0, 255))
        changed = raw[:place] + bytes([byte]) + raw[place + 1 :]
    else:
        remaining = raw.splitlines(keepends=True)
        del remaining[data.draw(st.integers(0, len(remaining) - 1))]
        changed = b"".join(remaining)
        # Whoever can write the folder can cut the newest lines off, or the oldest: their numbers then say so.
        if len(remaining) == 0 or lines_of(changed) in (lines_of(raw)[:-1], lines_of(raw)[1:]):
            return
    victim.write_bytes(changed)
    if changed != raw:
        with pytest.raises(BrokenChain):
            lines(folder)


def lines_of(raw: bytes) -> list[bytes]:
    return raw.splitlines()


FULL = """
import resource, sys
from pathlib import Path
from serving.telemetry import AuditLog
log = AuditLog(Path(sys.argv[1]), "chdr")
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
for number in range(20):
    log.write({"at_ms": number})
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
log.write({"at_ms": 20})
log.close()
"""


def test_a_disk_that_is_full_stops_no_call_and_is_told_afterwards(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr.count("ALARM") == 1, done.stderr
    written_lines = lines(tmp_path)
    assert written_lines[-1]["at_ms"] == 20 and written_lines[-1]["missed"] == 20 - (len(written_lines) - 1) > 0


Scenario = Callable[[Any], Awaitable[None]]


def test_every_call_has_its_line_and_none_of_the_callers_words(
    on_replica: Callable[[Scenario], None], wallet: Any, tmp_path: Path
) -> None:
    canary = "CANARY-MRS-EXAMPLE"

    async def scenario(bench: Any) -> None:
        log = AuditLog(tmp_path, "doubler")
        app = AuditMiddleware(bench.app, "doubler", log)
        auth = ChannelAuth(wallet)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://mesh", auth=auth) as client:
            good = await client.post("/diagnose", content=b"21", headers={"Idempotency-Key": canary})
            bad = await client.post(f"/diagnose?name={canary}", content=canary.encode(), headers={"X-Note": canary})
            old = await client.post(f"/versions/{canary}/infer", content=b"{}")
            facts = await client.get("/")
        assert [answer.status_code for answer in (good, bad, old, facts)] == [200, 422, 404, 200]
        quoted, paid, refused, unknown = lines(tmp_path)
        assert (quoted["status"], quoted["code"]) == (402, "payment_required") and "payer" not in quoted
        signed = receipt(good).receipt
        assert (paid["status"], paid["receipt"], paid["seq"]) == (200, signed.call_id, 1)
        assert (paid["payer"], paid["channel"], paid["charged"]) == (wallet.address, signed.channel_id, "100")
        assert paid["in"] == 2 and paid["out"] == len(good.content) and paid["ms"] > 0 and paid["moved"] == "4000"
        assert (refused["code"], refused["in"]) == ("unreadable", len(canary))
        assert (unknown["status"], unknown["code"]) == (404, "unknown_version")
        log.close()

    on_replica(scenario)
    assert canary not in "".join(path.read_text() for path in tmp_path.iterdir())


def test_a_flood_of_unpaid_calls_does_not_fill_the_log(on_replica: Callable[[Scenario], None], tmp_path: Path) -> None:
    async def scenario(bench: Any) -> None:
        log = AuditLog(tmp_path, "doubler")
        clock = iter([0.0] * 51 + [0.05])  # no time passes, then enough for one
        app = AuditMiddleware(bench.app, "doubler", log, lambda: next(clock))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://mesh") as client:
            for _ in range(50):
                await client.post("/infer", content=b"{}")
            assert len(lines(tmp_path)) == REFUSED_A_SECOND
            await client.post("/infer", content=b"{}")
        assert lines(tmp_path)[-1]["dropped"] == 50 - REFUSED_A_SECOND
        log.close()

    on_replica(scenario)


def test_a_caller_that_hangs_up_has_a_line_too(tmp_path: Path) -> None:
    async def never(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        raise asyncio.CancelledError

    async def run() -> None:
        log = AuditLog(tmp_path, "doubler")
        scope = {"type": "http", "path": "/infer", "headers": []}

        async def receive() -> Any:
            return {"type": "http.request", "body": b"123", "more_body": True}

        async def send(message: Any) -> None:
            raise AssertionError("nothing is answered")

        with pytest.raises(asyncio.CancelledError):
            await AuditMiddleware(never, "doubler", log)(scope, receive, send)
        log.close()

    asyncio.run(run())
    (line,) = lines(tmp_path)
    assert (line["status"], line["in"], line["out"]) == (0, 3, 0)


def test_the_line_of_a_keyed_call_that_was_hung_up_on_says_what_it_was_charged(
    on_replica: Callable[[Scenario], None], wallet: Any, tmp_path: Path
) -> None:
    async def scenario(bench: Any) -> None:
        log, started, release = AuditLog(tmp_path, "doubler"), asyncio.Event(), asyncio.Event()
        app, auth, run = AuditMiddleware(bench.app, "doubler", log), ChannelAuth(wallet), bench.runner.run

        async def slowly(inputs: Any) -> Any:
            started.set()
            await release.wait()
            return await run(inputs)

        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://mesh", auth=auth) as client:
            assert (await client.post("/diagnose", content=b"21")).status_code == 200
            bench.runner.run = slowly
            call = asyncio.create_task(client.post("/diagnose", content=b"22", headers={"Idempotency-Key": "one"}))
            await started.wait()
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
            before = len(lines(tmp_path))
            release.set()
            while len(lines(tmp_path)) == before:
                await asyncio.sleep(0)
        line = lines(tmp_path)[-1]
        assert (line["status"], line["out"], line["charged"], line["payer"]) == (0, 0, "100", wallet.address)
        assert bench.charged() == 200 and line["receipt"] == bench.store.journal[-1]["call"]
        log.close()

    on_replica(scenario)


def test_the_commands_verify_and_export(tmp_path: Path) -> None:
    data = str(tmp_path)
    assert "there is no audit log" in leben("audit", "verify", "--data", data).stderr
    log = AuditLog(tmp_path / "audit", "chdr")
    for second in range(3):
        log.write({"at_ms": second * 1_000, "dapp": "chdr", "status": 200})
    log.close()
    assert "chdr-0: 3 lines" in leben("audit", "verify", "--data", data).stdout
    exported = leben("audit", "export", "--data", data, "--from", "1970-01-01T00:00:01", "--to", "1970-01-01T00:00:02")
    assert [json.loads(line)["n"] for line in exported.stdout.splitlines()] == [2]
    assert leben("audit", "export", "--data", data, "--csv").stdout.splitlines()[0].startswith("at_ms,dapp,route")
    assert "ISO 8601" in leben("audit", "export", "--data", data, "--from", "yesterday").stderr
    path = tmp_path / "audit" / "chdr-0.jsonl"
    path.write_text(path.read_text().replace('"status":200', '"status":201', 1))
    for command in ("verify", "export"):
        done = leben("audit", command, "--data", data)
        assert done.returncode == 1 and "line after None is not what was written" in done.stderr, done.stderr
