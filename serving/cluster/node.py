"""Makes this machine a node of a mesh that runs elsewhere: `leben up --join ADDRESS`.

The operator gives it the head's address and token; everything else, receipt keys and the store's URL, comes with the
replicas. It holds no ledger, no treasury and no mesh file. Whoever has the token may run anything on every node.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from typing import Any

import httpx
import orjson
import psutil

from channels import private_files
from serving.cluster import data_folder, network, processes, proxy_errors, ray_environment
from serving.config import Settings
from serving.errors import StartError
from serving.protocol import CALL_TIMEOUT_S

HEAD_WAIT_S = 120.0
"""How long the mesh may take to answer: machines are often started at the same time."""
JOIN_WAIT_S = 60.0
DRAIN_S = int(CALL_TIMEOUT_S) + 5
FILE = "node.json"
"""In the data folder while the node runs: what `leben status` shows."""
Progress = Callable[[str], None]


class Node:
    """A node that joins a mesh, and leaves it in order.

    Args:
        settings: of this machine; its port is the mesh's.
        head: host of the machine where `leben up` runs.
        progress: called with each step, for people.
        check: called at each step of the start and in each of its waits; an exception from it ends the start.
    """

    def __init__(
        self,
        settings: Settings,
        head: str,
        *,
        progress: Progress = lambda step: None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._head, self._progress, self._check = head, progress, check
        listen = settings.listen if settings.clustered else network.address_towards(head, settings.port)
        self.settings = settings.model_copy(update={"listen": listen})
        self._lock: data_folder.Lock | None = None
        self._ray: subprocess.Popen[bytes] | None = None
        self._id = ""
        self._brings: dict[str, float] = {}

    def start(self) -> dict[str, float]:
        """Joins; returns the resources that this node adds, by Ray's names.

        Raises:
            StartError: the mesh does not answer, has another version, or this machine cannot join it.
            FolderInUse: another mesh or node runs on the data folder.
        """
        settings = self.settings
        settings.check_environment()
        if settings.listen.is_loopback:
            raise StartError(f"{self._head} is this machine: a node joins from another one")
        self._lock = data_folder.Lock(settings.home)
        proxy_errors.write(data_folder.private_folder(settings.runtime))
        processes.end_orphans(settings)
        network.check_port(settings.bind, settings.port, "machine: nodes of a mesh share their port, one node each")
        if not settings.ray_token.exists():
            raise StartError(f"copy keys/ray.token from the head's data folder to {settings.keys / 'ray.token'}")
        self._note("joining")
        self._await_head()
        self._progress("Ray")
        resources = self._join()
        self._note("joined", resources)
        return resources

    @property
    def joined(self) -> bool:
        """True once this machine has been a node."""
        return bool(self._id)

    def alive(self) -> bool:
        """False once Ray has ended here: the head has ended, or has given this node up."""
        return self._ray is not None and self._ray.poll() is None

    def stop(self) -> None:
        """Leaves: replicas move to other nodes with capacity, running calls are answered, then every process ends."""
        if self._ray is not None:
            if self.alive() and self._id:
                self._note("leaving")
                self._drain()
            self._ray.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._ray.wait(timeout=20)
        if self._lock is not None:
            processes.end_orphans(self.settings)
            shutil.rmtree(self.settings.runtime, ignore_errors=True)
            (self.settings.home / FILE).unlink(missing_ok=True)
            self._lock.release()

    def _note(self, state: str, brings: dict[str, float] | None = None) -> None:
        """Writes what `leben status` shows on this machine."""
        self._brings = brings or self._brings
        where = {"mesh": f"http://{self._head}:{self.settings.port}", "address": str(self.settings.listen)}
        facts = {"state": state, "pid": os.getpid(), "brings": self._brings, "labels": self.settings.labels}
        data_folder.note_running(self.settings, where | facts, FILE)

    def _await_head(self) -> None:
        """Waits until the mesh answers; refuses another version, whose messages this node could not read."""
        url, until = f"http://{self._head}:{self.settings.port}", time.monotonic() + HEAD_WAIT_S
        self._progress(f"once {url} answers")
        while True:
            self._check()
            with suppress(httpx.TransportError, orjson.JSONDecodeError):
                server: Any = orjson.loads(httpx.get(f"{url}/v2", timeout=5, trust_env=False).content)
                if isinstance(server, dict) and "version" in server:
                    break
            if time.monotonic() > until:
                raise StartError(f"no mesh answers at {url}: start it there with leben up --listen {self._head}")
            time.sleep(0.5)
        if server["version"] != version("leben-mesh"):
            raise StartError(
                f"the mesh is version {server['version']}, this machine has {version('leben-mesh')}: install the same"
            )

    def _join(self) -> dict[str, float]:
        settings = self.settings
        ray_environment.prepare(settings)
        from serving.cluster import gcs  # Ray reads its environment when it is imported

        shutil.rmtree(settings.runtime / "ray", ignore_errors=True)
        address = self._gcs_address()
        words = [f"--address={address}", f"--node-ip-address={settings.listen}", "--block", "--disable-usage-stats"]
        words += [f"--metrics-export-port={settings.metrics_port}", f"--temp-dir={settings.runtime / 'ray'}"]
        words += [f"--num-cpus={settings.cpus}"] if settings.cpus else []
        words += [f"--resources={orjson.dumps(settings.resources).decode()}"] if settings.resources else []
        words += [f"--labels={','.join(f'{k}={v}' for k, v in settings.labels.items())}"] if settings.labels else []
        path = settings.home / "node.log"
        private_files.make_file(path)
        with path.open("ab") as log:
            # A session of its own: Ctrl-C lets this node leave in order, instead of ending Ray under its replicas.
            self._ray = subprocess.Popen(  # noqa: S603 - our own Python and our own words
                [sys.executable, "-m", "ray.scripts.scripts", "start", *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=processes.end_with_parent,
            )
        until = time.monotonic() + JOIN_WAIT_S
        while self._ray.poll() is None and time.monotonic() < until:
            self._check()
            for node in gcs.nodes(address):
                if node["address"] == str(settings.listen):
                    self._id = node["id"]
                    return dict(node["resources"])
            time.sleep(0.5)
        raise StartError(f"this machine could not join the mesh at {address}: see {path}")

    def _drain(self) -> None:
        """Asks the head to empty this node, and waits until it has."""
        from serving.cluster import gcs

        self._progress("drain")
        limit_s = DRAIN_S + int(self.settings.place_s)
        deadline_ms = (time.time_ns() // 1_000_000) + limit_s * 1_000
        try:
            gcs.drain(self._gcs_address(), self._id, deadline_ms)
        except Exception:  # a head that has ended drains nobody
            return
        until = time.monotonic() + limit_s
        while self._busy() and self.alive() and time.monotonic() < until:
            time.sleep(0.2)

    def _gcs_address(self) -> str:
        return f"{socket.gethostbyname(self._head)}:{self.settings.join_port}"

    def _busy(self) -> bool:
        """True while a replica runs here, or the proxy, which Serve ends once no call comes through it."""
        if self._ray is None:
            return False
        for process in psutil.Process(self._ray.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                command = " ".join(process.cmdline())
                if "ServeReplica:" in command or "haproxy.cfg" in command:
                    return True
        return False
