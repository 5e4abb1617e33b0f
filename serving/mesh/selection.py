"""Selects the DApps that a mesh serves and the order in which they start.

A DApp that cannot be loaded is left out with its reason; a setting that contradicts another stops the mesh.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from channels.receipts import MAX_PART_DEPTH
from dapps import DApp
from dapps.packages import registry
from serving.config import MeshFile, Settings, mesh_file
from serving.errors import StartError
from serving.execution import RemoteModel
from serving.isolation.dapp import IsolatedDApp
from serving.mesh.dapp_loading import load_dapp

CLAIM_NOTICE_S = 600
"""The longest call, its drain and its claim, with room to spare."""


def select_dapps(
    settings: Settings, file: MeshFile | None = None, refused: dict[str, str] | None = None
) -> dict[str, DApp]:
    """The DApps that are served, in the order in which they start; `refused` is told those that cannot be, and why."""
    file, refused = file or mesh_file.read(settings), {} if refused is None else refused
    if not file.digest and (missing := settings.trusted_dapps - registry.offered()):
        raise StartError(f"trusted DApps that are not installed: {', '.join(sorted(missing))}")
    loaded = {}
    for name, entry in file.enabled.items():
        try:
            loaded[name] = load_dapp(settings, name, entry)
        except (StartError, registry.UnknownDApp, ValueError) as error:
            refused[name] = str(error)
    order, unasked = start_order(loaded)
    refused |= unasked
    for name, reason in refused.items():
        logging.getLogger("leben.app").warning("%s is not served: %s", name, reason)
    chosen = {name: loaded[name] for name in order}
    if not chosen:
        raise StartError("no DApp can be loaded: see leben dapp list")
    if unknown := set(settings.remotes) - set(file.dapps):
        raise StartError(f"LEBEN_REMOTES names DApps that are not served: {', '.join(sorted(unknown))}")
    for name, url in settings.remotes.items():
        RemoteModel.read(url)
        if name in chosen and chosen[name].calls:
            raise StartError(f"{name} asks other DApps in its own code: its model cannot be in another server")
    if unknown := set(settings.scale) - set(file.dapps):
        raise StartError(f"LEBEN_SCALE names DApps that are not served: {', '.join(sorted(unknown))}")
    if settings.withdraw_delay_s < settings.settle_interval_s + CLAIM_NOTICE_S:
        # A withdrawal finalized before its charges are claimed takes the work for nothing.
        raise StartError("LEBEN_WITHDRAW_DELAY_S is at least LEBEN_SETTLE_INTERVAL_S and ten minutes more")
    every = [version for name, dapp in chosen.items() for version in (dapp, *other_versions(name, dapp).values())]
    dearest = max(dapp.price.max_price for dapp in every)
    if settings.exposure_cap < 2 * dearest:
        # A price of the whole cap would be refused for ever once anything is owed.
        raise StartError(f"LEBEN_EXPOSURE_CAP is at least twice the dearest call: {2 * dearest} atomic units")
    return chosen


def other_versions(name: str, dapp: DApp) -> dict[str, DApp]:
    """Other versions of a DApp, by the names under which they are offered; a version is served once."""
    versions: dict[str, DApp] = {}
    if isinstance(dapp, IsolatedDApp):
        return versions  # one version of each: what is loaded below is loaded here
    for other in registry.others(name):
        try:
            version = registry.load(other)
        except registry.UnknownDApp as error:
            logging.getLogger("leben.app").warning("%s; the others are served", error)
            continue
        if version.version in {served.version for served in (dapp, *versions.values())}:
            logging.getLogger("leben.app").warning("%s is not served: version %s is already", other, version.version)
        else:
            versions[other] = version
    return versions


def start_order(dapps: Mapping[str, DApp]) -> tuple[list[str], dict[str, str]]:
    """The order in which DApps start, those that are asked before those that ask; and which cannot start, and why."""
    refused: dict[str, str] = {}
    left = dict(dapps)
    while bad := {name: why for name in left if (why := _amiss(name, left))}:
        refused |= bad
        left = {name: dapp for name, dapp in left.items() if name not in bad}
    return sorted(left, key=lambda name: (_depth(name, left), list(dapps).index(name))), refused


def _amiss(name: str, dapps: Mapping[str, DApp]) -> str:
    dapp = dapps[name]
    if dapp.calls and dapp.price.per_gpu_second:
        return "a DApp that calls others is priced by item: what they cost is paid out of that"
    absent = [other for other in dapp.calls if other not in dapps]
    if absent:
        return f"it calls {absent[0]}, which is not served"
    if _depth(name, dapps) > MAX_PART_DEPTH:
        return f"it calls itself by way of others, or they ask each other more than {MAX_PART_DEPTH} deep"
    return ""


def _depth(name: str, dapps: Mapping[str, Any], above: int = 0) -> int:
    """How deep it asks others; one more than the most where it goes round in a circle."""
    below = [other for other in dapps[name].calls if other in dapps]
    if above > MAX_PART_DEPTH or not below:
        return 0
    return 1 + max(_depth(other, dapps, above + 1) for other in below)
