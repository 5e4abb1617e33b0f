"""The composition root: builds every application and knows every part. READ FIRST.

One Ray Serve application per DApp at `/v2/models/<dapp>`, the control application at `/`, the treasury bound under it.
`Mesh.start()` is the whole start-up in order. Next, down one call: `door.py`.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib.metadata import packages_distributions, version
from typing import Any

from pydantic import SecretStr

from channels.ledger import Terms
from channels.quote import Payee
from dapps import DApp, registry
from serving import catalogue, embedded, ledgers, mesh_file, owners
from serving.composition import arranged
from serving.errors import StartError
from serving.isolated import IsolatedDApp, declaration
from serving.mesh_file import Entry, MeshFile
from serving.rollout import Builder, Rollout, isolation, opened
from serving.scaling import Scale
from serving.settings import Settings
from serving.triton import Remote

Progress = Callable[[str], None]
SETTLE_TIMEOUT_S = 60.0
PROGRESS_S = 0.5
CLAIM_NOTICE_S = 600
"""The longest call, its drain and its claim, with room to spare."""


class Mesh:
    """A mesh on this machine: store, ledger, Ray and all applications.

    Args:
        settings: see `docs/operate.md`.
        progress: told each step, for people.
    """

    def __init__(self, settings: Settings, progress: Progress = lambda step: None) -> None:
        self.settings = settings
        self._progress = progress
        self._lock: embedded.Lock | None = None
        self._valkey: embedded.Valkey | None = None
        self._refused: dict[str, str] = {}
        self._rollout: Rollout | None = None
        self.terms: Terms | None = None
        self._chain: ledgers.ChainSpec | None = None
        self.dashboard = ""

    def start(self) -> None:
        """Starts everything; returns once every DApp has answered its own example.

        Raises:
            StartError: a setting or the installation is wrong.
            FolderInUse: another mesh runs on the data folder.
        """
        settings = self.settings
        _check_names()
        self._lock = embedded.Lock(settings.home)
        embedded.private_folder(settings.runtime)
        embedded.end_orphans(settings)
        _check_port(settings.port, "--port")
        if settings.grpc_port:
            _check_port(settings.grpc_port, "--grpc-port")
        signers = embedded.keys(settings)
        file = mesh_file.read(settings)
        chosen = _chosen(settings, file, self._refused)
        self._progress("ledger")
        self._chain = ledgers.chain_spec(settings, signers["receiver"])
        self.terms = ledgers.terms(settings, self._chain)
        if not settings.store_url.get_secret_value():
            self._progress("store (Valkey)")
            self._valkey = embedded.Valkey(settings)
        self._progress("Ray")
        self._start_ray()
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
        from serving.replica import end, start

        builder = Builder(
            lambda name, dapp, entry, kind: self._replica(name, dapp, entry, kind, payee, secrets["receipt"]),
            start,
            lambda dapps, specs: self._start_control(dapps, specs, secrets, signers["receipt"].address),
            end,
            self._note,
        )
        self._rollout = Rollout(settings, file, chosen, builder)
        self._progress("control and treasury")
        builder.publish(chosen, self._rollout.specs)
        for dapp in chosen.values():
            if isinstance(dapp, IsolatedDApp):
                dapp.child.close()  # it has said what it is; each replica starts one of its own
        for spec in self._rollout.specs:
            self._progress(f"DApp {spec.dapp}")
            start(spec)
        self._rollout.note()

    def _note(self, facts: dict[str, Any]) -> None:
        where = {"url": self.settings.url, "dashboard": self.dashboard, "pid": os.getpid(), "ray": _ray_address()}
        embedded.note_running(self.settings, where | facts)

    def tend(self) -> bool:
        """Starts the embedded store again if it has died: nothing else does, and nobody could pay. True if it had.

        Also follows the mesh file, beside that: what takes long, takes it in a thread of its own.
        """
        if self._rollout is not None:
            self._rollout.tend()
        return self._valkey is not None and self._valkey.revive()

    def stop(self) -> None:
        """Stops everything that was started, in reverse; may be called after a start that failed half-way."""
        if "ray" in sys.modules:
            from serving.drain import stop_ray

            stop_ray()
        if self._valkey is not None:
            self._valkey.stop()
        if self._lock is not None:
            # HAProxy outlives a Serve that could not end it in time, and would keep the port.
            embedded.end_orphans(self.settings)
            shutil.rmtree(self.settings.runtime, ignore_errors=True)
            (self.settings.home / "mesh.json").unlink(missing_ok=True)
            self._lock.release()

    def _start_ray(self) -> None:
        settings = self.settings
        if "ray" in sys.modules:
            raise StartError("Ray was imported before its settings were made: start the mesh in a process of its own")
        os.environ.update(settings.engine_environment())
        settings.forget_secrets()
        # A mesh that was killed left its session here; the lock says that nobody uses it.
        shutil.rmtree(settings.runtime / "ray", ignore_errors=True)
        import ray
        from ray import serve

        for name in ("ray", "ray.serve"):
            logging.getLogger(name).setLevel(logging.WARNING)
        # Ray puts its own handler on SIGTERM, which ends the process before the store has saved.
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        context = ray.init(
            num_cpus=settings.cpus or None,
            include_dashboard=True,
            dashboard_host="127.0.0.1",
            dashboard_port=settings.dashboard_port,
            _metrics_export_port=settings.metrics_port,
            _node_ip_address="127.0.0.1",
            _temp_dir=str(settings.runtime / "ray"),
            log_to_driver=False,
            logging_level=logging.WARNING,
            namespace="leben",
        )
        for number, handler in handlers.items():
            signal.signal(number, handler)
        self.dashboard = f"http://{context.dashboard_url}"
        # No host means every interface: frontend and replicas answer on loopback only.
        serve.start(http_options={"host": "127.0.0.1", "port": settings.port}, logging_config=_logging())

    def _start_control(
        self, chosen: dict[str, DApp], specs: tuple[Any, ...], secrets: dict[str, SecretStr], mesh: str
    ) -> None:

        from serving.control import Control, ControlSpec
        from serving.loader import Loader
        from serving.models import Known
        from serving.replica import run
        from serving.treasury import Treasury, TreasurySpec

        settings, terms = self.settings, self.terms
        if terms is None:
            raise StartError("the ledger has not been opened")
        # Of one version for as long as the mesh runs: a change of the DApps must not end the one that moves money.
        treasury = Treasury.options(version="1", _internal=True).bind(  # type: ignore[attr-defined]
            TreasurySpec(
                SecretStr(settings.sql_url()),
                SecretStr(settings.redis_url()),
                secrets["authorizer"],
                secrets["receipt"],
                settings.exposure_cap,
                settings.settle_interval_s,
                settings.settle_amount,
                f"{socket.gethostname()}:{settings.home}",
                tuple(SecretStr(signer.secret()) for signer in embedded.retired(settings)),
                self._chain,
            )
        )
        facts = {"url": settings.url, "network": terms.network, "asset": terms.asset, "receipts": mesh}
        facts |= {"split": terms.split} if terms.split else {}
        kinds = {spec.dapp: spec.kind for spec in specs}
        rows, known = [], []
        for name, dapp in chosen.items():
            others = _others(name, dapp)
            rows.append(catalogue.entry(name, dapp, owners.shares(settings, name, dapp), tuple(others.values())))
            for full, one in {name: dapp, **others}.items():
                known.append(Known(name, one.version, kinds[name] if full == name else type(one).__name__, full))
        server = (tuple(known), settings.server_name, settings.grpc_port, settings.maximum_body_bytes)
        refused = {name: why for name, why in self._refused.items() if name not in chosen}
        unserved = catalogue.unserved(chosen, refused, self.settings.trusted_dapps)
        spec = ControlSpec(version("leben-mesh"), rows, terms.chain_id, facts, *server, unserved)
        explicit = settings.model_control == "explicit"
        loader = (Loader.bind(specs, settings.url),) if explicit else ()  # type: ignore[attr-defined]
        run(Control.bind(spec, treasury, *loader), "control", "/")  # type: ignore[attr-defined]

    def _replica(self, name: str, dapp: DApp, entry: Entry, kind: str, payee: Payee, receipt_key: SecretStr) -> Any:
        """What a DApp's replicas are started with."""
        from serving.replica import GPU_SHARE, ReplicaSpec

        settings = self.settings
        return ReplicaSpec(
            name,
            payee,
            owners.shares(settings, registry.public(name), dapp),
            SecretStr(settings.redis_url()),
            receipt_key,
            settings.exposure_cap,
            settings.abandoned_limit,
            settings.deposit_calls,
            settings.maximum_body_bytes,
            settings.torch_threads,
            str(settings.audit),
            gpu_share=settings.gpu_shares.get(name, GPU_SHARE) if entry.where.gpus is None else entry.where.gpus,
            levers=None if settings.levers is None else tuple(sorted(settings.levers)),
            trace_sample=settings.trace_sample,
            trace_endpoint=settings.trace_endpoint,
            others=tuple(
                self._replica(other, one, Entry(trusted=True), "", payee, receipt_key)
                for other, one in _others(name, dapp).items()
            ),
            kind=kind or type(dapp).__name__,
            isolation=isolation(settings, name, declaration(dapp)) if isinstance(dapp, IsolatedDApp) else None,
            version=dapp.version,
            package=str(settings.packages / entry.package) if entry.package else "",
            config=entry.config,
            remote=settings.remotes.get(name, ""),
            remote_key=settings.remote_key,
            scale=entry.replicas or settings.scale.get(name, Scale()),
            cpus=entry.where.cpus,
            resources=tuple(sorted(entry.where.resources.items())),
        )


