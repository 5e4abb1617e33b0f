"""`Offer`: a DApp that a folder, a file or a wheel offers, found without running any of its code.

Where a package is not installed, its entry points are read from its `pyproject.toml`, or from the wheel's own list; a
single file is looked through for the one class that it defines.
"""

from __future__ import annotations

import ast
import configparser
import importlib
import sys
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path

from dapps.api import DApp
from dapps.packages.registry import GROUP, NAME, UnknownDApp


@dataclass(frozen=True, slots=True)
class Offer:
    """A DApp that lies somewhere on disk.

    Args:
        name: as it would stand in the URL.
        value: `module:Class`.
        path: what has to be on `sys.path` to import it.
        folder: of the author's files; they are watched while it is developed.
    """

    name: str
    value: str
    path: Path
    folder: Path

    def load(self) -> DApp:
        """An instance, without weights; runs the author's code.

        Raises:
            TypeError: the value names something else than a DApp class.
            Exception: whatever the author's code raises.
        """
        sys.path.insert(0, str(self.path))
        module, _, attribute = self.value.partition(":")
        kind = getattr(importlib.import_module(module), attribute)
        if not (isinstance(kind, type) and issubclass(kind, DApp)):
            raise TypeError(f"{self.value} is not a DApp class")
        return kind()


def offers(path: Path) -> list[Offer]:
    """What a folder with a `pyproject.toml`, a Python file or a wheel offers.

    Raises:
        UnknownDApp: nothing, or it cannot be read; the message says what is missing.
    """
    where = path.expanduser().resolve()
    if where.suffix == ".whl":
        found = _of_wheel(where)
    elif where.suffix == ".py":
        found = _of_file(where)
    elif where.is_dir():
        found = _of_project(where)
    else:
        raise UnknownDApp(f"{path} is no folder with a pyproject.toml, no .py file and no wheel")
    for offer in found:
        if not NAME.fullmatch(offer.name):
            raise UnknownDApp(f"{offer.name!r} is no name: lower-case letters, digits, - and _, 63 at most")
    return found


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
    try:
        with zipfile.ZipFile(file) as wheel:
            lists = [name for name in wheel.namelist() if name.endswith(".dist-info/entry_points.txt")]
            text = "".join(wheel.read(name).decode() for name in lists)
    except (OSError, zipfile.BadZipFile, UnicodeDecodeError) as error:
        raise UnknownDApp(f"{file} is no wheel: {error}") from error
    table = configparser.ConfigParser(delimiters=("=",), interpolation=None)
    table.optionxform = str  # type: ignore[assignment,method-assign]
    table.read_string(text)
    points = dict(table[GROUP]) if GROUP in table else {}
    if not points:
        raise UnknownDApp(f"{file.name} offers no DApp: its package needs an entry point in the group {GROUP}")
    return [Offer(name, value, file, file) for name, value in points.items()]
