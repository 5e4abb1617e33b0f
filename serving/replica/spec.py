"""Defines `ReplicaSpec`: everything that a DApp's replicas are started with.

Secrets are wrapped, so that no log or error shows them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pydantic import SecretStr

from channels.metering import Payee
from dapps import DApp
from serving.config import Scale
from serving.isolation.spec import Isolation

GPU_SHARE = 0.4


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaSpec:
    """The specification of one DApp's replicas; with `audit`, the node's audit log has one line for each call."""

    dapp: str
    payee: Payee
    shares: tuple[tuple[str, str, int], ...]
    store_url: SecretStr
    receipt_key: SecretStr = field(repr=False)
    exposure_cap: int
    abandoned_limit: int
    deposit_calls: int
    maximum_body_bytes: int
    torch_threads: int
    audit: bool = False
    isolation: Isolation | None = None
    """How the DApp is isolated; None: it is trusted and runs in the replica's process."""
    maximum_batch: int = 0
    """Most rows that the device is given at once; 0: as the DApp declares."""
    gpu_share: float = GPU_SHARE
    """The part of a GPU that a replica reserves where there is one: DApps share a GPU."""
    gpus: float | None = None
    """GPUs that a replica requires; None: `gpu_share`, where there is a GPU."""
    optimizations: tuple[str, ...] | None = None
    """See `serving/device/optimizations.py`; None: those known to be faster on the device."""
    trace_sample: float = 0.0
    trace_endpoint: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    """The operator's configuration, see `dapps.api.configuration`; a change of it alone restarts nothing."""
    scale: Scale = field(default_factory=Scale)
    """The number of replicas."""
    others: tuple[ReplicaSpec, ...] = ()
    """Other versions of the DApp that are served beside it."""
    kind: str = ""
    """The deployment's name: the same for every version, so that a new version is an update of it."""
    version: str = ""
    """The DApp's version, for the route of a version beside the default one."""
    package: str = ""
    """Folder of the installed version, below the node's packages; empty: the one in the Python environment."""
    fingerprint: tuple[str, ...] = ()
    """The DApp's `fingerprint`, which every node must have; empty: there is one node."""
    cpus: float | None = None
    """CPU cores that a replica reserves; None: half a core, or none where it has a GPU."""
    resources: tuple[tuple[str, float], ...] = ()
    """Other Ray resources that its node must have."""
    labels: tuple[tuple[str, str], ...] = ()
    """Labels that its node must have."""
    placement_timeout_s: float = 30.0
    """How long a replica may wait for a node that can take it."""
    remote: str = ""
    """URL of a remote model, see `serving/execution/remote.py`; empty: the DApp's own `forward` answers."""
    remote_key: SecretStr = field(default=SecretStr(""), repr=False)
    """Key of the wallet that pays the remote model."""


def fingerprint(dapp: DApp) -> tuple[str, ...]:
    """Identifies a DApp's code and weights: nodes that differ in it would answer one call differently from the next."""
    return dapp.version, dapp.manifest.code, dapp.manifest.weights
