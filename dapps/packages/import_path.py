"""Where installed versions of DApps lie side by side, and which of them Python sees: one folder each on `sys.path`.

A folder is `<packages>/<distribution>/<version>-<digest>`. Of one distribution a process sees one version at a time,
and always after what the environment offers: a wheel must not shadow the mesh's own modules.
"""

from __future__ import annotations

import importlib
import sys
from importlib.metadata import distributions, entry_points
from pathlib import Path

from dapps.packages.registry import GROUP, origin


def show(folder: Path) -> None:
    """Makes this version of a distribution the one that is seen; what was loaded of another is forgotten."""
    hide(folder)
    sys.path.append(str(folder))
    importlib.invalidate_caches()


def hide(folder: Path) -> None:
    """Takes every version of a distribution away: modules that were loaded from one stay as they are where used."""
    shelf = folder.parent
    sys.path[:] = [path for path in sys.path if Path(path).parent != shelf]
    for name, module in list(sys.modules.items()):
        source = getattr(module, "__file__", None)
        if source and Path(source).is_relative_to(shelf):
            del sys.modules[name]
    importlib.invalidate_caches()


def offered(packages: Path) -> dict[str, tuple[str, Path | None]]:
    """Every name that is offered here: by which package, and where all versions of it lie; None: in the environment."""
    names: dict[str, tuple[str, Path | None]] = {
        point.name: (origin(point), None) for point in entry_points(group=GROUP)
    }
    for folder in sorted(packages.glob("*/*/")):
        for distribution in distributions(path=[str(folder)]):
            points = [point for point in distribution.entry_points if point.group == GROUP]
            names |= {point.name: (f"{distribution.name} {distribution.version}", folder.parent) for point in points}
    return names