def settle(progress: Callable[[int, int], None] = lambda done, total: None) -> dict[str, Any]:
    """Asks the treasury of the Ray that this process is connected to for a settlement.

    Args:
        progress: told (channels settled, channels in all) now and then.

    Returns:
        What was claimed, in how many epochs, the last root, and the payouts; amounts in atomic units.

    Raises:
        StartError: if the treasury has settled nothing for a minute.
    """
    answer = _treasury().settle.remote()
    last, moved_s = (0, 0), time.monotonic()
    while True:
        with suppress(TimeoutError):
            settled: dict[str, Any] = answer.result(timeout_s=PROGRESS_S)
            return settled
        told = _treasury().progress.remote().result(timeout_s=SETTLE_TIMEOUT_S)
        if told != last:
            last, moved_s = told, time.monotonic()
            progress(*told)
        elif time.monotonic() - moved_s > SETTLE_TIMEOUT_S:
            raise StartError("the treasury settles nothing: its log is in the dashboard")


@cache
def _treasury() -> Any:
    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    handle = serve.get_deployment_handle("Treasury", app_name="control")
    # A driver has no event loop that outlives a call; in throughput mode a handle would otherwise look for one.
    handle._init(_run_router_in_separate_loop=True)  # type: ignore[no-untyped-call]
    return handle


