"""Starts and stops a mesh: store, ledger, Ray and every application.

The composition root. `Mesh.start` is the whole start in order; `ray_environment.prepare` comes before this module is
imported.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from importlib.metadata import packages_distributions

import httpx
import ray

from channels.ledger import Terms
from channels.redis_store.check import inspect, same_store
from serving.cluster import data_folder, network, processes, proxy_errors, ray_head, valkey
from serving.config import Settings, mesh_file
from serving.errors import StartError
from serving.isolation.dapp import IsolatedDApp
from serving.mesh.model_control import ModelRequests
from serving.mesh.rollout import Rollout
from serving.mesh.selection import select_dapps
from serving.mesh.serve_port import ServePort
from serving.mesh.served import Check, Served, no_check
from serving.mesh.shutdown import stop_ray
from serving.treasury import ledgers

Progress = Callable[[str], None]
ANSWER_S = 10.0
"""Longer than the control application takes to find that the treasury does not answer."""
SILENCE_S = 60.0


class Mesh:
    """A mesh on this machine.

    Args:
        settings: see `docs/operate.md`.

    Attributes:
        terms: of its ledger, once it has started.
        dashboard: URL of Ray's dashboard, once it has started.
        unchecked: settings of the store that could not be checked.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.terms: Terms | None = None
        self.dashboard = ""
        self.unchecked: tuple[str, ...] = ()
        self._lock: data_folder.Lock | None = None
        self._valkey: valkey.Valkey | None = None
        self._rollout: Rollout | None = None

    def start(self, *, progress: Progress = lambda step: None, check: Check = no_check) -> None:
        """Starts everything; returns once every DApp has answered its own example.

        Args:
            progress: called with each step, for people.
            check: called at each step and in each wait; an exception from it ends the start.

        Raises:
            StartError: a setting or the installation is wrong.
            FolderInUse: another mesh runs on the data folder.
        """

        def step(name: str) -> None:
            check()
            progress(name)

        settings = self.settings
        _check_packages()
        settings.check_environment()
        network.check_reach(settings)
        self._claim(check)
        signers = data_folder.signers(settings)
        file = mesh_file.read(settings)
        refused: dict[str, str] = {}
        dapps = select_dapps(settings, file, refused)
        step("ledger")
        chain = ledgers.chain_spec(settings, signers["receiver"])
        self.terms = ledgers.terms(settings, chain)
        name = self._start_store(step, check)
        step("Ray")
        self.dashboard = ray_head.start(settings, check)
        port = ServePort(
            settings=settings,
            signers=signers,
            terms=self.terms,
            chain=chain,
            mesh=name,
            dashboard=self.dashboard,
            refused=refused,
        )
        served = Served(settings, port, dapps, file.enabled)
        self._rollout = Rollout(settings, file, served, port)
        step("control and treasury")
        served.publish({}, check)
        for dapp in dapps.values():
            if isinstance(dapp, IsolatedDApp):
                dapp.child.close()  # Metadata read; each replica spawns its own child.
        if settings.model_control == "explicit":
            ModelRequests(served).start()
        self._rollout.check_at_start(step, check)
        step("first answers")
        self._await_ready(check)

    def _await_ready(self, check: Check) -> None:
        """Waits until the mesh answers at its own URL and its treasury lives, as its first caller will meet it.

        A treasury that puts a large store back from SQL may take hours: it answers that it is not ready, and is waited
        for. No answer at all is given up.
        """
        url, until_s = f"{self.settings.url}/v2/health/ready", time.monotonic() + SILENCE_S
        while True:
            check()
            try:
                if httpx.get(url, timeout=ANSWER_S, trust_env=False).status_code == 200:
                    return
                until_s = time.monotonic() + SILENCE_S
            except httpx.TransportError as error:
                if time.monotonic() > until_s:
                    text = (
                        f"{url} does not answer ({type(error).__name__}): does a firewall or a proxy stand before it?"
                    )
                    raise StartError(text) from error
            time.sleep(0.1)

    def poll(self) -> bool:
        """Begins to follow a changed mesh file, and restarts the embedded store if it has died; True if it had.

        Non-blocking but for the store: a rollout runs on a thread of its own.
        """
        if self._rollout is not None:
            self._rollout.poll()
        return self._valkey is not None and self._valkey.revive()

    def stop(self) -> None:
        """Stops everything that was started, in reverse; may be called after a start that failed half-way."""
        with ExitStack() as last:  # each step whatever became of the one before: a second Ctrl-C interrupts one
            if self._lock is not None:
                last.callback(self._clear, self._lock)
            if self._valkey is not None:
                last.callback(self._valkey.stop)
            if ray.is_initialized():
                stop_ray()

    def _claim(self, check: Check) -> None:
        """Locks the data folder, ends what a killed mesh left on it, and checks the ports."""
        settings = self.settings
        self._lock = data_folder.Lock(settings.home)
        proxy_errors.write(data_folder.private_folder(settings.runtime))
        processes.end_orphans(settings)
        network.check_port(settings.bind, settings.port, "--port")
        # A killed mesh leaves its file, and Ray's agent, which takes its time to end.
        patience_s = 20.0 if (settings.home / "mesh.json").exists() else 0.0
        for port, use in settings.own_ports.items():
            network.check_port(settings.bind, port, f"--port: it is for {use}", patience_s, check)
        if settings.grpc_port:
            network.check_port(settings.bind, settings.grpc_port, "--grpc-port")

    def _start_store(self, step: Progress, check: Check) -> str:
        """Starts the embedded store, if the mesh has none of its own, and checks it; returns the mesh's name in it."""
        settings = self.settings
        if not settings.store_url.get_secret_value():
            step("store (Valkey)")
            self._valkey = valkey.Valkey(settings, check)
        name = ledgers.mesh(settings)
        self.unchecked = inspect(settings.redis_url(), name)
        if settings.replica_store_url.get_secret_value():
            same_store(settings.redis_url(), settings.metering_url())
        return name

    def _clear(self, lock: data_folder.Lock) -> None:
        # HAProxy outlives a Serve that could not end it in time, and would keep the port.
        processes.end_orphans(self.settings)
        shutil.rmtree(self.settings.runtime, ignore_errors=True)
        (self.settings.home / "mesh.json").unlink(missing_ok=True)
        lock.release()


def _check_packages() -> None:
    for name in ("serving", "channels", "dapps"):
        others = set(packages_distributions().get(name, [])) - {"leben-mesh"}
        if others:
            raise StartError(f"{', '.join(others)} installs a package named {name!r} too: use a separate environment")
