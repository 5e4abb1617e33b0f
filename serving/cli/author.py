"""Helps authors of DApps: `leben dapp new`, `check` and `serve`. Needs no mesh.

An author's code runs in a process of its own, so that a crash or a hang of it can be reported.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.markup import escape

from dapps.conformance import scaffold
from dapps.packages import NAME, Offer, UnknownDApp, offers
from serving.cli.console import err, fail, out

What = Annotated[
    str, typer.Argument(help="A folder with a pyproject.toml, a .py file, or the name of an installed DApp.")
]
IMPORT_S = 60
"""Time to import torch and the author's module, before the first step's own time begins."""


def dapp_new(
    name: Annotated[str, typer.Argument(help="The DApp's name: lower-case letters, digits, - and _.")],
    into: Annotated[Path, typer.Option(help="The parent folder of the new package.")] = Path(),
) -> None:
    """Make the package of a new DApp: class, card, tests, README. It passes its tests unchanged."""
    try:
        files = scaffold.make(name, into / name)
    except ValueError as error:
        fail(str(error))
    for file in files:
        out.print(file, highlight=False, soft_wrap=True)
    err.print(f"next: cd {into / name} && leben dapp check . && leben dapp serve .", soft_wrap=True)


def dapp_check(
    what: What = ".",
    device: Annotated[
        str, typer.Option(help="cpu, or cuda, which is compared with the CPU; by default a GPU if there is one.")
    ] = "",
    without: Annotated[list[str] | None, typer.Option(help="A step to skip, e.g. card; may be repeated.")] = None,
    step_s: Annotated[float, typer.Option(help="Time limit of a step in seconds.")] = 120.0,
    memory: Annotated[int, typer.Option(help="Memory limit in MiB.")] = 8192,
    json: Annotated[bool, typer.Option("--json", help="Print a JSON line for each step.")] = False,
) -> None:
    """Check a DApp against every rule of the mesh; each failure names the rule and the line to change."""
    failed = 0
    for plan in _plans(what):
        # A card lies beside a package's code, so a file alone has none; it becomes a package before it is installed.
        alone = ["card"] if str(plan.get("folder", "")).endswith(".py") else []
        left_out = [*(without or []), *alone]
        plan |= {"device": device, "without": left_out, "step_s": step_s, "memory_bytes": memory << 20}
        for line in _outcomes(plan, step_s):
            failed += "rule" in line
            if json:
                print(orjson.dumps({"dapp": plan["name"], **line}).decode())
            else:
                _show(line)
        if not json and not failed:
            but = f" but these, which were left out: {', '.join(left_out)}" if left_out else ""
            out.print(f"[green]{plan['name']} holds every rule[/]{escape(but)}", highlight=False, soft_wrap=True)
    if failed:
        fail(f"{failed} to change; docs/write-a-dapp.md explains each rule")


def dapp_serve(
    what: What = ".",
    port: Annotated[int, typer.Option(help="HTTP port, on loopback.")] = 8790,
) -> None:
    """Serve one DApp with free calls while you write it; it restarts when a file changes."""
    from serving.cli.dev_server import watch

    (offer, *more) = offers(Path(what))
    if more:
        err.print(f"the package has several DApps: serving {offer.name}", soft_wrap=True)
    watch(offer, port)


def failures(offer: Offer) -> int:
    """Checks one DApp against every rule, prints each that is broken, and returns their number."""
    plan = _plan(offer) | {"device": "", "without": [], "step_s": 120.0, "memory_bytes": 8 << 30}
    broken = [line for line in _outcomes(plan, 120.0) if "rule" in line]
    for line in broken:
        _show(line)
    return len(broken)


def _plans(what: str) -> list[dict[str, Any]]:
    if NAME.fullmatch(what) and not Path(what).exists():
        return [{"name": what}]
    try:
        return [_plan(offer) for offer in offers(Path(what))]
    except UnknownDApp as error:
        fail(str(error))


def _plan(offer: Offer) -> dict[str, Any]:
    return {"name": offer.name, "value": offer.value, "path": str(offer.path), "folder": str(offer.folder)}


def _outcomes(plan: dict[str, Any], step_s: float) -> Iterator[dict[str, Any]]:
    """The lines of the suite, which runs in its own process; one more if that process crashes or hangs."""
    words = [sys.executable, "-P", "-m", "dapps.conformance", orjson.dumps(plan).decode()]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, env=os.environ) as process:  # noqa: S603
        if process.stdout is None:
            raise RuntimeError("the suite has no output")
        last = ""
        while True:
            timer = threading.Timer(step_s + IMPORT_S, process.kill)
            timer.start()
            raw = process.stdout.readline()
            slow = not timer.is_alive()
            timer.cancel()
            if not raw:
                break
            line = orjson.loads(raw)
            last = line["step"]
            yield line
        status = process.wait()
    if status:
        why = "it has not ended in time" if slow else f"its process ended (status {status})"
        rule = "time" if slow else "crash"
        after = f"after the step {last!r}" if last else "while it was imported"
        yield {"step": "process", "rule": rule, "message": f"{why} {after}", "place": ""}


def _show(line: dict[str, Any]) -> None:
    step = f"{line['step']:<14}"
    if "rule" in line:
        out.print(f"[red]failed[/]  {step} {line['rule']}: {escape(line['message'])}", highlight=False, soft_wrap=True)
        if line["place"]:
            out.print(f"        change         {escape(line['place'])}", highlight=False, soft_wrap=True)
    elif "skipped" in line:
        out.print(f"[yellow]skipped[/] {step} {escape(line['skipped'])}", highlight=False)
    else:
        used = f"{line['seconds']:.2f} s, {line['peak_bytes'] >> 20} MiB at most"
        out.print(f"[green]ok[/]      {step} [dim]{used}[/]", highlight=False)
