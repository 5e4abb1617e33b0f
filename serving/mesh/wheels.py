"""Unpacks a wheel into a folder of its own beside its other versions; nothing is installed over anything.

The mesh's environment never changes: whatever a wheel requires must be installed already. The folders lie beside the
data folder, because an isolated DApp sees its own package and never the data folder.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
import zipfile
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

MAX_RECORD_BYTES = 8 << 20


def unpack(settings: Settings, wheel: Path, *, force: bool = False) -> tuple[str, list[Offer]]:
    """Unpacks a wheel, unless the same one is unpacked already.

    A version names one content in receipts and pages: other content under a version that is there is refused. With
    `force` it is unpacked beside it.

    Returns:
        Its folder below the packages' folder, and the DApps that it offers.

    Raises:
        StartError: it is damaged, not for this Python, requires a package that is missing, offers a taken name, or
            differs from the wheel of this version that is unpacked already.
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
    # Folders of earlier versions of the mesh are named by the digest of the whole file.
    folders = [versions / f"{release}-{digest[:12]}" for digest in (_content_digest(wheel), _file_digest(wheel))]
    folder = next((folder for folder in folders if folder.exists()), folders[0])
    _check_names(settings, versions, dapps, f"{distribution} {release}")
    if not folder.exists():
        others = [] if force else sorted(versions.glob(f"{release}-*"))
        if unpacked := [other.name for other in others if other.suffix != ".part"]:
            raise StartError(
                f"{distribution} {release} is installed already with other content ({', '.join(unpacked)}): "
                "give the next version another number, or install it with --force"
            )
        _install(wheel, folder)
    return f"{versions.name}/{folder.name}", dapps


def _file_digest(wheel: Path) -> str:
    return hashlib.sha256(wheel.read_bytes()).hexdigest()


def _content_digest(wheel: Path) -> str:
    """The digest of what its RECORD lists: equal for two builds of one source, whose archives differ in their times."""
    with zipfile.ZipFile(wheel) as archive:
        records = [name for name in archive.namelist() if name.endswith(".dist-info/RECORD")]
        if len(records) != 1 or archive.getinfo(records[0]).file_size > MAX_RECORD_BYTES:
            return _file_digest(wheel)
        try:
            rows = archive.read(records[0]).splitlines()
        except Exception:  # a stranger's archive may be damaged in any way; `_install` says how
            return _file_digest(wheel)
    return hashlib.sha256(b"\n".join(sorted(rows))).hexdigest()


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
