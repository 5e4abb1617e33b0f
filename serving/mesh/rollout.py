"""`Rollout`: keeps what is served as the mesh file says, one DApp after the other, without losing a call.

A changed DApp is replaced by Serve's rolling update: the next replica answers before the last one is drained, and a
version that does not start leaves the one before it in place. `app.py` builds the applications.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import httpx

from dapps import DApp
from dapps.packages import import_path
from serving.config import Entry, MeshFile, Settings, mesh_file
from serving.errors import NoNode, StartError
from serving.isolation.dapp import IsolatedDApp
from serving.mesh.dapp_loading import load_dapp
from serving.mesh.selection import start_order

log = logging.getLogger("leben.rollout")
ROUTES_WAIT_S = 10.0
NOTICED_S = 12.0
"""Within it Serve knows that a replica has died with its node: it asks each every ten seconds."""
Served = dict[str, DApp]


@dataclass(frozen=True, slots=True)
class Builder:
    """What the composition root does for a rollout.

    Args:
        specify: what a DApp's replicas are started with: name, DApp, its entry, and the deployment's name or nothing.
        start: starts or replaces an application by its specification; raises `StartError`.
        publish: tells the control application what is served now.
        delete: ends an application, drained.
        note: writes what other commands need to know of the mesh.
        nodes: the nodes of the mesh; another value when one has joined or left.
        lost: why a DApp has no replica and none can start now; empty if it has, or one can.
    """

    specify: Callable[[str, DApp, Entry, str], Any]
    start: Callable[[Any], None]
    publish: Callable[[Served, tuple[Any, ...]], None]
    delete: Callable[[Any], None]
    note: Callable[[dict[str, Any]], None]
    nodes: Callable[[], tuple[str, ...]] = lambda: ()
    lost: Callable[[Any], str] = lambda spec: ""


class Rollout:
    """What is served, and the steps from there to what the mesh file says.

    Args:
        settings: of the mesh.
        file: the mesh file as it was at the start.
        dapps: the DApps that it names and that could be loaded.
        builder: see there.
    """

    def __init__(self, settings: Settings, file: MeshFile, dapps: Served, builder: Builder) -> None:
        self._settings, self._builder = settings, builder
        self._file, self._seen = file, _stat(settings)
        self._dapps = dapps
        self._entries = {name: entry for name, entry in file.wanted.items() if name in dapps}
        self._specs = {name: builder.specify(name, dapp, self._entries[name], "") for name, dapp in dapps.items()}
        self._failed: dict[str, str] = {}
        self._unplaced: set[str] = set()
        self._nodes: tuple[str, ...] = ()
        self._left = False
        self._step: threading.Thread | None = None

    @property
    def dapps(self) -> Served:
        """The DApps that are served, by name."""
        return self._dapps

    @property
    def specs(self) -> tuple[Any, ...]:
        """What their replicas are started with."""
        return tuple(self._specs.values())

    @property
    def failed(self) -> dict[str, str]:
        """DApps that are not as the mesh file says, and why; under no name: why the file is not followed."""
        return self._failed

    def begin(self, progress: Callable[[str], None]) -> None:
        """Starts what was chosen; a DApp that no node can take is left out, and started once one joins that can.

        Raises:
            StartError: a DApp does not start, or none can be placed and no node can join.
        """
        self._nodes = self._builder.nodes()
        for name, spec in list(self._specs.items()):
            progress(f"DApp {name}")
            try:
                if lost := self._unplaced.intersection(self._dapps[name].calls):
                    raise NoNode(f"{name}: it asks {', '.join(sorted(lost))}")
                self._builder.start(spec)
            except NoNode as error:
                log.error("not served: %s", error)
                self._failed[name] = str(error)
                self._unplaced.add(name)
        if self._unplaced == set(self._specs) and not self._settings.clustered:
            raise StartError("; ".join(self._failed.values()))
        for name in self._unplaced:
            self._builder.delete(self._specs.pop(name))
            del self._dapps[name], self._entries[name]
        if self._unplaced:
            self._builder.publish(self._dapps, self.specs)
        self.note()

    def note(self) -> None:
        """Tells other commands what is served, by which file, and what of it could not be."""
        rows = {name: {"version": dapp.version, "digest": dapp.digest} for name, dapp in self._dapps.items()}
        facts = {"dapps": sorted(self._dapps), "served": rows, "file": self._file.digest, "failed": self._failed}
        self._builder.note(facts)

    def poll(self) -> None:
        """Begins to follow the file if it has changed, or if nodes have: a DApp may have lost its own, or wait for one.

        Returns at once, so that whoever polls a mesh can poll the rest.
        """
        if self._step is not None and self._step.is_alive():
            return
        now, nodes = _stat(self._settings), self._builder.nodes() if self._settings.clustered else self._nodes
        others = nodes != self._nodes
        self._left = bool(set(self._nodes) - set(nodes))
        self._nodes = nodes
        if now != self._seen or others:
            self._seen = now
            self._step = threading.Thread(target=self.follow, name="rollout", daemon=True)
            self._step.start()

    def follow(self) -> None:
        """Goes from what is served to what the file says; what of it cannot be is told, and nothing else is touched."""
        self._failed, self._unplaced = {}, set()
        try:
            self._file = mesh_file.read(self._settings)
            self._drop_lost()
            self._go(self._file)
        except Exception as error:  # a mesh must not stop following because of one file
            log.error("%s; the rest stays as it is", error)
            self._failed[""] = str(error)
            self._file = self._file.model_copy(update={"digest": digest(self._settings)})
        self.note()

    def _drop_lost(self) -> None:
        """Takes off the DApps whose last replica went with its node, if no other takes one in time.

        Serve would let their calls wait for a replica without an end. `_go` then tries them again, and tells.
        """
        if not self._left:
            return
        time.sleep(NOTICED_S)
        until = time.monotonic() + self._settings.place_s
        while lost := [name for name, spec in self._specs.items() if self._builder.lost(spec)]:
            if time.monotonic() > until:
                break
            time.sleep(0.5)
        for name in lost:
            log.error("%s is taken off: %s", name, self._builder.lost(self._specs[name]))
            self._builder.delete(self._specs.pop(name))
            del self._dapps[name], self._entries[name]
        if lost:
            self._builder.publish(self._dapps, self.specs)

    def _go(self, file: MeshFile) -> None:
        changed = {
            name: entry
            for name, entry in file.wanted.items()
            if name not in self._entries or self._entries[name].serving != entry.serving
        }
        gone = [name for name in self._dapps if name not in file.wanted and not self._asked(name, file)]
        for name, entry in changed.items():
            try:
                self._replace(name, entry)
            except Exception as error:  # a stranger's package may fail in any way
                log.error("%s is not served as the mesh file says: %s", name, error)
                self._failed[name] = str(error)
                self._unplaced |= {name} if isinstance(error, NoNode) else set()
        leaving = [self._specs.pop(name) for name in gone]
        for name in gone:
            del self._dapps[name], self._entries[name]
        if gone or set(changed) - set(self._failed):
            self._builder.publish(self._dapps, self.specs)
        for spec in leaving:
            self._builder.delete(spec)
            self._await_route(spec.dapp, "")

    def _asked(self, name: str, file: MeshFile) -> bool:
        """True if another DApp that stays asks this one: it stays too, and that is told."""
        others = [other for other, dapp in self._dapps.items() if other in file.wanted and name in dapp.calls]
        if others:
            self._failed[name] = f"{others[0]} calls it: take that one off first"
        return bool(others)

    def _replace(self, name: str, entry: Entry) -> None:
        before, dapp = self._entries.get(name), None
        try:
            dapp = load_dapp(self._settings, name, entry)
            if self._settings.exposure_cap < 2 * dapp.price.max_price:
                raise StartError(f"LEBEN_EXPOSURE_CAP is at least twice its dearest call: {2 * dapp.price.max_price}")
            _, refused = start_order({**self._dapps, name: dapp})
            if refused:
                raise StartError("; ".join(f"{other}: {why}" for other, why in refused.items()))
            spec = self._builder.specify(name, dapp, entry, self._specs[name].kind if before else "")
            try:
                self._builder.start(spec)
            except StartError:
                # The version before still answers; as the target it is also what Serve starts after a crash.
                if before:
                    self._builder.start(self._specs[name])
                else:
                    self._builder.delete(spec)
                raise
        except Exception:
            if before and before.package and before.trusted:
                import_path.show(self._settings.packages / before.package)
            elif entry.package and entry.trusted:
                import_path.hide(self._settings.packages / entry.package)
            raise
        finally:
            if isinstance(dapp, IsolatedDApp):
                dapp.child.close()  # it has said what it is; each replica starts one of its own
        self._dapps[name], self._entries[name], self._specs[name] = dapp, entry, spec
        self._await_route(name, dapp.version)

    def _await_route(self, name: str, version: str) -> None:
        """Waits until the proxy has the new route: whoever calls next must find what was installed, and only that."""
        url = f"{self._settings.url}/v2/models/{name}"
        until = time.monotonic() + ROUTES_WAIT_S
        while time.monotonic() < until:
            with suppress(httpx.TransportError, ValueError):
                answer = httpx.get(url, timeout=5)
                found = answer.json().get("versions", [""])[0] if answer.status_code == 200 else ""
                if found == version:
                    return
            time.sleep(0.05)
        log.warning("%s %s runs, but the proxy does not lead to it yet", name, version)


def digest(settings: Settings) -> str:
    """Of the mesh file's bytes; empty if there is none."""
    try:
        return hashlib.sha256((settings.home / mesh_file.FILE).read_bytes()).hexdigest()
    except FileNotFoundError:
        return ""


def _stat(settings: Settings) -> tuple[int, int, int] | None:
    try:
        found = os.stat(settings.home / mesh_file.FILE)
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
