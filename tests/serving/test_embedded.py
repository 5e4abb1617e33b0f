"""One machine's parts: the locked folder, the private folder, the store that ends with its mesh, the keys."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import redis
from pydantic import SecretStr

from channels.ledger import SqlLedger
from channels.receipts import CARRIERS
from dapps.packages import registry
from serving.cluster import data_folder, processes, ray_environment, valkey
from serving.config import mesh_file
from serving.config.settings import Settings
from serving.mesh import owners
from serving.telemetry import AuditLog


def test_a_folder_has_one_owner_at_a_time(tmp_path: Path) -> None:
    lock = data_folder.Lock(tmp_path)
    with pytest.raises(data_folder.FolderInUse, match="another mesh"):
        data_folder.Lock(tmp_path)
    lock.release()
    data_folder.Lock(tmp_path).release()


def test_a_folder_that_somebody_else_could_enter_is_refused(tmp_path: Path) -> None:
    assert stat.S_IMODE(data_folder.private_folder(tmp_path / "fresh").stat().st_mode) == 0o700
    (tmp_path / "open").mkdir(mode=0o755)
    (tmp_path / "link").symlink_to(tmp_path)
    for name in ("open", "link"):
        with pytest.raises(PermissionError):
            data_folder.private_folder(tmp_path / name)


def test_keys_are_made_once_and_only_their_owner_can_read_them(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path)
    first = {name: signer.address for name, signer in data_folder.signers(settings).items()}
    assert first == {name: signer.address for name, signer in data_folder.signers(settings).items()}
    assert len(set(first.values())) == 3
    for path in settings.keys.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path.name


@pytest.fixture
def open_umask():
    before = os.umask(0)
    yield
    os.umask(before)


def test_everything_in_a_data_folder_is_private_whoever_made_it(open_umask: None, tmp_path: Path) -> None:
    settings = Settings(data=tmp_path / "data")
    for folder in (settings.home, settings.keys, settings.home / "store", settings.audit):
        folder.mkdir(mode=0o755)
    for file in (settings.home / "owners.json", settings.keys / "old.key", settings.home / "store" / "old.log"):
        file.touch(mode=0o644)
    lock = data_folder.Lock(settings.home)
    data_folder.signers(settings)
    data_folder.note_running(settings, {"pid": 1})
    mesh_file.change(settings, "chdr", trusted=True)
    SqlLedger.open(settings.sql_url()).close()
    AuditLog(settings.audit, "chdr").close()
    data_folder.private_folder(settings.runtime)
    store = valkey.Valkey(settings)
    with redis.Redis.from_url(settings.redis_url()) as client:
        client.set("leben:test", "kept")
    store.stop()
    lock.release()
    paths = [settings.home, *settings.home.rglob("*")]
    assert len(paths) > 15
    assert [f"{path} {stat.S_IMODE(path.stat().st_mode):o}" for path in paths if path.stat().st_mode & 0o077] == []


def test_a_folder_of_other_things_keeps_its_mode(tmp_path: Path, monkeypatch) -> None:
    things, home, shared = (tmp_path / name for name in ("things", "home", "shared"))
    for folder in (things, home, shared):
        folder.mkdir()
        folder.chmod(0o1755 if folder == shared else 0o755)
    (things / "thesis.txt").touch()
    (home / "leben.yaml").touch()
    monkeypatch.setenv("HOME", str(home))
    for folder in (things, home, shared):
        data_folder.Lock(folder).release()
        assert folder.stat().st_mode & 0o777 == 0o755


def test_what_is_written_is_there_after_a_kill_and_nothing_is_left_running(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from serving.cluster import data_folder, valkey;"
        "from serving.config.settings import Settings;"
        "s = Settings(data=Path(sys.argv[1])); data_folder.Lock(s.home); data_folder.private_folder(s.runtime);"
        "valkey.Valkey(s); print('up', flush=True); time.sleep(60)"
    )
    settings = Settings(data=tmp_path)
    child = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "up\n"
    with redis.Redis.from_url(settings.redis_url()) as client:
        client.set("leben:test", "kept")
        server = psutil.Process(client.info("server")["process_id"])
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    server.wait(timeout=90)
    data_folder.private_folder(settings.runtime)
    store = valkey.Valkey(settings)
    with redis.Redis.from_url(settings.redis_url()) as client:
        assert client.get("leben:test") == b"kept"
    store.stop()


def test_a_store_that_was_killed_is_started_again_with_what_was_written(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path)
    data_folder.private_folder(settings.runtime)
    store = valkey.Valkey(settings)
    try:
        assert not store.revive()
        with redis.Redis.from_url(settings.redis_url()) as client:
            client.config_set("appendfsync", "always")
            client.set("leben:test", "kept")
            server = psutil.Process(client.info("server")["process_id"])
        server.kill()
        server.wait(timeout=90)
        assert store.revive() and not store.revive()
        with redis.Redis.from_url(settings.redis_url()) as client:
            assert client.get("leben:test") == b"kept"
            assert client.info("server")["process_id"] != server.pid
    finally:
        store.stop()


def test_what_a_killed_mesh_left_running_is_ended_and_nothing_else(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path)
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    orphan = subprocess.Popen([*sleep, f"{settings.runtime}/haproxy.cfg"])
    stranger = subprocess.Popen([*sleep, "/elsewhere/haproxy.cfg"])
    processes.end_orphans(settings)
    assert not psutil.pid_exists(orphan.pid) and stranger.poll() is None
    orphan.wait()
    stranger.kill()
    stranger.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="a process is renamed as Linux does it")
def test_an_agent_of_rays_that_kept_a_port_of_ours_is_ended_and_no_other_program(tmp_path: Path) -> None:
    listen = (
        "import pathlib, socket, sys, time; pathlib.Path('/proc/self/comm').write_text(sys.argv[1]);"
        "s = socket.create_server(('127.0.0.1', int(sys.argv[2]))); print(s.getsockname()[1], flush=True);"
        "time.sleep(60)"
    )

    def listening(name: str, port: int = 0) -> tuple[subprocess.Popen[str], int]:
        words = [sys.executable, "-c", listen, name, str(port)]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        return process, int(process.stdout.readline())

    agent, port = listening("ray::Dashboard")
    settings = Settings(data=tmp_path, port=port - 4)
    stranger, _ = listening("postgres", settings.port + 1)
    other, _ = listening("ray::Dashboard")  # of a mesh on other ports
    processes.end_orphans(settings)
    assert not psutil.pid_exists(agent.pid) and stranger.poll() is None and other.poll() is None
    for process in (agent, stranger, other):
        process.kill()
        process.communicate()


def test_owners_are_named_by_the_operator_or_made(tmp_path: Path) -> None:
    settings, dapp = Settings(data=tmp_path), registry.load("chdr")
    shares = owners.shares(settings, "chdr", dapp)
    assert shares == owners.shares(settings, "chdr", dapp)
    assert [carrier for carrier, _, _ in shares] == [carrier for carrier in CARRIERS if getattr(dapp.shares, carrier)]
    assert sum(points for _, _, points in shares) == 10_000
    hospital = shares[0][1]
    (tmp_path / "owners.json").write_text(f'{{"strokedr": {{"data": "{hospital}"}}}}')
    rows = owners.shares(settings, "strokedr", registry.load("strokedr"))
    assert {carrier: owner for carrier, owner, _ in rows}["data"] == hospital
    (tmp_path / "owners.json").write_text('{"strokedr": {"data": "0x12"}}')
    with pytest.raises(ValueError, match="data owner of strokedr"):
        owners.shares(settings, "strokedr", registry.load("strokedr"))


def test_settings_show_no_secret_and_derive_every_port(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(port=9000, store_url=SecretStr("redis://:hunter2@host/0"))
    assert "hunter2" not in repr(settings) + str(settings)
    ports = [int(value) for name, value in ray_environment.environment(settings).items() if name.endswith("_PORT")]
    assert len(ports) == 8 and all(9000 < port < 9100 for port in [*ports, settings.dashboard_port])
    assert len(set(ports)) == len(ports)
    monkeypatch.setenv("LEBEN_PORT", "9200")
    assert Settings().port == 9200
    assert len(os.fsencode(settings.runtime)) + 70 < 97, "HAProxy's sockets fit under it"
