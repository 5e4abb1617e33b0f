"""Finds the DApps that a folder, a file or a wheel offers, without running any of their code.

Entry points are read from a folder's `pyproject.toml` or a wheel's metadata; a single file must define one class.
"""

from __future__ import annotations

import ast
import importlib
import re
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import Distribution, PathDistribution
from pathlib import Path

from dapps.api import DApp
from dapps.packages.registry import GROUP, NAME, UnknownDApp

VALUE = re.compile(r"\w+(\.\w+)*:\w+(\.\w+)*")


@dataclass(frozen=True, slots=True)
class Offer:
    """A DApp on disk.

    Args:
        name: its name in URLs.
        value: `module:Class`.
        path: the entry of `sys.path` from which it is imported.
        folder: the author's files; they are watched while it is developed.
    """

    name: str
    value: str
    path: Path
    folder: Path

    def load(self) -> DApp:
        """An instance, without weights; runs the author's code.

        Raises:
            TypeError: the value names no DApp class.
            Exception: the author's code raised it.
        """
        sys.path.insert(0, str(self.path))
        module, _, attribute = self.value.partition(":")
        kind = getattr(importlib.import_module(module), attribute)
        if not (isinstance(kind, type) and issubclass(kind, DApp)):
            raise TypeError(f"{self.value} is not a DApp class")
        return kind()


def offers(path: Path) -> list[Offer]:
    """The DApps of a folder with a `pyproject.toml`, of a Python file or of a wheel.

    Raises:
        UnknownDApp: it offers none, or cannot be read; the message names the cause.
    """
    place = path.expanduser().resolve()
    if place.suffix == ".whl":
        dapps = _of_wheel(place)
    elif place.suffix == ".py":
        dapps = _of_file(place)
    elif place.is_dir():
        dapps = _of_project(place)
    else:
        raise UnknownDApp(f"{path} is no folder with a pyproject.toml, no .py file and no wheel")
    for offer in dapps:
        if not NAME.fullmatch(offer.name):
            raise UnknownDApp(f"{offer.name!r} is no name: lower-case letters, digits, - and _, 63 at most")
        if not VALUE.fullmatch(offer.value):
            raise UnknownDApp(f"{offer.name}: {offer.value!r} is no module:Class")
    return dapps


def _of_project(folder: Path) -> list[Offer]:
    file = folder / "pyproject.toml"
    if not file.is_file():
        raise UnknownDApp(f"{folder} has no pyproject.toml: make a package with leben dapp new NAME")
    try:
        project = tomllib.loads(file.read_text("utf-8")).get("project", {})
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UnknownDApp(f"{file} cannot be read: {error}") from error
    points = project.get("entry-points", {}).get(GROUP, {})
    if not points:
        raise UnknownDApp(f'{file} offers no DApp: it needs a table [project.entry-points."{GROUP}"]')
    path = folder / "src" if (folder / "src").is_dir() else folder
    return [Offer(name, value, path, folder) for name, value in points.items()]


def _of_file(file: Path) -> list[Offer]:
    try:
        tree = ast.parse(file.read_text("utf-8"))
    except (OSError, SyntaxError, UnicodeDecodeError) as error:
        raise UnknownDApp(f"{file} cannot be read: {error}") from error
    kinds = [node.name for node in tree.body if isinstance(node, ast.ClassDef) and node.bases]
    if len(kinds) != 1:
        raise UnknownDApp(f"{file} defines {len(kinds)} classes with a base: a file with one, or a package, can be run")
    name = kinds[0].lower()
    return [Offer(name, f"{file.stem}:{kinds[0]}", file.parent, file)]


def _of_wheel(file: Path) -> list[Offer]:
    with wheel_distribution(file) as distribution:
        try:
            points = distribution.entry_points.select(group=GROUP)
        except (TypeError, ValueError, AttributeError) as error:
            raise UnknownDApp(f"{file} is no wheel: its entry_points.txt cannot be read") from error
        if not points:
            raise UnknownDApp(f"{file.name} offers no DApp: its package needs an entry point in the group {GROUP}")
        return [Offer(point.name, point.value, file, file) for point in points]


@contextmanager
def wheel_distribution(file: Path) -> Iterator[Distribution]:
    """The metadata of a wheel, for the block.

    Raises:
        UnknownDApp: it is no archive, or has no metadata.
    """
    try:
        archive = zipfile.ZipFile(file)
    except (OSError, zipfile.BadZipFile) as error:
        raise UnknownDApp(f"{file} is no wheel: {error}") from error
    with archive:
        folders = {name.partition("/")[0] for name in archive.namelist()}
        information = [folder for folder in folders if folder.endswith(".dist-info")]
        if len(information) != 1:
            raise UnknownDApp(f"{file} is no wheel: it has {len(information)} folders *.dist-info instead of one")
        distribution = PathDistribution(zipfile.Path(archive, f"{information[0]}/"))
        try:
            metadata = distribution.read_text("METADATA")
        except Exception as error:  # a stranger's archive may be damaged in any way
            raise UnknownDApp(f"{file} is no wheel: its METADATA cannot be read: {error}") from error
        if not metadata:
            raise UnknownDApp(f"{file} is no wheel: {information[0]} has no METADATA")
        yield distribution
