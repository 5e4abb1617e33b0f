"""What Ray's dashboard tells of a DApp: version, price and page, in the `user_config` that its Serve tab shows.

Prices and thresholds are those in force, not only those that an operator set: who looks must not have to know what the
author declared. A replica takes them up as its configuration; the rest is for readers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from dapps import DApp
from dapps.packages import registry

DOCS = "/docs"
"""Under a DApp's route: leads to its page. What Serve calls `docs_path`."""
TOLD = ("version", "docs")
"""Of a `user_config`, what configures nothing."""


def page(name: str) -> str:
    """Path of a DApp's page for people, on the mesh's own address."""
    return f"/dapps/{registry.public(name)}"


def in_force(dapp: DApp, config: Mapping[str, Any]) -> dict[str, Any]:
    """An operator's configuration with the price and the thresholds of a DApp, to which it has been applied.

    `maximum_batch` is left as it was set: callers may have loaded the model with another one.
    """
    price = {name: value for name, value in asdict(dapp.price).items() if value is not None}
    if not dapp.price.per_gpu_second:
        del price["per_gpu_second"]
    return {**config, "price": price} | ({"thresholds": dict(dapp.thresholds)} if dapp.thresholds else {})


def user_config(name: str, version: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """What a deployment is given and the Serve tab shows; plain JSON, and no secret."""
    return {"version": version, "docs": page(name), **config}


def configuration(told: Mapping[str, Any]) -> dict[str, Any]:
    """Of a `user_config`, what a replica takes up: see `dapps.api.configuration`."""
    return {key: value for key, value in told.items() if key not in TOLD}
