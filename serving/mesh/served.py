"""Owns what a mesh serves: which DApps, started from which specifications; starts and ends their applications.

The rollout, which follows the mesh file, and callers who load and unload models both go through one `Served`, so that
no load starts a version that a rollout has just replaced.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, Protocol

import httpx

from dapps import DApp
from serving.config import Entry, Settings
from serving.errors import CallError, StartError

log = logging.getLogger("leben.served")
ROUTES_WAIT_S = 10.0
Check = Callable[[], None]


def no_check() -> None:
    """Ends nothing: a mesh that has started stops in order, after a rollout's last step."""


class ApplicationPort(Protocol):
    """Starts and ends applications; Ray Serve in a mesh, see `serve_port`."""

    def specify(self, name: str, dapp: DApp, entry: Entry, kind: str) -> Any:
        """The specification of a DApp's replicas; `kind` names the deployment, empty: by the DApp's class."""

    def start(self, spec: Any, check: Check = no_check) -> None:
        """Starts an application, or replaces it by one of another specification; returns once it answers.

        Raises:
            StartError: it does not start; `NoNode` if no node can take it.
        """

    def end(self, spec: Any) -> None:
        """Ends an application after its running calls."""

    def publish(
        self, dapps: Mapping[str, DApp], specs: Mapping[str, Any], failed: Mapping[str, str], check: Check = no_check
    ) -> None:
        """Gives the control application the DApps that are served, and why others are not."""

    def lost(self, spec: Any) -> str:
        """Why an application has no replica and none can start now; empty if it has one or one can start."""

    def make_room(self, specs: Iterable[Any]) -> str:
        """Which of these applications hold what of the nodes, and how to free it."""

    def nodes(self) -> tuple[str, ...]:
        """The nodes of the mesh; another value once one has joined or left."""

    def note(self, facts: dict[str, Any]) -> None:
        """Writes what other commands read of the running mesh."""


class Served:
    """The DApps that a mesh serves. Thread-safe: one start or end at a time.

    Args:
        settings: of the mesh.
        port: starts and ends applications.
        dapps: the DApps that were loaded, by name.
        entries: their entries in the mesh file.
        routes_wait_s: how long the proxy may take to learn a route.
    """

    def __init__(
        self,
        settings: Settings,
        port: ApplicationPort,
        dapps: Mapping[str, DApp],
        entries: Mapping[str, Entry],
        *,
        routes_wait_s: float = ROUTES_WAIT_S,
    ) -> None:
        self._url, self._port, self._routes_wait_s = settings.url, port, routes_wait_s
        self._turn = threading.Lock()
        self.dapps = dict(dapps)
        self.entries = {name: entries[name] for name in dapps}
        self.specs = {name: port.specify(name, dapp, entries[name], "") for name, dapp in dapps.items()}
        self.unloaded: frozenset[str] = frozenset()

    def publish(self, failed: Mapping[str, str], check: Check = no_check) -> None:
        """Gives the control application what is served now."""
        self._port.publish(self.dapps, self.specs, failed, check)

    def start(self, name: str, check: Check = no_check) -> None:
        """Starts a DApp's application.

        Raises:
            StartError: it does not start; `NoNode` if no node can take it.
        """
        with self._turn:
            self._port.start(self.specs[name], check)

    def replace(self, name: str, dapp: DApp, entry: Entry) -> None:
        """Serves a DApp, or another version of it, once its application answers; else the version before stays.

        Raises:
            StartError: it does not start.
        """
        with self._turn:
            before = self.specs.get(name)
            spec = self._port.specify(name, dapp, entry, before.kind if before else "")
            try:
                self._port.start(spec)
            except StartError:
                # Serve's target is now the failed version: it would start that one after a crash.
                if before:
                    self._port.start(before)
                else:
                    self._port.end(spec)
                raise
            self.dapps[name], self.entries[name], self.specs[name] = dapp, entry, spec
            self.unloaded -= {name}
            self._await_route(name, dapp.version)

    def remove(self, names: list[str]) -> list[Any]:
        """Takes DApps out of what is served; returns their specifications, for `end`."""
        with self._turn:
            for name in names:
                del self.dapps[name], self.entries[name]
            self.unloaded -= set(names)
            return [self.specs.pop(name) for name in names]

    def end(self, specs: list[Any], *, await_routes: bool = True) -> None:
        """Ends the applications of removed DApps, drained."""
        with self._turn:
            for spec in specs:
                self._port.end(spec)
                if await_routes:
                    self._await_route(spec.dapp, "")

    def load(self, name: str, maximum_batch: int = 0) -> None:
        """Starts a served DApp's application for a caller, or restarts it if its maximum batch differs.

        Raises:
            CallError: `load_failed`.
        """
        with self._turn:
            spec = self._spec(name)
            try:
                self._port.start(replace(spec, maximum_batch=maximum_batch))
            except StartError:
                raise CallError("load_failed", "its replicas do not start: their log has the cause") from None
            self.unloaded -= {name}
            self._await_route(name, self.dapps[name].version)

    def unload(self, name: str) -> None:
        """Ends a served DApp's application for a caller; it stays in the catalogue and can be loaded again.

        Raises:
            CallError: `load_failed`.
        """
        with self._turn:
            self._port.end(self._spec(name))
            self.unloaded |= {name}
            self._await_route(name, "")

    def _spec(self, name: str) -> Any:
        if name not in self.specs:
            raise CallError("load_failed", "there is no such model in the repository")
        return self.specs[name]

    def _await_route(self, name: str, version: str) -> None:
        """Waits until the proxy leads to a version, or to none: the next caller finds what is served, and only that."""
        url = f"{self._url}/v2/models/{name}"
        until = time.monotonic() + self._routes_wait_s
        while time.monotonic() < until:
            with suppress(httpx.TransportError, ValueError):
                answer = httpx.get(url, timeout=5, trust_env=False)
                route = answer.json().get("versions", [""])[0] if answer.status_code == 200 else ""
                if route == version:
                    return
            time.sleep(0.05)
        log.warning("%s %s runs, but the proxy does not lead to it yet", name, version)
