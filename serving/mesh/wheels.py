"""Unpacks a wheel into a folder of its own beside its other versions; nothing is installed over anything.

The mesh's environment never changes: whatever a wheel requires must be installed already. The folders lie beside the
data folder, because an isolated DApp sees its own package and never the data folder.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import installer
from installer.destinations import SchemeDictionaryDestination
from installer.sources import WheelFile
from packaging.requirements import InvalidRequirement, Requirement
from packaging.tags import sys_tags
from packaging.utils import InvalidWheelFilename, parse_wheel_filename

from dapps.packages import Offer, import_path, offers, wheel_distribution
from serving.config import Settings
from serving.errors import StartError


def unpack(settings: Settings, wheel: Path) -> tuple[str, list[Offer]]:
    """Unpacks a wheel, unless the same one is unpacked already.

    Returns:
        Its folder below the packages' folder, and the DApps that it offers.

    Raises:
        StartError: it is damaged, not for this Python, requires a package that is missing, or offers a taken name.
        UnknownDApp: it is no wheel, or offers no DApp.
    """
    dapps = offers(wheel)
    try:
        distribution, release, _, tags = parse_wheel_filename(wheel.name)
    except InvalidWheelFilename as error:
        raise StartError(f"{wheel.name}: this is no file name of a wheel: {error}") from error
    if tags.isdisjoint(sys_tags()):
        raise StartError(f"{wheel.name} is not built for this Python and machine")
    _check_requirements(wheel)
    versions = settings.packages / re.sub(r"[-.]+", "_", str(distribution))
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    folder = versions / f"{release}-{digest[:12]}"
    _check_names(settings, versions, dapps, f"{distribution} {release}")
    if not folder.exists():
        _install(wheel, folder)
    return f"{versions.name}/{folder.name}", dapps


def _check_requirements(wheel: Path) -> None:
    with wheel_distribution(wheel) as distribution:
        texts = distribution.requires or []
    missing = []
    for text in texts:
        try:
            requirement = Requirement(text)
        except InvalidRequirement as error:
            raise StartError(f"{wheel.name}: {error}") from error
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            missing.append(str(requirement))
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            missing.append(f"{requirement} (there is {installed})")
    if missing:
        raise StartError(f"{wheel.name} requires {', '.join(missing)}: install it with pip first")


def _check_names(settings: Settings, versions: Path, dapps: list[Offer], package: str) -> None:
    """Refuses a name that another package offers: at the next start the mesh would refuse both."""
    taken = {name: place for name, place in import_path.offered(settings.packages).items() if place[1] != versions}
    for offer in dapps:
        if offer.name in taken:
            raise StartError(f"{offer.name} is offered by {taken[offer.name][0]} and by {package}: choose another name")


def _install(wheel: Path, folder: Path) -> None:
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    places = {"purelib": part, "platlib": part, "data": part, "headers": part / "include", "scripts": part / "bin"}
    destination = SchemeDictionaryDestination(
        {scheme: str(place) for scheme, place in places.items()}, interpreter=sys.executable, script_kind="posix"
    )
    try:
        with WheelFile.open(wheel) as source:
            source.validate_record()
            installer.install(source, destination, additional_metadata={"INSTALLER": b"leben\n"})
    except Exception as error:  # a stranger's wheel may be damaged in any way
        shutil.rmtree(part, ignore_errors=True)
        issues = getattr(error, "issues", None) or [str(error) or type(error).__name__]
        raise StartError(f"{wheel.name} cannot be unpacked: {issues[0]}") from error
    part.rename(folder)
