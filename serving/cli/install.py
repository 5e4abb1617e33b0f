"""Changes what a mesh serves while it runs: `leben dapp install`, `enable`, `disable` and `rollback`.

Each command writes the mesh file and waits until the running mesh has applied it; without a mesh, the next `leben up`
applies it. A change that does not start is taken out of the file again.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from channels import private_files
from dapps import packages
from dapps.packages import Offer
from serving.cli.arguments import HERE, Data, read_settings
from serving.cli.author import failures
from serving.cli.console import err, fail, out
from serving.cluster import data_folder
from serving.config import Settings, mesh_file
from serving.errors import StartError
from serving.mesh import wheels

Name = Annotated[str, typer.Argument(help="The DApp's name.")]
NOT_SOURCE = (".venv", "venv", ".tox", "*_cache", "build", "dist", "*.egg-info", "__pycache__")
FOLLOW_S = 600.0
"""Large weights take a while to load."""


def dapp_install(
    what: Annotated[Path, typer.Argument(help="A wheel, or a folder with a pyproject.toml, which is built.")] = Path(),
    data: Data = HERE,
    trusted: Annotated[
        bool, typer.Option("--trusted", help="Check its rules, then run its code in the replica's own process.")
    ] = False,
    replicas: Annotated[int | None, typer.Option(help="Number of replicas.", min=1)] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Take other content under a version that is installed already.")
    ] = False,
) -> None:
    """Serve the DApps of a wheel or folder, or their next version, without losing a call. Keeps the one before."""
    settings = read_settings(data)
    with _wheel(what) as wheel:
        package, offers = wheels.unpack(settings, wheel, force=force)
    try:
        if trusted:
            _check(settings, package, offers)
        _serve(settings, package, offers, trusted=trusted, replicas=replicas)
    finally:
        _forget(settings, package)


@contextmanager
def _wheel(what: Path) -> Iterator[Path]:
    """The wheel itself, or the one that a folder is built into, for the block. A build runs the folder's own code."""
    if what.is_file():
        yield what
        return
    folder = what.expanduser().resolve()
    if not folder.exists():
        fail(f"{what} does not exist: name a wheel, or a folder with a pyproject.toml")
    packages.offers(folder)  # says what the folder lacks before it is built
    with tempfile.TemporaryDirectory(prefix="leben-wheel-") as place:
        # The folder is copied: what an earlier build left in it would become part of the wheel.
        copy = Path(place) / "source"
        shutil.copytree(folder, copy, symlinks=True, ignore=shutil.ignore_patterns(*NOT_SOURCE))
        words = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", place, str(copy)]
        with err.status("building the wheel …"):
            done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=place)  # noqa: S603
        built = sorted(Path(place).glob("*.whl"))
        if done.returncode or len(built) != 1:
            lines = (done.stderr or done.stdout).strip().splitlines()[-20:]
            fail("\n".join([*lines, f"{folder} cannot be built: python -m pip wheel --no-deps {folder} says more"]))
        yield built[0]


def _forget(settings: Settings, package: str) -> None:
    """Removes a package that the mesh file does not name: a refused version may be mended under the same number."""
    entries = mesh_file.read(settings).dapps.values()
    if package not in {name for entry in entries for name in (entry.package, entry.previous)}:
        shutil.rmtree(settings.packages / package, ignore_errors=True)


def _serve(settings: Settings, package: str, offers: Sequence[Offer], *, trusted: bool, replicas: int | None) -> None:
    before = mesh_file.read(settings).dapps
    values: dict[str, dict[str, Any]] = {}
    for offer in offers:
        old = before.get(offer.name)
        values[offer.name] = {"package": package, "trusted": trusted or None, "enabled": None}
        if replicas is not None:
            values[offer.name]["replicas"] = replicas
        if old is not None and old.package != package:
            values[offer.name]["previous"] = old.package or None
    _follow(settings, values)


def dapp_enable(name: Name, data: Data = HERE) -> None:
    """Serve a DApp that was disabled."""
    settings = read_settings(data)
    _entry(settings, name)
    _follow(settings, {name: {"enabled": None}})


def dapp_disable(name: Name, data: Data = HERE) -> None:
    """Stop serving a DApp. Running calls are answered; the DApp stays installed."""
    settings = read_settings(data)
    _entry(settings, name)
    _follow(settings, {name: {"enabled": False}})


def dapp_rollback(name: Name, data: Data = HERE) -> None:
    """Serve the version before the last install; a second rollback restores the later one."""
    settings = read_settings(data)
    entry = _entry(settings, name)
    if not entry.previous:
        fail(f"{name} has no previous version: leben dapp disable stops serving it")
    _follow(settings, {name: {"package": entry.previous, "previous": entry.package, "enabled": None}})


def _entry(settings: Settings, name: str) -> mesh_file.Entry:
    dapps = mesh_file.read(settings).dapps
    if name not in dapps:
        fail(f"{name} is not on this mesh; there are: {', '.join(sorted(dapps)) or 'none'}")
    return dapps[name]


def _check(settings: Settings, package: str, offers: Sequence[Offer]) -> None:
    """Refuses a DApp that breaks a rule: it will run in the replica's own process."""
    folder = settings.packages / package
    for offer in offers:
        failed = failures(Offer(offer.name, offer.value, folder, folder))
        if failed:
            fail(f"{offer.name} is not installed: it breaks {failed} of the rules above")


def _follow(settings: Settings, values: dict[str, dict[str, Any]]) -> None:
    path = settings.home / mesh_file.FILE
    before = path.read_bytes() if path.exists() else None
    for name, changed in values.items():
        mesh_file.change(settings, name, **changed)
    written = mesh_file.digest(settings)
    facts = data_folder.running(settings)
    if facts is None:
        out.print(
            f"written to {path}: no mesh runs on {settings.home}, the next leben up applies it",
            soft_wrap=True,
            markup=False,
        )
        return
    failed = _followed(settings, written)
    wrong = {name: why for name, why in failed.items() if name in values or not name}
    if wrong:
        _take_back(settings, before, written)
        fail("; ".join(f"{name}: {why}" if name else why for name, why in wrong.items()))
    served = (data_folder.running(settings) or {}).get("served", {})
    for name in values:
        row = served.get(name)
        line = f"{name} {row['version']} is served at {facts['url']}/v2/models/{name}" if row else f"{name} is off"
        out.print(line, soft_wrap=True, highlight=False)


def _followed(settings: Settings, written: str) -> dict[str, str]:
    until = time.monotonic() + FOLLOW_S
    with err.status("the mesh applies the change …"):
        while time.monotonic() < until:
            facts = data_folder.running(settings)
            if facts is None:
                fail("the mesh has ended meanwhile: the next leben up applies its file")
            if facts.get("file") == written:
                failed: dict[str, str] = facts.get("failed", {})
                return failed
            time.sleep(0.1)
    raise StartError("the mesh has not applied its file in time: see leben status, and its log in the dashboard")


def _take_back(settings: Settings, before: bytes | None, written: str) -> None:
    """Restores the file, unless it has changed since: a version that does not start must not stay in it."""
    if mesh_file.digest(settings) != written:
        return
    path = settings.home / mesh_file.FILE
    if before is None:
        path.unlink()
        return
    private_files.replace(path, before)
