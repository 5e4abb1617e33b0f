"""Which DApps a mesh serves, in which order they start, and what it refuses to start with.

What cannot be opened is left out with its reason and stops nobody; a setting that contradicts another stops the mesh.
Next: `rollout.py`, which changes what is served while it runs.
"""

from __future__ import annotations

import logging

from dapps import DApp, registry
from serving import mesh_file
from serving.composition import arranged
from serving.errors import StartError
from serving.isolated import IsolatedDApp
from serving.mesh_file import MeshFile
from serving.opening import opened
from serving.settings import Settings
from serving.triton import Remote

CLAIM_NOTICE_S = 600
"""The longest call, its drain and its claim, with room to spare."""


def choose(settings: Settings, file: MeshFile | None = None, refused: dict[str, str] | None = None) -> dict[str, DApp]:
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
    every = [one for name, dapp in chosen.items() for one in (dapp, *other_versions(name, dapp).values())]
    dearest = max(dapp.price.most for dapp in every)
    if settings.exposure_cap < 2 * dearest:
        # A price of the whole cap would be refused for ever once anything is owed.
        raise StartError(f"LEBEN_EXPOSURE_CAP is at least twice the dearest call: {2 * dearest} atomic units")
    return chosen


def other_versions(name: str, dapp: DApp) -> dict[str, DApp]:
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
