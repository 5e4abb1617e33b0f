"""Builds a deployment's `user_config`: the replica's configuration, and what the Serve tab of Ray's dashboard shows.

Prices and thresholds in it are those in force, not only those that an operator set, so that a reader need not know what
the author declared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from dapps import DApp
from dapps.packages import registry

DOCS = "/docs"
"""Below a DApp's route: redirects to its page. Serve's `docs_path`."""
SHOWN_ONLY = ("version", "docs")
"""Entries of a `user_config` that configure nothing."""


def page(name: str) -> str:
    """The path of a DApp's page on the mesh's address."""
    return f"/dapps/{registry.public(name)}"


def in_force(dapp: DApp, config: Mapping[str, Any]) -> dict[str, Any]:
    """An operator's configuration, completed by the price and thresholds of the DApp that it has been applied to.

    `maximum_batch` stays as it was set: callers may have loaded the model with another one.
    """
    price = {name: value for name, value in asdict(dapp.price).items() if value is not None}
    if not dapp.price.per_gpu_second:
        del price["per_gpu_second"]
    return {**config, "price": price} | ({"thresholds": dict(dapp.thresholds)} if dapp.thresholds else {})


def user_config(name: str, version: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The `user_config` of a deployment: plain JSON without secrets."""
    return {"version": version, "docs": page(name), **config}


def configuration(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a `user_config` that configures a replica: see `dapps.api.configuration`."""
    return {key: value for key, value in config.items() if key not in SHOWN_ONLY}
