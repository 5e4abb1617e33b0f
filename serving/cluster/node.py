"""`Node`: this machine as one more node of a mesh that runs elsewhere: `leben up --join ADDRESS`.

It is told where the head is and shown its token; everything else, keys of receipts and where the store is, comes with
the replicas. It holds no ledger, no treasury and no mesh file. Who has the token may run anything on every node.
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
from ipaddress import IPv4Address
from typing import Any

import httpx
import orjson
import psutil

from serving.cluster import data_folder, processes, ray_head
from serving.config import Settings
from serving.errors import StartError
from serving.protocol import CALL_TIMEOUT_S

HEAD_WAIT_S = 120.0
"""How long the mesh may take to answer: machines are often started all at once."""
JOIN_WAIT_S = 60.0
DRAIN_S = int(CALL_TIMEOUT_S) + 5
FILE = "node.json"
"""In the data folder while it runs: what `leben status` tells of it."""
Progress = Callable[[str], None]


class Node:
    """A node that joins a mesh, and leaves it in order.

    Args:
        settings: of this machine; its port is the mesh's.
        head: host of the machine where `leben up` runs.
        progress: told each step, for people.
        check: called at each step of the start and in each of its waits; what it raises ends the start.
    """

    def __init__(
        self,
        settings: Settings,
        head: str,
        progress: Progress = lambda step: None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._head, self._progress, self._check = head, progress, check
        mine = _address_towards(head, settings.port) if not settings.clustered else settings.listen
        self.settings = settings.model_copy(update={"listen": mine})
        self._lock: data_folder.Lock | None = None
        self._ray: subprocess.Popen[bytes] | None = None
        self._id = ""
        self._brings: dict[str, float] = {}

    def start(self) -> dict[str, float]:
        """Joins; returns what this node brings, by Ray's names of resources.

        Raises:
            StartError: the mesh does not answer, is another version, or this machine cannot join it.
            FolderInUse: another mesh or node runs on the data folder.
        """
        settings = self.settings
        settings.check_environment()
        if settings.listen.is_loopback:
            raise StartError(f"{self._head} is this machine: a node joins from another one")
        self._lock = data_folder.Lock(settings.home)
        data_folder.private_folder(settings.runtime)
        processes.end_orphans(settings)
        processes.check_port(settings.bind, settings.port, "machine: nodes of a mesh share their port, one node each")
        if not settings.ray_token.exists():
            raise StartError(f"copy keys/ray.token from the head's data folder to {settings.keys / 'ray.token'}")
        self._note("joining")
        self._await_head()
        self._progress("Ray")
        brings = self._join()
        self._note("joined", brings)
        return brings

    @property
    def joined(self) -> bool:
        """True once this machine has been a node."""
        return bool(self._id)

    def alive(self) -> bool:
        """False once Ray has ended here: the head has gone, or has given this node up."""
        return self._ray is not None and self._ray.poll() is None

    def stop(self) -> None:
        """Leaves: replicas are started elsewhere where there is room, calls that run are answered, then all ends."""
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
        """Tells `leben status`, on this machine, what this is."""
        self._brings = brings or self._brings
        where = {"mesh": f"http://{self._head}:{self.settings.port}", "address": str(self.settings.listen)}
        facts = {"state": state, "pid": os.getpid(), "brings": self._brings, "labels": self.settings.labels}
        data_folder.note_running(self.settings, where | facts, FILE)

    def _await_head(self) -> None:
        """Waits until the mesh answers, and compares versions: a node of another could not read what it is sent."""
        url, until = f"http://{self._head}:{self.settings.port}", time.monotonic() + HEAD_WAIT_S
        self._progress(f"once {url} answers")
        while True:
            self._check()
            with suppress(httpx.TransportError, orjson.JSONDecodeError):
                told: Any = orjson.loads(httpx.get(f"{url}/v2", timeout=5).content)
                if isinstance(told, dict) and "version" in told:
                    break
            if time.monotonic() > until:
                raise StartError(f"no mesh answers at {url}: start it there with leben up --listen {self._head}")
            time.sleep(0.5)
        if told["version"] != version("leben-mesh"):
            raise StartError(
                f"the mesh is version {told['version']}, this machine has {version('leben-mesh')}: install the same"
            )

    def _join(self) -> dict[str, float]:
        settings = self.settings
        os.environ.update(ray_head.environment(settings))
        settings.forget_secrets()
        shutil.rmtree(settings.runtime / "ray", ignore_errors=True)
        address = f"{socket.gethostbyname(self._head)}:{settings.join_port}"
        words = [f"--address={address}", f"--node-ip-address={settings.listen}", "--block", "--disable-usage-stats"]
        words += [f"--metrics-export-port={settings.metrics_port}", f"--temp-dir={settings.runtime / 'ray'}"]
        words += [f"--num-cpus={settings.cpus}"] if settings.cpus else []
        words += [f"--resources={orjson.dumps(settings.resources).decode()}"] if settings.resources else []
        words += [f"--labels={','.join(f'{k}={v}' for k, v in settings.labels.items())}"] if settings.labels else []
        path = settings.home / "node.log"
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
            for row in self._rows(address):
                if row["address"] == str(settings.listen):
                    self._id = row["id"]
                    return dict(row["resources"])
            time.sleep(0.5)
        raise StartError(f"this machine could not join the mesh at {address}: see {path}")

    def _rows(self, address: str) -> list[dict[str, Any]]:
        """The nodes that run, as the head knows them."""
        from ray._raylet import GcsClient  # type: ignore[attr-defined]

        nodes = GcsClient(address=address).get_all_node_info(timeout=5).values()
        return [
            {"id": node.node_id.hex(), "address": node.node_manager_address, "resources": dict(node.resources_total)}
            for node in nodes
            if node.state == 0  # alive
        ]

    def _drain(self) -> None:
        """Asks the head to empty this node, and waits until it has."""
        from ray._raylet import GcsClient  # type: ignore[attr-defined]
        from ray.core.generated.autoscaler_pb2 import DRAIN_NODE_REASON_PREEMPTION  # type: ignore[attr-defined]

        self._progress("drain")
        address = f"{socket.gethostbyname(self._head)}:{self.settings.join_port}"
        limit_s = DRAIN_S + int(self.settings.place_s)
        deadline_ms = (time.time_ns() // 1_000_000) + limit_s * 1_000
        try:
            GcsClient(address=address).drain_node(self._id, DRAIN_NODE_REASON_PREEMPTION, "leben up stops", deadline_ms)
        except Exception:  # a head that has gone drains nobody
            return
        until = time.monotonic() + limit_s
        while self._busy() and self.alive() and time.monotonic() < until:
            time.sleep(0.2)

    def _busy(self) -> bool:
        """True while a replica runs here, or the proxy, which Serve ends once nothing comes through it."""
        if self._ray is None:
            return False
        for one in psutil.Process(self._ray.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                words = " ".join(one.cmdline())
                if "ServeReplica:" in words or "haproxy.cfg" in words:
                    return True
        return False


def _address_towards(head: str, port: int) -> IPv4Address:
    """This machine's address as the head sees it; nothing is sent.

    Raises:
        StartError: there is no such host, or no way to it.
    """
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((head, port))
            return IPv4Address(probe.getsockname()[0])
    except OSError as error:
        raise StartError(f"--join {head}: {error.strerror or error}") from error
