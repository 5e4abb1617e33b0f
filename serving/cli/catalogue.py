"""Shows the catalogue of the running mesh, or the installed DApps where none runs: `leben dapps`."""

from __future__ import annotations

from typing import Any

import httpx
import orjson
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from dapps.packages import registry
from serving.catalogue import entry
from serving.cli.arguments import HERE, Data, Json, read_settings, uses_proxy
from serving.cli.console import err, out
from serving.cluster import data_folder

TIMEOUT_S = 15.0


def dapps(data: Data = HERE, json: Json = False) -> None:
    """Show the DApps, their prices and whether they can be called now."""
    facts = data_folder.running(read_settings(data))
    if facts is None:
        err.print("no mesh runs on this data folder: these DApps are installed", soft_wrap=True)
    catalogue = _installed() if facts is None else _served(facts["url"])
    if json:
        print(orjson.dumps(catalogue).decode())
        return
    table = Table("name", "version", "state", "what it does", box=SIMPLE)
    for head in ("an item", "at most"):
        table.add_column(head, justify="right")
    for row in catalogue["dapps"]:
        health = row["health"]
        state = "[green]ready[/]" if health["state"] == "READY" else f"[yellow]{escape(health['reason'])}[/]"
        price = row["price"]
        unit_price = f"{price['perGpuSecond']} a second" if price["perGpuSecond"] else price["perItem"]
        shown = escape(row["name"]), escape(row["version"]), state, escape(row["description"])
        table.add_row(*shown, unit_price, price["maximum"])
    out.print(table)
    for row in catalogue["unserved"]:
        mark = "[red]broken[/]" if row["state"] == "broken" else "[dim]not served[/]"
        out.print(f"{escape(row['name'])} {mark}: {escape(row['reason'])}", highlight=False, soft_wrap=True)
    out.print("prices in atomic units: 1000000 is 1.00", style="dim", highlight=False)


def _served(url: str) -> dict[str, Any]:
    response = httpx.get(f"{url}/v1/dapps", timeout=TIMEOUT_S, trust_env=uses_proxy(url))
    response.raise_for_status()
    catalogue: dict[str, Any] = response.json()
    return catalogue


def _installed() -> dict[str, Any]:
    broken = registry.problems()
    loaded = {name: registry.load(name) for name in registry.names() if name not in broken}
    health = {"state": "UNAVAILABLE", "reason": "no mesh runs"}
    rows = [entry.listed(entry.entry(name, dapp, ())) | {"health": health} for name, dapp in loaded.items()]
    return {"dapps": rows, "unserved": entry.unserved(loaded)}
