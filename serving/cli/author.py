"""`leben dapp new`, `check` and `serve`: for those who write DApps. Needs no mesh.

An author's code runs in a process of its own, so that whatever it does, this one can say what was wrong. Next:
`dapps/conformance/suite.py` for the rules, `workbench.py` for what `serve` runs.
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
from serving.cli.dapp import dapp_app as dapp_app

What = Annotated[
    str, typer.Argument(help="A folder with a pyproject.toml, a .py file, or the name of an installed one.")
]
IMPORT_S = 60
"""What importing torch and the author's module may take before the first step's own time begins."""


@dapp_app.command("new")
def dapp_new(
    name: Annotated[str, typer.Argument(help="The DApp's name: lower-case letters, digits, - and _.")],
    into: Annotated[Path, typer.Option(help="The folder in which the package's folder is made.")] = Path(),
) -> None:
    """Make the package of a new DApp: class, card, tests, README. It passes its own tests as it is."""
    try:
        made = scaffold.make(name, into / name)
    except ValueError as error:
        fail(str(error))
    for file in made:
        out.print(file, highlight=False, soft_wrap=True)
    err.print(f"next: cd {into / name} && leben dapp check . && leben dapp serve .", soft_wrap=True)


@dapp_app.command("check")
def dapp_check(
    what: What = ".",
    device: Annotated[
        str, typer.Option(help="cpu, or cuda: held against the CPU then. Empty: a GPU if there is one.")
    ] = "",
    without: Annotated[list[str] | None, typer.Option(help="A step to leave out, e.g. card; may stand often.")] = None,
    step_s: Annotated[float, typer.Option(help="Seconds that a step may take.")] = 120.0,
    memory: Annotated[int, typer.Option(help="MiB of memory that it may use.")] = 8192,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON line a step.")] = False,
) -> None:
    """Hold a DApp to every rule of the mesh; each failure names the rule, and the line to change."""
    failed = 0
    for asked in _asked(what):
        asked |= {"device": device, "without": without or [], "step_s": step_s, "memory_bytes": memory << 20}
        for line in _outcomes(asked, step_s):
            failed += "rule" in line
            if json:
                print(orjson.dumps({"dapp": asked["name"], **line}).decode())
            else:
                _tell(line)
        if not json and not failed:
            out.print(f"[green]{asked['name']} holds every rule[/]", highlight=False)
    if failed:
        fail(f"{failed} to change; docs/write-a-dapp.md says what each rule is for")


@dapp_app.command("serve")
def dapp_serve(
    what: What = ".",
    port: Annotated[int, typer.Option(help="HTTP port, on loopback.")] = 8790,
) -> None:
    """Run one DApp with free calls while you write it; it starts anew whenever a file changes."""
    from serving.cli.dev_server import watch

    (offer, *more) = offers(Path(what))
    if more:
        err.print(f"several are offered: serving {offer.name}", soft_wrap=True)
    watch(offer, port)


def failures(offer: Offer) -> int:
    """Holds one DApp to every rule, tells each that is broken, and returns how many are."""
    asked = _located(offer) | {"device": "", "without": [], "step_s": 120.0, "memory_bytes": 8 << 30}
    broken = [line for line in _outcomes(asked, 120.0) if "rule" in line]
    for line in broken:
        _tell(line)
    return len(broken)


def _asked(what: str) -> list[dict[str, Any]]:
    if NAME.fullmatch(what) and not Path(what).exists():
        return [{"name": what}]
    try:
        return [_located(offer) for offer in offers(Path(what))]
    except UnknownDApp as error:
        fail(str(error))


def _located(offer: Offer) -> dict[str, Any]:
    return {"name": offer.name, "value": offer.value, "path": str(offer.path), "folder": str(offer.folder)}


def _outcomes(asked: dict[str, Any], step_s: float) -> Iterator[dict[str, Any]]:
    """The lines of the suite in its own process; one more if that process ends or hangs between two steps."""
    words = [sys.executable, "-P", "-m", "dapps.conformance", orjson.dumps(asked).decode()]
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


def _tell(line: dict[str, Any]) -> None:
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
