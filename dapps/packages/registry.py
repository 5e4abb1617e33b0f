"""Finds DApps by the `leben.dapps` entry points of installed packages, the built-in ones among them.

A name appears in the URL and earns money, so two packages that offer one name are both refused. A broken package is
listed with its reason and never stops the others. Loading a DApp class loads neither torch nor weights.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from importlib.metadata import EntryPoint, entry_points

from dapps.api import DApp
from dapps.api.version import GROUP as GROUP

NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}")
OTHER = re.compile(rf"({NAME.pattern})\.[A-Za-z0-9_-]{{1,32}}")
"""The name of another version of a DApp: the default version's name, a dot, and any word."""


class UnknownDApp(Exception):
    """No installed package offers a DApp of this name, or what it offers cannot be served; the message says which."""


def names() -> list[str]:
    """Names of all installed DApps that can be loaded, sorted; `problems` lists the others."""
    return sorted(name for name, points in _offered().items() if "." not in name and not _reason(name, points))


def offered() -> set[str]:
    """Every name that an installed package offers, whether or not it can be served."""
    return set(_offered())


def others(name: str) -> list[str]:
    """Names of the other versions of a DApp, sorted: they are served beside it."""
    offered = _offered()
    return sorted(other for other in offered if other.startswith(f"{name}.") and not _reason(other, offered[other]))


def public(name: str) -> str:
    """The name of a DApp in URLs and receipts, common to all its versions."""
    return name.partition(".")[0]


def problems(trusted: Collection[str] | None = None) -> dict[str, str]:
    """Names that are offered and refused, with the reason; loads every class, or the trusted ones alone.

    Loading a class runs its package's code in this process, so a process with secrets passes the trusted names. The
    others are checked without running their code.
    """
    reasons = {}
    for name, points in sorted(_offered().items()):
        if trusted is not None and name not in trusted:
            if reason := _reason(name, points):
                reasons[name] = reason
            continue
        try:
            _instance(name, points)
        except UnknownDApp as error:
            reasons[name] = str(error)
    return reasons


def load(name: str) -> DApp:
    """An instance of the named DApp, without weights: call its `load(device)` before `forward`.

    Raises:
        UnknownDApp: no installed package offers it, two do, or it cannot be loaded.
    """
    offered = _offered()
    if name not in offered:
        raise UnknownDApp(f"no DApp named {name!r} is installed; there are: {', '.join(names()) or 'none'}")
    return _instance(name, offered[name])


def _instance(name: str, points: Sequence[EntryPoint]) -> DApp:
    reason = _reason(name, points)
    if reason:
        raise UnknownDApp(reason)
    (point,) = points
    try:
        kind = point.load()
        if not (isinstance(kind, type) and issubclass(kind, DApp)):
            raise TypeError(f"{point.value} is not a DApp class")
        return kind()
    except Exception as error:  # a stranger's package may fail in any way
        text = f"DApp {name} of {origin(point)} cannot be loaded: {type(error).__name__}: {error}"
        raise UnknownDApp(text) from error


def _reason(name: str, points: Sequence[EntryPoint]) -> str:
    if not NAME.fullmatch(name) and not OTHER.fullmatch(name):
        return f"{name!r} of {origin(points[0])}: a name is lower-case letters, digits, - and _, 63 at most"
    if "." in name and {_package(point) for point in points} != {_package(p) for p in _offered().get(public(name), ())}:
        # Otherwise a stranger's code would be trusted as that DApp's is, and answer in its name.
        return f"{name} of {origin(points[0])}: only the package of {public(name)} offers another version of it"
    if len(points) > 1:
        return f"{name} is offered by {' and by '.join(sorted(map(origin, points)))}: uninstall one of them"
    return ""


def origin(point: EntryPoint) -> str:
    """The package that offers this, with its version."""
    return f"{point.dist.name} {point.dist.version}" if point.dist else point.value


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist else ""


def _offered() -> dict[str, list[EntryPoint]]:
    offered: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=GROUP):
        offered.setdefault(point.name, []).append(point)
    return offered
