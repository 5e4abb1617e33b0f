"""Builds a mesh's applications for Ray Serve: a DApp's replicas, the control application, the treasury under it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from pydantic import SecretStr

from channels.ledger import Terms
from channels.metering import Payee
from channels.protocol import Signer
from dapps import DApp
from dapps.packages import registry
from serving.catalogue import entry as catalogue
from serving.cluster import data_folder, placement, ray_head
from serving.config import Entry, Scale, Settings
from serving.control.application import Control, ControlSpec
from serving.control.models import ModelRef
from serving.isolation.dapp import IsolatedDApp, declaration
from serving.mesh import applications, owners
from serving.mesh.dapp_loading import isolation
from serving.mesh.model_control import ModelControl
from serving.mesh.selection import other_versions
from serving.mesh.served import Check, no_check
from serving.replica import user_config
from serving.replica.spec import GPU_SHARE, ReplicaSpec, fingerprint
from serving.treasury import ledgers
from serving.treasury.deployment import Treasury
from serving.treasury.spec import TreasurySpec


@dataclass(frozen=True, kw_only=True)
class ServePort:
    """Ray Serve as an `ApplicationPort`.

    Attributes:
        settings: of the mesh.
        signers: its keys by name, see `data_folder.signers`.
        terms: of its ledger.
        chain: the chain of its ledger; None for a ledger in SQL.
        mesh: the store's owner, see `ledgers.mesh`.
        dashboard: URL of Ray's dashboard.
        refused: DApps that could not be loaded at the start, and why.
    """

    settings: Settings
    signers: Mapping[str, Signer] = field(repr=False)
    terms: Terms
    chain: ledgers.ChainSpec | None
    mesh: str
    dashboard: str
    refused: Mapping[str, str]

    def specify(self, name: str, dapp: DApp, entry: Entry, kind: str) -> ReplicaSpec:
        """What a DApp's replicas are started with."""
        settings, isolated = self.settings, None
        if isinstance(dapp, IsolatedDApp):
            isolated = isolation(settings, name, entry.package, declaration(dapp))
        others = other_versions(name, dapp).items()
        return ReplicaSpec(
            dapp=name,
            payee=self._payee(),
            shares=owners.shares(settings, registry.public(name), dapp),
            store_url=SecretStr(settings.metering_url()),
            receipt_key=self._secret("receipt"),
            exposure_cap=settings.exposure_cap,
            abandoned_limit=settings.abandoned_limit,
            deposit_calls=settings.deposit_calls,
            maximum_body_bytes=settings.maximum_body_bytes,
            torch_threads=settings.torch_threads,
            audit=True,
            gpu_share=settings.gpu_shares.get(name, GPU_SHARE),
            gpus=entry.where.gpus,
            optimizations=None if settings.levers is None else tuple(sorted(settings.levers)),
            trace_sample=settings.trace_sample,
            trace_endpoint=settings.trace_endpoint,
            others=tuple(self.specify(other, release, Entry(trusted=True), "") for other, release in others),
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
            fingerprint=fingerprint(dapp) if settings.clustered and not isolated else (),
        )

    def start(self, spec: ReplicaSpec, check: Check = no_check) -> None:
        """See `applications.start`."""
        applications.start(spec, check)

    def end(self, spec: ReplicaSpec) -> None:
        """See `applications.end`."""
        applications.end(spec)

    def lost(self, spec: ReplicaSpec) -> str:
        """See `applications.lost`."""
        return applications.lost(spec)

    def make_room(self, specs: Iterable[ReplicaSpec]) -> str:
        """See `placement.make_room`."""
        return placement.make_room(applications.held(specs))

    def nodes(self) -> tuple[str, ...]:
        """The nodes of the mesh, as text."""
        return tuple(map(str, placement.nodes()))

    def note(self, facts: dict[str, Any]) -> None:
        """Writes `mesh.json`, which other commands read."""
        settings = self.settings
        mesh = {
            "url": settings.url,
            "dashboard": self.dashboard,
            "pid": os.getpid(),
            "ray": ray_head.address(),
            "nodes": list(self.nodes()),
        }
        data_folder.note_running(settings, mesh | facts)

    def publish(
        self,
        dapps: Mapping[str, DApp],
        specs: Mapping[str, ReplicaSpec],
        failed: Mapping[str, str],
        check: Check = no_check,
    ) -> None:
        """Runs the control application with the DApps that are served now."""
        settings, terms = self.settings, self.terms
        facts = {"url": settings.url, "network": terms.network, "asset": terms.asset}
        facts |= {"receipts": self.signers["receipt"].address} | ({"split": terms.split} if terms.split else {})
        rows, refs = [], []
        for name, dapp in dapps.items():
            others = other_versions(name, dapp)
            rows.append(catalogue.entry(name, dapp, owners.shares(settings, name, dapp), tuple(others.values())))
            refs.append(ModelRef(name, dapp.version, specs[name].kind, name))
            refs += [ModelRef(name, other.version, type(other).__name__, full) for full, other in others.items()]
        refused = {name: why for name, why in {**self.refused, **failed}.items() if name and name not in dapps}
        spec = ControlSpec(
            version=version("leben-mesh"),
            catalogue=rows,
            chain_id=terms.chain_id,
            mesh=facts,
            versions=tuple(refs),
            server_name=settings.server_name,
            grpc=f"{settings.bind}:{settings.grpc_port}" if settings.grpc_port else "",
            maximum_body_bytes=settings.maximum_body_bytes,
            unserved=catalogue.unserved(dapps, refused, settings.trusted_dapps),
        )
        # Both keep one version for as long as the mesh runs: a change of the DApps must end neither of them.
        treasury = Treasury.options(version="1", _internal=True).bind(self._treasury())  # type: ignore[attr-defined]
        loader = None
        if settings.model_control == "explicit":
            loader = ModelControl.options(version="1", _internal=True).bind()  # type: ignore[attr-defined]
        applications.run(Control.bind(spec, treasury, loader), "control", "/", check=check)  # type: ignore[attr-defined]

    def _payee(self) -> Payee:
        return Payee(
            self.terms.chain_id,
            self.terms.asset,
            self.terms.asset_name,
            self.terms.asset_version,
            self.signers["receiver"].address,
            self.signers["authorizer"].address,
            self.settings.withdraw_delay_s,
        )

    def _treasury(self) -> TreasurySpec:
        settings = self.settings
        return TreasurySpec(
            ledger_url=SecretStr(settings.sql_url()),
            store_url=SecretStr(settings.redis_url()),
            authorizer_key=self._secret("authorizer"),
            receipt_key=self._secret("receipt"),
            exposure_cap=settings.exposure_cap,
            settle_interval_s=settings.settle_interval_s,
            settle_amount=settings.settle_amount,
            holder=f"{socket.gethostname()}:{settings.home}",
            retired_keys=tuple(SecretStr(signer.secret()) for signer in data_folder.retired_authorizers(settings)),
            chain=self.chain,
            mesh=self.mesh,
        )

    def _secret(self, name: str) -> SecretStr:
        return SecretStr(self.signers[name].secret())
