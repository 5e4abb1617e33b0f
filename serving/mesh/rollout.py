"""Keeps what is served as the mesh file says, one DApp after the other, without losing a call.

A changed DApp is replaced by Serve's rolling update: the next replica answers before the last one is drained, and a
version that does not start leaves the one before it in place.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable

from dapps.packages import import_path
from serving.config import Entry, MeshFile, Settings, mesh_file
from serving.errors import NoNode, NoRoom, StartError
from serving.isolation.dapp import IsolatedDApp
from serving.mesh.dapp_loading import load_dapp
from serving.mesh.selection import start_order
from serving.mesh.served import ApplicationPort, Check, Served, no_check

log = logging.getLogger("leben.rollout")
NOTICED_S = 12.0
"""Within it Serve notices that a replica has died with its node: it checks each every ten seconds."""


class Rollout:
    """The steps from what is served to what the mesh file says.

    Args:
        settings: of the mesh.
        file: the mesh file as it was at the start.
        served: what is served.
        port: knows the nodes, and notes for other commands what is served.
        noticed_s: how long Serve may take to notice that a node's replicas have died.
    """

    def __init__(
        self, settings: Settings, file: MeshFile, served: Served, port: ApplicationPort, *, noticed_s: float = NOTICED_S
    ) -> None:
        self._settings, self._served, self._port, self._noticed_s = settings, served, port, noticed_s
        self._file, self._seen = file, _stat(settings)
        self._failed: dict[str, str] = {}
        self._unplaced: set[str] = set()
        self._nodes: tuple[str, ...] = ()
        self._node_left = False
        self._step: threading.Thread | None = None

    def check_at_start(self, progress: Callable[[str], None], check: Check = no_check) -> None:
        """Starts the chosen DApps; leaves out one that no node can take, and starts it once such a node joins.

        Raises:
            StartError: a DApp does not start, or none can be placed and no node can join.
        """
        served = self._served
        self._nodes = self._port.nodes()
        for name in list(served.specs):
            progress(f"DApp {name}")
            try:
                if absent := self._unplaced.intersection(served.dapps[name].calls):
                    raise NoNode(f"{name}: it calls {', '.join(sorted(absent))}")
                served.start(name, check)
            except NoNode as error:
                self._failed[name] = self._cause(error)
                log.error("not served: %s", self._failed[name])
                self._unplaced.add(name)
        if self._unplaced == set(served.specs) and not self._settings.clustered:
            raise StartError("; ".join(self._failed.values()))
        if self._unplaced:
            served.end(served.remove(sorted(self._unplaced)), await_routes=False)
            served.publish(self._failed, check)
        self.note()

    def note(self) -> None:
        """Notes for other commands what is served, from which file, and what could not be."""
        dapps = self._served.dapps
        rows = {name: {"version": dapp.version, "digest": dapp.digest} for name, dapp in dapps.items()}
        facts = {"dapps": sorted(dapps), "served": rows, "file": self._file.digest, "failed": self._failed}
        self._port.note(facts)

    def poll(self) -> None:
        """Begins to follow the file if it has changed, or if nodes have: a DApp may have lost its own, or wait for one.

        Non-blocking: the work runs on a thread; `wait` waits for it.
        """
        if self._step is not None and self._step.is_alive():
            return
        seen = _stat(self._settings)
        nodes = self._port.nodes() if self._settings.clustered else self._nodes
        changed = seen != self._seen or nodes != self._nodes
        self._node_left = bool(set(self._nodes) - set(nodes))
        self._nodes, self._seen = nodes, seen
        if changed:
            self._step = threading.Thread(target=self.follow, name="rollout", daemon=True)
            self._step.start()

    def wait(self) -> None:
        """Waits until the steps that `poll` began have ended."""
        if self._step is not None:
            self._step.join()

    def follow(self) -> None:
        """Goes from what is served to what the file says; a fault is noted and leaves everything else untouched."""
        self._failed, self._unplaced = {}, set()
        try:
            self._file = mesh_file.read(self._settings)
            if self._node_left:
                self._drop_lost()
            self._go(self._file)
        except Exception as error:  # a mesh must not stop following because of one file
            log.error("%s; the rest stays as it is", error)
            self._failed[""] = str(error)
            self._file = self._file.model_copy(update={"digest": mesh_file.digest(self._settings)})
        self.note()

    def _drop_lost(self) -> None:
        """Removes DApps whose last replica went with its node, if no other node takes one in time.

        Serve would let their calls wait for a replica without an end. `_go` then tries them again and notes the cause.
        """
        served, noticed = self._served, time.monotonic() + self._noticed_s
        until = noticed + self._settings.place_s
        while True:
            lost = {name: why for name, spec in served.specs.items() if (why := self._port.lost(spec))}
            now = time.monotonic()
            if (not lost and now >= noticed) or now >= until:
                break
            time.sleep(min(0.5, self._noticed_s or 0.1))
        for name, why in lost.items():
            log.error("%s is taken off: %s", name, why)
        if lost:
            served.end(served.remove(list(lost)), await_routes=False)
            served.publish(self._failed)

    def _go(self, file: MeshFile) -> None:
        served = self._served
        changed = {
            name: entry
            for name, entry in file.enabled.items()
            if name not in served.entries or served.entries[name].serving != entry.serving
        }
        leaving = [name for name in served.dapps if name not in file.enabled and not self._called(name, file)]
        for name, entry in changed.items():
            try:
                self._replace(name, entry)
            except Exception as error:  # a stranger's package may fail in any way
                self._failed[name] = self._cause(error)
                log.error("%s is not served as the mesh file says: %s", name, self._failed[name])
                self._unplaced |= {name} if isinstance(error, NoNode) else set()
        specs = served.remove(leaving)
        if leaving or set(changed) - set(self._failed):
            served.publish(self._failed)
        served.end(specs)

    def _cause(self, error: Exception) -> str:
        """The error, and where nodes are full, which DApp holds what of them and how to make room."""
        if not isinstance(error, NoRoom):
            return str(error)
        return f"{error}; {self._port.make_room(list(self._served.specs.values()))}"

    def _called(self, name: str, file: MeshFile) -> bool:
        """True if a DApp that stays calls this one: then this one stays too, and the cause is noted."""
        callers = [other for other, dapp in self._served.dapps.items() if other in file.enabled and name in dapp.calls]
        if callers:
            self._failed[name] = f"{callers[0]} calls it: take that one off first"
        return bool(callers)

    def _replace(self, name: str, entry: Entry) -> None:
        before, dapp = self._served.entries.get(name), None
        try:
            dapp = load_dapp(self._settings, name, entry)
            if self._settings.exposure_cap < 2 * dapp.price.max_price:
                raise StartError(f"LEBEN_EXPOSURE_CAP is at least twice its dearest call: {2 * dapp.price.max_price}")
            _, refused = start_order({**self._served.dapps, name: dapp})
            if refused:
                raise StartError("; ".join(f"{other}: {why}" for other, why in refused.items()))
            self._served.replace(name, dapp, entry)
        except Exception:
            if before and before.package and before.trusted:
                import_path.show(self._settings.packages / before.package)
            elif entry.package and entry.trusted:
                import_path.hide(self._settings.packages / entry.package)
            raise
        finally:
            if isinstance(dapp, IsolatedDApp):
                dapp.child.close()  # Metadata read; each replica spawns its own child.


def _stat(settings: Settings) -> tuple[int, int, int] | None:
    try:
        status = os.stat(settings.home / mesh_file.FILE)
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