def _chosen(settings: Settings, file: MeshFile | None = None, refused: dict[str, str] | None = None) -> dict[str, DApp]:
    """The DApps that are served, in the order in which they start; `refused` is told those that cannot be, and why."""
    file, refused = file or mesh_file.read(settings), {} if refused is None else refused
    if not file.digest and (missing := settings.trusted_dapps - registry.offered()):
        raise StartError(f"trusted DApps that are not installed: {', '.join(sorted(missing))}")
    found = {}
    for name, entry in file.wanted.items():
        try:
            found[name] = opened(settings, name, entry)
        except (StartError, registry.UnknownDApp, ValueError) as error:
            refused[name] = str(error)
    order, unasked = arranged(found)
    refused |= unasked
    for name, reason in refused.items():
        logging.getLogger("leben.app").warning("%s is not served: %s", name, reason)
    chosen = {name: found[name] for name in order}
    if not chosen:
        raise StartError("no DApp can be loaded: see leben dapp list")
    if unknown := set(settings.remotes) - set(file.dapps):
        raise StartError(f"LEBEN_REMOTES names DApps that are not served: {', '.join(sorted(unknown))}")
    for name, url in settings.remotes.items():
        Remote.read(url)
        if name in chosen and chosen[name].calls:
            raise StartError(f"{name} asks other DApps in its own code: its model cannot be in another server")
    if unknown := set(settings.scale) - set(file.dapps):
        raise StartError(f"LEBEN_SCALE names DApps that are not served: {', '.join(sorted(unknown))}")
    if settings.withdraw_delay_s < settings.settle_interval_s + CLAIM_NOTICE_S:
        # A withdrawal finalized before its charges are claimed takes the work for nothing.
        raise StartError("LEBEN_WITHDRAW_DELAY_S is at least LEBEN_SETTLE_INTERVAL_S and ten minutes more")
    every = [one for name, dapp in chosen.items() for one in (dapp, *_others(name, dapp).values())]
    dearest = max(dapp.price.most for dapp in every)
    if settings.exposure_cap < 2 * dearest:
        # A price of the whole cap would be refused for ever once anything is owed.
        raise StartError(f"LEBEN_EXPOSURE_CAP is at least twice the dearest call: {2 * dearest} atomic units")
    return chosen


def _others(name: str, dapp: DApp) -> dict[str, DApp]:
    """Other versions of a DApp, by the names under which they are offered; a version is served once."""
    found: dict[str, DApp] = {}
    if isinstance(dapp, IsolatedDApp):
        return found  # one version of each: what is loaded below is loaded here
    for other in registry.others(name):
        try:
            one = registry.load(other)
        except registry.UnknownDApp as error:
            logging.getLogger("leben.app").warning("%s; the others are served", error)
            continue
        if one.version in {each.version for each in (dapp, *found.values())}:
            logging.getLogger("leben.app").warning("%s is not served: version %s is already", other, one.version)
        else:
            found[other] = one
    return found


def _ray_address() -> str:
    import ray

    return str(ray.get_runtime_context().gcs_address)


def _logging() -> dict[str, Any]:
    return {"enable_access_log": False, "log_level": "INFO"}


def _check_port(port: int, option: str) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise StartError(f"port {port} is in use: choose another {option}") from error


def _check_names() -> None:
    for name in ("serving", "channels", "dapps"):
        others = set(packages_distributions().get(name, [])) - {"leben-mesh"}
        if others:
            raise StartError(f"{', '.join(others)} installs a package named {name!r} too: use a separate environment")
