"""Finds the owner of each carrier of each DApp.

An author or operator with an address of their own puts it into `owners.json` of the data folder; for every other
carrier the mesh makes a key on first start, so that every charge has an owner.
"""

from __future__ import annotations

from pathlib import Path

import orjson
from eth_utils.address import is_checksum_address

from channels.protocol import Signer, keystore
from channels.receipts import CARRIERS, ShareRows
from dapps import DApp
from serving.config import Settings


def shares(settings: Settings, name: str, dapp: DApp) -> ShareRows:
    """The shares of one DApp, in the fixed order of `CARRIERS`; without a guideline's if it has none.

    Raises:
        ValueError: if `owners.json` names something that is no checksummed address.
    """
    named = _named(settings.home / "owners.json").get(name, {})
    rows = []
    for carrier in CARRIERS:
        if carrier == "guideline" and not dapp.shares.guideline:
            continue
        owner = named.get(carrier) or _own(settings, name, carrier)
        if not isinstance(owner, str) or not is_checksum_address(owner):
            raise ValueError(f"owners.json: the {carrier} owner of {name} is not a checksummed address")
        rows.append((carrier, owner, int(getattr(dapp.shares, carrier))))
    return tuple(rows)


def _named(path: Path) -> dict[str, dict[str, str]]:
    return orjson.loads(path.read_bytes()) if path.exists() else {}


def _own(settings: Settings, name: str, carrier: str) -> str:
    # Compute and the operator are the mesh's own; knowledge and data belong to each DApp's people.
    mesh_wide = carrier in ("compute", "operator")
    path = settings.keys / (f"{carrier}.key" if mesh_wide else f"{name}-{carrier}.key")
    # A keystore names its address: an owner's own may be here without its password.
    address = keystore.address(path) if path.exists() else None
    return address or str(Signer.from_file(path, settings.key_password.get_secret_value()).address)
