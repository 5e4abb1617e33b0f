"""`unpack`: a wheel becomes a folder of its own beside its other versions; nothing is installed over anything.

The mesh's environment never changes: what a wheel needs must be in it already. The folders lie beside the data folder,
because an isolated DApp sees its own package and never the data folder.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import BytesHeaderParser
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import InvalidWheelFilename, parse_wheel_filename

from dapps.packages import Offer, offers
from dapps.packages import import_path as shelves
from serving.config import Settings
from serving.errors import StartError


def unpack(settings: Settings, wheel: Path) -> tuple[str, list[Offer]]:
    """Unpacks a wheel; the same one again is found where it is.

    Returns:
        Its folder below the packages' folder, and the DApps that it offers.

    Raises:
        StartError: it is no wheel for this Python, needs what is not installed, or offers a name that is taken.
        UnknownDApp: it offers no DApp.
    """
    found = offers(wheel)
    try:
        distribution, release, _, _ = parse_wheel_filename(wheel.name)
    except InvalidWheelFilename as error:
        raise StartError(f"{wheel.name}: a wheel's name tells its version: {error}") from error
    _check_needs(wheel)
    shelf = settings.packages / re.sub(r"[-.]+", "_", str(distribution))
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    folder = shelf / f"{release}-{digest[:12]}"
    _check_names(settings, shelf, found, f"{distribution} {release}")
    if not folder.exists():
        _install(wheel, folder)
    return f"{shelf.name}/{folder.name}", found


def _check_needs(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (each for each in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", each))
        wanted = BytesHeaderParser().parsebytes(archive.read(name)).get_all("Requires-Dist") or []
    missing = []
    for text in wanted:
        try:
            need = Requirement(text)
        except InvalidRequirement as error:
            raise StartError(f"{wheel.name}: {error}") from error
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            continue
        try:
            here = version(need.name)
        except PackageNotFoundError:
            missing.append(str(need))
            continue
        if not need.specifier.contains(here, prereleases=True):
            missing.append(f"{need} (there is {here})")
    if missing:
        raise StartError(
            f"{wheel.name} needs what is not installed here: {', '.join(missing)}: install it with pip first"
        )


def _check_names(settings: Settings, shelf: Path, found: list[Offer], ours: str) -> None:
    """Two packages with one name would both be refused at the next start: better to say so now, with both origins."""
    others = {name: place for name, place in shelves.offered(settings.packages).items() if place[1] != shelf}
    for offer in found:
        if offer.name in others:
            raise StartError(f"{offer.name} is offered by {others[offer.name][0]} and by {ours}: choose another name")


def _install(wheel: Path, folder: Path) -> None:
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    words = ["install", "--quiet", "--no-deps", "--no-index", "--no-input", "--disable-pip-version-check"]
    command = [sys.executable, "-I", "-m", "pip", *words, "--target", str(part), str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)  # noqa: S603 - our own pip
    if done.returncode:
        shutil.rmtree(part, ignore_errors=True)
        told = (done.stderr.strip() or done.stdout.strip()).splitlines() or ["pip says nothing"]
        raise StartError(f"{wheel.name} cannot be unpacked: {told[-1]}")
    part.rename(folder)
