"""Finds guidelines by name: the built-in files, and those of installed packages (entry points `leben.guidelines`).

An entry point's name is the guideline's, its value the package that holds `<name>.yaml`. A package cannot take a
built-in name, and a caller who pins a digest gets that file or none.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.resources import files
from pathlib import Path

from dapps.knowledge.guideline import Guideline, load
from dapps.knowledge.source import MAX_BYTES

GROUP = "leben.guidelines"
BUILT_IN = "dapps.knowledge.guidelines"


class UnknownGuideline(Exception):
    """No built-in or installed guideline has this name, or its file is not the one that was pinned."""


def names() -> list[str]:
    """Names of all guidelines, built-in and installed, sorted."""
    return sorted({*_built_in(), *_installed()})


def raw(name: str) -> bytes:
    """The bytes of a guideline's file.

    Raises:
        UnknownGuideline: there is none of this name.
    """
    package = BUILT_IN if name in _built_in() else _installed().get(name)
    if package is None:
        raise UnknownGuideline(f"no guideline named {name!r}; there are: {', '.join(names())}")
    try:
        return files(package).joinpath(f"{name}.yaml").read_bytes()
    except (ModuleNotFoundError, FileNotFoundError, NotADirectoryError):
        raise UnknownGuideline(f"the package {package} offers {name} and has no file {name}.yaml") from None


def find(name: str, digest: str | None = None) -> Guideline:
    """The guideline of this name, checked.

    Args:
        name: as `names` lists it.
        digest: the digest it must have, if one is pinned.

    Raises:
        UnknownGuideline: there is none, its `id` is another one, or its digest is not the one pinned.
        GuidelineError: its file is no guideline.
    """
    guideline = _loaded(raw(name))
    if guideline.id != name:
        raise UnknownGuideline(f"the file of {name} has the id {guideline.id}")
    if digest is not None and guideline.digest != digest.lower().removeprefix("0x"):
        raise UnknownGuideline(f"{name} is not the file that was pinned: its digest is {guideline.digest}")
    return guideline


def open_file(name_or_path: str) -> bytes:
    """The bytes of a guideline by name, or of a file: anything with a dot or a slash in it, or that exists.

    Raises:
        UnknownGuideline: no guideline and no file of this name.
        OSError: the file cannot be read.
    """
    if name_or_path in names():
        return raw(name_or_path)
    path = Path(name_or_path)
    if path.suffix or "/" in name_or_path or path.exists():
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    return raw(name_or_path)


@cache
def _loaded(content: bytes) -> Guideline:
    return load(content)


def _built_in() -> list[str]:
    entries = (entry.name for entry in files(BUILT_IN).iterdir())
    return [name.removesuffix(".yaml") for name in entries if name.endswith(".yaml")]


def _installed() -> dict[str, str]:
    points: dict[str, EntryPoint] = {}
    for point in entry_points(group=GROUP):
        if point.name in points and points[point.name].value != point.value:
            raise UnknownGuideline(f"two installed packages offer a guideline named {point.name}")
        points[point.name] = point
    taken = [name for name in points if name in _built_in()]
    if taken:
        raise UnknownGuideline(f"an installed package offers {taken[0]}, which is the name of a built-in guideline")
    return {name: point.value for name, point in points.items()}
