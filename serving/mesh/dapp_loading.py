"""Loads a DApp, in this process if it is trusted, else in a sandbox, at the operator's price and thresholds."""

from __future__ import annotations

import logging

from dapps import DApp
from dapps.api import Configuration, Declared, put
from dapps.conformance import may_cost
from dapps.packages import import_path, registry
from serving.config import Entry, Settings
from serving.errors import StartError
from serving.isolation.dapp import open_dapp
from serving.isolation.spec import Isolation

log = logging.getLogger("leben.opening")


def load_dapp(settings: Settings, name: str, entry: Entry) -> DApp:
    """The DApp of an entry, without weights, at the operator's price.

    Raises:
        StartError: its package is missing, its price is not allowed, or its declaration is invalid.
        UnknownDApp: no package offers it, or it cannot be loaded.
    """
    folder = settings.packages / entry.package if entry.package else None
    if folder is not None and not folder.is_dir():
        raise StartError(f"{name}: the package {entry.package} is not unpacked: leben dapp install its wheel")
    if entry.trusted:
        if folder is not None:
            import_path.show(folder)
        dapp = registry.load(name)
    else:
        if folder is None and name not in registry.names():
            registry.load(name)  # says why
        if settings.isolation == "landlock":
            log.warning("%s is isolated without namespaces: see docs/isolation.md", name)
        dapp = open_dapp(isolation(settings, name, entry.package))
    put(dapp, Configuration.from_json(entry.config).applied(Declared.of(dapp)))
    if not may_cost(dapp):
        raise StartError(f"{name}: its card says non_commercial, so its price must be 0")
    return dapp


def isolation(settings: Settings, name: str, package: str, declared: bytes = b"") -> Isolation:
    """The limits under which a mesh isolates a DApp; `declared`: see `Isolation`."""
    return Isolation(
        dapp=name,
        hidden=(str(settings.home), str(settings.runtime)),  # of this machine; a replica names its own
        memory_bytes=settings.isolated_memory_bytes,
        call_s=settings.isolated_call_s,
        sandbox_mode=settings.isolation,
        declared=declared,
        package=str(settings.packages / package) if package else "",
    )
