"""Opens the DApps that are installed in this environment or into a mesh's data folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dapps import DApp
from dapps.packages import registry
from serving.cli.arguments import read_settings
from serving.cli.console import fail
from serving.config import Entry, mesh_file
from serving.isolation.dapp import IsolatedDApp
from serving.mesh.dapp_loading import load_dapp


def entries(data: Path) -> dict[str, Entry]:
    """Entries of the mesh file whose packages were installed into the data folder, by name."""
    if not data.is_dir():
        return {}
    return {name: entry for name, entry in mesh_file.read(read_settings(data)).dapps.items() if entry.package}


def names(data: Path) -> list[str]:
    """All names, in order."""
    return sorted({*registry.names(), *entries(data)})


@contextmanager
def opened(name: str, data: Path) -> Iterator[DApp]:
    """A DApp as its mesh serves it: a package that is not trusted runs isolated until the block ends.

    Raises:
        StartError: its package is missing, or its declaration is invalid.
        UnknownDApp: no package offers it.
    """
    entry = entries(data).get(name)
    if entry is None:
        yield registry.load(name)
        return
    dapp = load_dapp(read_settings(data), name, entry)
    try:
        yield dapp
    finally:
        if isinstance(dapp, IsolatedDApp):
            dapp.child.close()


def trusted(name: str, data: Path) -> DApp:
    """A DApp whose code runs in this process; refuses one that the mesh isolates."""
    entry = entries(data).get(name)
    if entry is not None and not entry.trusted:
        fail(
            f"the mesh isolates {name}, and evaluate runs a DApp's own code with your rights: if you trust it, install "
            f"its wheel into an environment of its own with pip and evaluate it there"
        )
    with opened(name, data) as dapp:
        return dapp
