"""`leben dapp`: the DApps that are installed, for those who call them and those who write them."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.table import Table

from dapps import IntakeRefused, registry
from serving.console import err, out

dapp_app = typer.Typer(no_args_is_help=True, help="The DApps that are installed.")


@dapp_app.command("list")
def dapp_list() -> None:
    """List the DApps that are installed, with version and price."""
    table = Table("name", "version", "price per item", "items at most", "what it does")
    for name in registry.names():
        dapp = registry.load(name)
        table.add_row(name, dapp.version, str(dapp.price.per_item), str(dapp.price.maximum_items), dapp.description)
    out.print(table)


@dapp_app.command("example")
def dapp_example(
    name: Annotated[str, typer.Argument(help="The DApp's name.")],
    file: Annotated[Path, typer.Option("--out", help="Where to write the JSON body.")],
) -> None:
    """Write a valid JSON body for a DApp's `diagnose` route, or for `infer` if it takes tensors only."""
    dapp = registry.load(name)
    try:
        body: dict[str, Any] = {"file": base64.b64encode(dapp.sample().data).decode()}
        route = "diagnose"
    except IntakeRefused:
        arrays = dapp.example()
        declared = [tensor for tensor in dapp.inputs if tensor.name in arrays]
        rows = [{"name": t.name, "datatype": t.datatype, "shape": list(arrays[t.name].shape)} for t in declared]
        body = {"inputs": [row | {"data": arrays[str(row["name"])].ravel().tolist()} for row in rows]}
        route = "infer"
    file.write_bytes(orjson.dumps(body))
    err.print(f"wrote {file}: POST it to /v2/models/{name}/{route} as application/json", soft_wrap=True)
