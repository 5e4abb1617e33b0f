"""`leben dapps`: the catalogue as a table: of the running mesh, or of what is installed where none runs."""

from __future__ import annotations

from typing import Annotated, Any

import httpx
import orjson
import typer
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from dapps.packages import registry
from serving.catalogue import entry
from serving.cli.console import HERE, Data, err, out
from serving.cluster import data_folder
from serving.config import Settings

Json = dict[str, Any]
TIMEOUT_S = 15.0


def dapps(
    data: Data = HERE, json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False
) -> None:
    """Show the DApps: price, whether they can be called now, and what is broken, with the reason."""
    facts = data_folder.running(Settings(data=data))
    if facts is None:
        err.print("no mesh runs on this data folder: this is what is installed", soft_wrap=True)
    told = _installed() if facts is None else _asked(facts["url"])
    if json:
        print(orjson.dumps(told).decode())
        return
    table = Table("name", "version", "state", "what it does", box=SIMPLE)
    for head in ("an item", "at most"):
        table.add_column(head, justify="right")
    for row in told["dapps"]:
        health = row["health"]
        state = "[green]ready[/]" if health["state"] == "READY" else f"[yellow]{escape(health['reason'])}[/]"
        price = row["price"]
        each = f"{price['perGpuSecond']} a second" if price["perGpuSecond"] else price["perItem"]
        shown = escape(row["name"]), escape(row["version"]), state, escape(row["description"])
        table.add_row(*shown, each, price["maximum"])
    out.print(table)
    for row in told["unserved"]:
        mark = "[red]broken[/]" if row["state"] == "broken" else "[dim]not served[/]"
        out.print(f"{escape(row['name'])} {mark}: {escape(row['reason'])}", highlight=False, soft_wrap=True)
    out.print("prices in atomic units: 1000000 is 1.00", style="dim", highlight=False)


def _asked(url: str) -> Json:
    answer = httpx.get(f"{url}/v1/dapps", timeout=TIMEOUT_S)
    answer.raise_for_status()
    told: Json = answer.json()
    return told


def _installed() -> Json:
    broken = registry.problems()
    loaded = {name: registry.load(name) for name in registry.names() if name not in broken}
    health = {"state": "UNAVAILABLE", "reason": "no mesh runs"}
    rows = [entry.listed(entry.entry(name, dapp, ())) | {"health": health} for name, dapp in loaded.items()]
    return {"dapps": rows, "unserved": entry.unserved(loaded)}
