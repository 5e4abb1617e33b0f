"""Declares the answers of the catalogue: the mesh, its DApps, their prices, shares and versions."""

from __future__ import annotations

from typing import Any, Literal

from serving.control.schemas.base import CamelSchema, Schema
from serving.control.schemas.v2 import TensorMetadata


class Home(Schema):
    """Where to go from `/`."""

    name: str
    version: str
    links: dict[str, str]


class Mesh(Schema):
    """The mesh: its address, network, asset, the signer of its receipts, and its Split contract on a chain."""

    url: str
    network: str
    asset: str
    receipts: str
    split: str | None = None


class Price(CamelSchema):
    """What a call costs."""

    per_item: str
    maximum_items: int
    per_gpu_second: str | None
    maximum: str
    guideline: str | None


class Share(CamelSchema):
    """The part of each charge that an owner gets for one carrier."""

    carrier: str
    owner: str
    basis_points: int


class DAppVersion(Schema):
    """A version that can be called."""

    version: str
    default: bool
    digest: str
    price: Price


class GuidelineDigest(Schema):
    """A guideline that a DApp follows."""

    id: str
    version: str
    digest: str


class Digests(Schema):
    """Digests of what a DApp is made of."""

    code: str
    weights: str
    card: str
    guidelines: list[GuidelineDigest]


class CatalogueTensor(TensorMetadata):
    """A tensor with its physical unit."""

    unit: str
    optional: bool


class Health(Schema):
    """Whether a DApp can be called now, and why not."""

    state: Literal["READY", "UNAVAILABLE"]
    reason: str


class DApp(CamelSchema):
    """A DApp in a list."""

    name: str
    title: str
    version: str
    versions: list[DAppVersion]
    digests: Digests
    description: str
    intended_use: str
    notice: str
    shares: list[Share]
    inputs: list[CatalogueTensor]
    outputs: list[CatalogueTensor]
    diagnose: bool
    calls: list[str]
    price: Price
    digest: str
    thresholds: dict[str, Any]


class DAppWithHealth(DApp):
    """A DApp in a list, and whether it can be called."""

    health: Health


class DAppDetails(DAppWithHealth):
    """A DApp with its samples and model cards."""

    samples: list[str]
    cards: list[dict[str, Any]]
    card_problems: list[str]


class UnservedDApp(Schema):
    """A DApp that is installed and cannot be called."""

    name: str
    state: Literal["broken", "not_served"]
    reason: str


class Catalogue(Schema):
    """The DApps and their prices."""

    mesh: Mesh
    dapps: list[DApp]


class DApps(Schema):
    """The DApps with their health, and those that are installed and not served."""

    mesh: Mesh
    dapps: list[DAppWithHealth]
    unserved: list[UnservedDApp]
