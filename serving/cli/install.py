"""`leben dapp install`, `enable`, `disable`, `rollback`: what a mesh serves, changed while it runs.

Each writes the mesh file and waits until the running mesh has followed it; without one, the next `leben up` does. What
does not start is taken out of the file again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from dapps.packages import Offer
from serving.cli.author import failures
from serving.cli.console import HERE, Data, err, fail, out
from serving.cli.dapp import dapp_app as dapp_app
from serving.cluster import data_folder
from serving.config import Settings, mesh_file
from serving.errors import StartError
from serving.mesh import rollout, wheels

Name = Annotated[str, typer.Argument(help="The DApp's name.")]
FOLLOW_S = 600.0
"""Large weights take a while to load."""


@dapp_app.command("install")
def dapp_install(
    wheel: Annotated[Path, typer.Argument(help="A wheel, e.g. dist/my_dapp-0.1.0-py3-none-any.whl.")],
    data: Data = HERE,
    trusted: Annotated[
        bool, typer.Option("--trusted", help="Run its code in the replica's own process, after the rules are checked.")
    ] = False,
    replicas: Annotated[int | None, typer.Option(help="How many replicas answer.", min=1)] = None,
) -> None:
    """Serve the DApps of a wheel, or their next version, without a lost call; the version before is kept."""
    settings = Settings(data=data)
    if not wheel.is_file():
        fail(f"{wheel} is not there: build one with python -m pip wheel --no-deps --wheel-dir dist .")
    package, found = wheels.unpack(settings, wheel)
    if trusted:
        _check(settings, package, found)
    before = mesh_file.read(settings).dapps
    values: dict[str, dict[str, Any]] = {}
    for offer in found:
        old = before.get(offer.name)
        values[offer.name] = {"package": package, "trusted": trusted or None, "enabled": None}
        if replicas is not None:
            values[offer.name]["replicas"] = replicas
        if old is not None and old.package != package:
            values[offer.name]["previous"] = old.package or None
    _follow(settings, values)


@dapp_app.command("enable")
def dapp_enable(name: Name, data: Data = HERE) -> None:
    """Serve a DApp that was disabled."""
    settings = Settings(data=data)
    _known(settings, name)
    _follow(settings, {name: {"enabled": None}})


@dapp_app.command("disable")
def dapp_disable(name: Name, data: Data = HERE) -> None:
    """Take a DApp off the mesh: calls that run are answered, later ones find no such model. It stays installed."""
    settings = Settings(data=data)
    _known(settings, name)
    _follow(settings, {name: {"enabled": False}})


@dapp_app.command("rollback")
def dapp_rollback(name: Name, data: Data = HERE) -> None:
    """Serve the version that was served before the last install; once more, and the later one is back."""
    settings = Settings(data=data)
    entry = _known(settings, name)
    if not entry.previous:
        fail(f"{name} has no version before this one: leben dapp disable takes it off the mesh")
    _follow(settings, {name: {"package": entry.previous, "previous": entry.package, "enabled": None}})


def _known(settings: Settings, name: str) -> mesh_file.Entry:
    dapps = mesh_file.read(settings).dapps
    if name not in dapps:
        fail(f"{name} is not on this mesh; there are: {', '.join(sorted(dapps)) or 'none'}")
    return dapps[name]


def _check(settings: Settings, package: str, found: Sequence[Offer]) -> None:
    """What will run in the replica's own process is checked first."""
    folder = settings.packages / package
    for offer in found:
        failed = failures(Offer(offer.name, offer.value, folder, folder))
        if failed:
            fail(f"{offer.name} is not installed: {failed} of the rules above is broken")


def _follow(settings: Settings, values: dict[str, dict[str, Any]]) -> None:
    path = settings.home / mesh_file.FILE
    before = path.read_bytes() if path.exists() else None
    for name, changed in values.items():
        mesh_file.change(settings, name, **changed)
    written = rollout.digest(settings)
    facts = data_folder.running(settings)
    if facts is None:
        out.print(
            f"noted in {path}: no mesh runs on {settings.home}, the next leben up follows it",
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
        told = f"{name} {row['version']} is served at {facts['url']}/v2/models/{name}" if row else f"{name} is off"
        out.print(told, soft_wrap=True, highlight=False)


def _followed(settings: Settings, written: str) -> dict[str, str]:
    until = time.monotonic() + FOLLOW_S
    with err.status("the mesh follows …"):
        while time.monotonic() < until:
            facts = data_folder.running(settings)
            if facts is None:
                fail("the mesh has ended meanwhile: the next leben up follows its file")
            if facts.get("file") == written:
                failed: dict[str, str] = facts.get("failed", {})
                return failed
            time.sleep(0.1)
    raise StartError("the mesh has not followed its file in time: leben status, and its log in the dashboard")


def _take_back(settings: Settings, before: bytes | None, written: str) -> None:
    """The file as it was, unless somebody has changed it since: a version that does not start must not be asked for."""
    if rollout.digest(settings) != written:
        return
    path = settings.home / mesh_file.FILE
    if before is None:
        path.unlink()
        return
    fresh = path.with_suffix(".new")
    fresh.write_bytes(before)
    fresh.replace(path)
