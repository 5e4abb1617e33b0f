"""The composition root: builds every application and knows every part.

One Ray Serve application per DApp at `/v2/models/<dapp>`, the control application at `/`, the treasury bound under it.
`Mesh.start()` is the whole start-up in order. Next, down one call: `door.py`.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Callable
from contextlib import ExitStack
from importlib.metadata import packages_distributions, version
from typing import Any

from pydantic import SecretStr

from channels.ledger import Terms
from channels.metering import Payee
from channels.redis_store.check import inspect, same_store
from dapps import DApp
from dapps.packages import registry
from serving.catalogue import entry as catalogue
from serving.cluster import data_folder, processes, ray_head, valkey
from serving.config import Entry, Scale, Settings, mesh_file
from serving.errors import StartError
from serving.isolation.dapp import IsolatedDApp, declaration
from serving.mesh import owners
from serving.mesh.dapp_loading import isolation
from serving.mesh.rollout import Builder, Rollout
from serving.mesh.selection import other_versions, select_dapps
from serving.replica import user_config
from serving.treasury import ledgers

Progress = Callable[[str], None]


class Mesh:
    """A mesh on this machine: store, ledger, Ray and all applications.

    Args:
        settings: see `docs/operate.md`.
        progress: told each step, for people.
        check: called at each step of the start and in each of its waits; what it raises ends the start.
    """

    def __init__(
        self, settings: Settings, progress: Progress = lambda step: None, check: Callable[[], None] = lambda: None
    ) -> None:
        self.settings = settings
        self._told, self._check = progress, check
        self._lock: data_folder.Lock | None = None
        self._valkey: valkey.Valkey | None = None
        self._refused: dict[str, str] = {}
        self._rollout: Rollout | None = None
        self.terms: Terms | None = None
        self._chain: ledgers.ChainSpec | None = None
        self._name = ""
        self.dashboard = ""
        self.unchecked: tuple[str, ...] = ()
        """What of the store's settings could not be looked at."""

    def start(self) -> None:
        """Starts everything; returns once every DApp has answered its own example.

        Raises:
            StartError: a setting or the installation is wrong.
            FolderInUse: another mesh runs on the data folder.
        """
        settings = self.settings
        _check_names()
        settings.check_environment()
        ray_head.check_reach(settings)
        self._lock = data_folder.Lock(settings.home)
        data_folder.private_folder(settings.runtime)
        processes.end_orphans(settings)
        processes.check_port(settings.bind, settings.port, "--port")
        # A mesh that was killed leaves its file, and Ray's agent, which takes its time to end.
        patience_s = 20.0 if (settings.home / "mesh.json").exists() else 0.0
        for port, whose in settings.own_ports.items():
            processes.check_port(settings.bind, port, f"--port: it is for {whose}", patience_s, self._check)
        if settings.grpc_port:
            processes.check_port(settings.bind, settings.grpc_port, "--grpc-port")
        signers = data_folder.signers(settings)
        file = mesh_file.read(settings)
        chosen = select_dapps(settings, file, self._refused)
        self._progress("ledger")
        self._chain = ledgers.chain_spec(settings, signers["receiver"])
        self.terms = ledgers.terms(settings, self._chain)
        if not settings.store_url.get_secret_value():
            self._progress("store (Valkey)")
            self._valkey = valkey.Valkey(settings, self._check)
        self._name = ledgers.mesh(settings)
        self.unchecked = inspect(settings.redis_url(), self._name)
        if settings.replica_store_url.get_secret_value():
            same_store(settings.redis_url(), settings.metering_url())
        self._progress("Ray")
        self.dashboard = ray_head.start(settings, self._check)
        payee = Payee(
            self.terms.chain_id,
            self.terms.asset,
            self.terms.asset_name,
            self.terms.asset_version,
            signers["receiver"].address,
            signers["authorizer"].address,
            settings.withdraw_delay_s,
        )
        secrets = {name: SecretStr(signer.secret()) for name, signer in signers.items()}
        from serving.cluster.placement import nodes
        from serving.mesh.applications import end, lost, start

        builder = Builder(
            lambda name, dapp, entry, kind: self._replica(name, dapp, entry, kind, payee, secrets["receipt"]),
            lambda spec: start(spec, self._check),
            lambda dapps, specs: self._start_control(dapps, specs, secrets, signers["receipt"].address),
            end,
            self._note,
            lambda: tuple(map(str, nodes())),
            lost,
        )
        self._rollout = Rollout(settings, file, chosen, builder)
        self._progress("control and treasury")
        builder.publish(chosen, self._rollout.specs)
        for dapp in chosen.values():
            if isinstance(dapp, IsolatedDApp):
                dapp.child.close()  # it has said what it is; each replica starts one of its own
        self._rollout.begin(self._progress)
        self._check()
        self._check = lambda: None  # a mesh that has started stops in order: a rollout goes on until its end

    def _progress(self, step: str) -> None:
        self._check()
        self._told(step)

    def _note(self, facts: dict[str, Any]) -> None:
        from serving.cluster.placement import nodes

        where = {"url": self.settings.url, "dashboard": self.dashboard, "pid": os.getpid(), "ray": ray_head.address()}
        where["nodes"] = list(map(str, nodes()))
        data_folder.note_running(self.settings, where | facts)

    def poll(self) -> bool:
        """Starts the embedded store again if it has died: nothing else does, and nobody could pay. True if it had.

        Also follows the mesh file, beside that: what takes long, takes it in a thread of its own.
        """
        if self._rollout is not None:
            self._rollout.poll()
        return self._valkey is not None and self._valkey.revive()

    def stop(self) -> None:
        """Stops everything that was started, in reverse; may be called after a start that failed half-way."""
        with ExitStack() as last:  # each of them whatever became of the one before: a second Ctrl-C interrupts one
            if self._lock is not None:
                last.callback(self._clear, self._lock)
            if self._valkey is not None:
                last.callback(self._valkey.stop)
            if (ray := sys.modules.get("ray")) and ray.is_initialized():
                from serving.mesh.shutdown import stop_ray

                stop_ray()

    def _clear(self, lock: data_folder.Lock) -> None:
        # HAProxy outlives a Serve that could not end it in time, and would keep the port.
        processes.end_orphans(self.settings)
        shutil.rmtree(self.settings.runtime, ignore_errors=True)
        (self.settings.home / "mesh.json").unlink(missing_ok=True)
        lock.release()

    def _start_control(
        self, chosen: dict[str, DApp], specs: tuple[Any, ...], secrets: dict[str, SecretStr], mesh: str
    ) -> None:

        from serving.control.application import Control, ControlSpec
        from serving.control.models import ModelRef
        from serving.mesh.applications import run
        from serving.mesh.model_control import ModelControl
        from serving.treasury.deployment import Treasury
        from serving.treasury.spec import TreasurySpec

        settings, terms = self.settings, self.terms
        if terms is None:
            raise StartError("the ledger has not been opened")
        # Of one version for as long as the mesh runs: a change of the DApps must not end the one that moves money.
        treasury = Treasury.options(version="1", _internal=True).bind(  # type: ignore[attr-defined]
            TreasurySpec(
                ledger_url=SecretStr(settings.sql_url()),
                store_url=SecretStr(settings.redis_url()),
                authorizer_key=secrets["authorizer"],
                receipt_key=secrets["receipt"],
                exposure_cap=settings.exposure_cap,
                settle_interval_s=settings.settle_interval_s,
                settle_amount=settings.settle_amount,
                holder=f"{socket.gethostname()}:{settings.home}",
                retired_keys=tuple(SecretStr(signer.secret()) for signer in data_folder.retired_authorizers(settings)),
                chain=self._chain,
                mesh=self._name,
            )
        )
        facts = {"url": settings.url, "network": terms.network, "asset": terms.asset, "receipts": mesh}
        facts |= {"split": terms.split} if terms.split else {}
        kinds = {spec.dapp: spec.kind for spec in specs}
        rows, known = [], []
        for name, dapp in chosen.items():
            others = other_versions(name, dapp)
            rows.append(catalogue.entry(name, dapp, owners.shares(settings, name, dapp), tuple(others.values())))
            for full, one in {name: dapp, **others}.items():
                known.append(ModelRef(name, one.version, kinds[name] if full == name else type(one).__name__, full))
        grpc = f"{settings.bind}:{settings.grpc_port}" if settings.grpc_port else ""
        server = (tuple(known), settings.server_name, grpc, settings.maximum_body_bytes)
        failed = self._rollout.failed if self._rollout else {}
        refused = {name: why for name, why in (self._refused | failed).items() if name and name not in chosen}
        unserved = catalogue.unserved(chosen, refused, self.settings.trusted_dapps)
        spec = ControlSpec(version("leben-mesh"), rows, terms.chain_id, facts, *server, unserved)
        explicit = settings.model_control == "explicit"
        loader = (ModelControl.bind(specs, settings.url),) if explicit else ()  # type: ignore[attr-defined]
        control = Control.bind(spec, treasury, *loader)  # type: ignore[attr-defined]
        run(control, "control", "/", check=self._check)

    def _replica(self, name: str, dapp: DApp, entry: Entry, kind: str, payee: Payee, receipt_key: SecretStr) -> Any:
        """What a DApp's replicas are started with."""
        from serving.replica.spec import GPU_SHARE, ReplicaSpec, fingerprint

        settings, isolated = self.settings, None
        if isinstance(dapp, IsolatedDApp):
            isolated = isolation(settings, name, entry.package, declaration(dapp))
        return ReplicaSpec(
            name,
            payee,
            owners.shares(settings, registry.public(name), dapp),
            SecretStr(settings.metering_url()),
            receipt_key,
            settings.exposure_cap,
            settings.abandoned_limit,
            settings.deposit_calls,
            settings.maximum_body_bytes,
            settings.torch_threads,
            True,
            gpu_share=settings.gpu_shares.get(name, GPU_SHARE),
            gpus=entry.where.gpus,
            optimizations=None if settings.levers is None else tuple(sorted(settings.levers)),
            trace_sample=settings.trace_sample,
            trace_endpoint=settings.trace_endpoint,
            others=tuple(
                self._replica(other, one, Entry(trusted=True), "", payee, receipt_key)
                for other, one in other_versions(name, dapp).items()
            ),
            kind=kind or type(dapp).__name__,
            isolation=isolated,
            version=dapp.version,
            package=entry.package,
            config=user_config.in_force(dapp, entry.config),
            remote=settings.remotes.get(name, ""),
            remote_key=settings.remote_key,
            scale=entry.replicas or settings.scale.get(name, Scale()),
            cpus=entry.where.cpus,
            resources=tuple(sorted(entry.where.resources.items())),
            labels=tuple(sorted(entry.where.labels.items())),
            placement_timeout_s=settings.place_s,
            fingerprint=fingerprint(dapp) if settings.clustered and not isinstance(dapp, IsolatedDApp) else (),
        )


def _check_names() -> None:
    for name in ("serving", "channels", "dapps"):
        others = set(packages_distributions().get(name, [])) - {"leben-mesh"}
        if others:
            raise StartError(f"{', '.join(others)} installs a package named {name!r} too: use a separate environment")
