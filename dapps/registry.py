"""Finds DApps: every installed package's `leben.dapps` entry points, the built-in ones among them.

A name is what appears in the URL, so it is checked here once. Loading a DApp class never loads torch or weights.
"""

from __future__ import annotations

import re
from importlib.metadata import EntryPoint, entry_points

from dapps.api import DApp

GROUP = "leben.dapps"
NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}")


class UnknownDApp(Exception):
    """No installed package offers a DApp of this name."""


def names() -> list[str]:
    """Names of all installed DApps, sorted."""
    return sorted(_found())


def load(name: str) -> DApp:
    """An instance of the named DApp, without weights: call its `load(device)` before `forward`.

    Raises:
        UnknownDApp: if no installed package offers it; the message lists those there are.
        TypeError: if the entry point is not a `DApp` class.
    """
    point = _found().get(name)
    if point is None:
        raise UnknownDApp(f"no DApp named {name!r} is installed; there are: {', '.join(names()) or 'none'}")
    kind = point.load()
    if not (isinstance(kind, type) and issubclass(kind, DApp)):
        raise TypeError(f"entry point {point.value} of group {GROUP} is not a DApp class")
    return kind()


def _found() -> dict[str, EntryPoint]:
    found = {point.name: point for point in entry_points(group=GROUP)}
    bad = [name for name in found if not NAME.fullmatch(name)]
    if bad:
        raise ValueError(f"DApp names are lower-case letters, digits, - and _; not: {', '.join(bad)}")
    return found
