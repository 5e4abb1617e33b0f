"""`ReplicaSpec`: everything that a DApp's replicas are started with, made by `app.py`.

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


@dataclass(frozen=True, slots=True)
class ReplicaSpec:
    """What a replica is given when it starts; `audit`: its node's audit log has a line a call."""

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
    """How the DApp is isolated; None: it is trusted, and runs here."""
    maximum_batch: int = 0
    """Most rows that the device is given at once; 0: as the DApp says."""
    gpu_share: float = GPU_SHARE
    """How much of a GPU a replica reserves where there is one: DApps share a card."""
    gpus: float | None = None
    """How much it must have; None: as above."""
    optimizations: tuple[str, ...] | None = None
    """See `serving/device/optimizations.py`; None: those that are known to win on the device."""
    trace_sample: float = 0.0
    trace_endpoint: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    """What the operator sets, see `dapps.api.configuration`; changing only the price in force restarts nothing."""
    scale: Scale = field(default_factory=Scale)
    """How many replicas there are."""
    others: tuple[ReplicaSpec, ...] = ()
    """Other versions of the DApp, served beside it."""
    kind: str = ""
    """Name of the deployment: the same for every version, or an update would be no update."""
    version: str = ""
    """Of the DApp, for the route of a version beside the one that answers by default."""
    package: str = ""
    """Folder of the installed version that answers, below its node's packages; empty: what the environment offers."""
    made: tuple[str, ...] = ()
    """What `made` says of it, where nodes could have different ones; empty: there is one node."""
    cpus: float | None = None
    """Cores that a replica reserves; None: half a one, or none where it has a GPU."""
    resources: tuple[tuple[str, float], ...] = ()
    """What else it needs of a node of the cluster."""
    labels: tuple[tuple[str, str], ...] = ()
    """What its node has to be labelled with."""
    placement_timeout_s: float = 30.0
    """How long it may wait for a node that can take it."""
    remote: str = ""
    """URL of the model that answers, see `serving/execution/remote.py`; empty: the DApp's own `forward`."""
    remote_key: SecretStr = field(default=SecretStr(""), repr=False)
    """Of the wallet that pays for it."""


def made(dapp: DApp) -> tuple[str, ...]:
    """What must be the same on every node, or one call would be answered by other weights than the next."""
    return dapp.version, dapp.manifest.code, dapp.manifest.weights
