"""Finds DApps: every installed package's `leben.dapps` entry points, the built-in ones among them.

A name is what appears in the URL and earns money, so two packages that offer one name are both refused. A broken
package is listed with its reason and never stops the others. Loading a DApp class never loads torch or weights.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from importlib.metadata import EntryPoint, entry_points

from dapps.api import DApp

GROUP = "leben.dapps"
NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}")
OTHER = re.compile(rf"({NAME.pattern})\.[A-Za-z0-9_-]{{1,32}}")
"""Another version of a DApp, offered beside the one that answers by default: its name, a dot, and any word."""


class UnknownDApp(Exception):
    """No installed package offers a DApp of this name, or what it offers cannot be served; the message says which."""


def names() -> list[str]:
    """Names of all installed DApps that can be looked up, sorted; what is offered in vain is in `problems`."""
    return sorted(name for name, points in _offered().items() if "." not in name and not _reason(name, points))


def offered() -> set[str]:
    """Every name that any installed package offers, whether it can be served or not."""
    return set(_offered())


def others(name: str) -> list[str]:
    """Under which names other versions of a DApp can be looked up, sorted: they are served beside it."""
    offered = _offered()
    return sorted(each for each in offered if each.startswith(f"{name}.") and not _reason(each, offered[each]))


def public(name: str) -> str:
    """The name of a DApp in URLs and receipts: that of all its versions."""
    return name.partition(".")[0]


def problems(wanted: Collection[str] | None = None) -> dict[str, str]:
    """Names that are offered and refused, and why; loads every class, or those wanted alone, to see whether it can be.

    To load a class is to run its package's code, here: whoever holds secrets asks for what is trusted. Of the others
    it is said what can be seen from outside.
    """
    found = {}
    for name, points in sorted(_offered().items()):
        if wanted is not None and name not in wanted:
            if reason := _reason(name, points):
                found[name] = reason
            continue
        try:
            _one(name, points)
        except UnknownDApp as error:
            found[name] = str(error)
    return found


def load(name: str) -> DApp:
    """An instance of the named DApp, without weights: call its `load(device)` before `forward`.

    Raises:
        UnknownDApp: no installed package offers it, two do, or it cannot be loaded.
    """
    offered = _offered()
    if name not in offered:
        raise UnknownDApp(f"no DApp named {name!r} is installed; there are: {', '.join(names()) or 'none'}")
    return _one(name, offered[name])


def _one(name: str, points: Sequence[EntryPoint]) -> DApp:
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
        # Its code would be trusted as that DApp's is, and answer in its name.
        return f"{name} of {origin(points[0])}: only the package of {public(name)} offers another version of it"
    if len(points) > 1:
        return f"{name} is offered by {' and by '.join(sorted(map(origin, points)))}: uninstall one of them"
    return ""


def origin(point: EntryPoint) -> str:
    """Which package offers this, with its version."""
    return f"{point.dist.name} {point.dist.version}" if point.dist else point.value


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist else ""


def _offered() -> dict[str, list[EntryPoint]]:
    offered: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=GROUP):
        offered.setdefault(point.name, []).append(point)
    return offered
