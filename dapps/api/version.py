"""Reads the version of a DApp from the metadata of its package, the one place that states it.

The metadata lies beside the code: `pyproject.toml` in a project's folder, `*.dist-info` beside an installed or unpacked
package. Runs no code of the package.
"""

from __future__ import annotations

import sys
import tomllib
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from typing import NamedTuple

GROUP = "leben.dapps"
"""The entry-point group under which packages offer DApps."""


class PackageMetadata(NamedTuple):
    """A package's version, and the `module:Class` of each DApp that it offers by name."""

    version: str
    offers: dict[str, str]


class PackageVersion:
    """Stands for a version that neither a class nor its package states."""

    def __get__(self, dapp: object, kind: type) -> str:
        """Raises an AttributeError that says so."""
        raise AttributeError(f"{kind.__name__} has no version: neither its package's metadata nor the class states one")


def package_metadata(module: str) -> PackageMetadata | None:
    """The metadata of the package that offers DApps from this imported module; None if none lies beside it."""
    top = module.partition(".")[0]
    source = getattr(sys.modules.get(top), "__file__", None)
    return None if source is None else _beside(Path(source), top)


@cache  # by file: a mesh imports the next version of a package from another folder under the same module name
def _beside(file: Path, top: str) -> PackageMetadata | None:
    root = file.parent.parent if file.name == "__init__.py" else file.parent
    project = _project((root.parent if root.name == "src" else root) / "pyproject.toml")
    if project is not None and _holds(project, top):
        return project
    for distribution in distributions(path=[str(root)]):
        points = distribution.entry_points.select(group=GROUP)
        metadata = PackageMetadata(distribution.version, {point.name: point.value for point in points})
        if _holds(metadata, top):
            return metadata
    return None


def _project(file: Path) -> PackageMetadata | None:
    try:
        project = tomllib.loads(file.read_text("utf-8")).get("project", {})
        offers = project.get("entry-points", {}).get(GROUP, {})
    except (OSError, ValueError, AttributeError):  # not a project's folder; who reads a broken one reports it
        return None
    version = project.get("version")
    return PackageMetadata(version, dict(offers)) if isinstance(version, str) else None


def _holds(metadata: PackageMetadata, top: str) -> bool:
    return any(str(value).partition(":")[0].partition(".")[0] == top for value in metadata.offers.values())
