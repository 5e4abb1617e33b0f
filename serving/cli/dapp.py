"""Lists and measures installed DApps: `leben dapp list`, `example` and `evaluate`."""

from __future__ import annotations

import base64
import time
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from dapps import DApp, IntakeRefused
from dapps.api import Scored, Skipped
from dapps.evaluation import measured
from dapps.packages import registry
from serving.cli import installed
from serving.cli.arguments import HERE, Data
from serving.cli.console import counting_bar, err, fail, out
from serving.errors import StartError


def dapp_list(data: Data = HERE) -> None:
    """List the installed DApps with version and price, those of the mesh on --data too."""
    table = Table("name", "version", "price", "at most", "what it does")
    for name in installed.names(data):
        try:
            with installed.opened(name, data) as dapp:
                table.add_row(*_row(name, dapp))
        except (StartError, registry.UnknownDApp) as error:
            table.add_row(name, "", "", "", escape(f"cannot be loaded: {error}"))
    out.print(table)


def _row(name: str, dapp: DApp) -> tuple[str, ...]:
    price = dapp.price
    unit_price = f"{price.per_gpu_second} a GPU second" if price.per_gpu_second else f"{price.per_item} an item"
    return name, dapp.version, unit_price, str(price.max_price), escape(dapp.description)


def dapp_example(
    name: Annotated[str, typer.Argument(help="The DApp's name.")],
    file: Annotated[Path, typer.Option("--out", help="File to write.")],
    data: Data = HERE,
) -> None:
    """Write a valid JSON body for a DApp's `diagnose` route, or for `infer` if it takes tensors alone."""
    with installed.opened(name, data) as dapp:
        try:
            body, route = {"file": base64.b64encode(dapp.sample().data).decode()}, "diagnose"
        except IntakeRefused:
            body, route = _tensors(dapp), "infer"
    file.write_bytes(orjson.dumps(body))
    err.print(f"wrote {file}: POST it to /v2/models/{name}/{route} as application/json", soft_wrap=True)


def _tensors(dapp: DApp) -> dict[str, Any]:
    arrays = dapp.example()
    declared = [tensor for tensor in dapp.inputs if tensor.name in arrays]
    rows = [{"name": t.name, "datatype": t.datatype, "shape": list(arrays[t.name].shape)} for t in declared]
    return {"inputs": [row | {"data": arrays[str(row["name"])].ravel().tolist()} for row in rows]}


def dapp_evaluate(
    name: Annotated[str, typer.Argument(help="The DApp's name.")],
    data: Annotated[Path, typer.Option(help="Folder of labelled data, in the layout of docs/models.md.")],
    held_out: Annotated[
        bool, typer.Option("--held-out", help="Measure the held-out groups of the card alone.")
    ] = False,
    file: Annotated[Path | None, typer.Option("--json", help="File to write every number to.")] = None,
    plots: Annotated[
        Path | None, typer.Option(help="Write ROC and reliability curves into this folder, as SVG.")
    ] = None,
    threads: Annotated[int, typer.Option(help="torch threads; 0: torch decides.")] = 1,
    mesh: Annotated[
        Path, typer.Option(help="Data folder of the mesh that it is installed into.", envvar="LEBEN_DATA")
    ] = HERE,
) -> None:
    """Measure a DApp's models on a folder of labelled data: every number of the card.

    Every row counts as a test row. On the training folder, use --held-out: it reproduces the card.
    """
    if not data.is_dir():
        fail(f"{data} is not a folder")
    started_s = time.monotonic()
    dapp = installed.trusted(name, mesh)
    if type(dapp).evaluate is DApp.evaluate:
        fail(f"{name} has no evaluation: its class must implement evaluate()")
    scored, skipped = _answers(dapp, data, held_out, threads)
    for row in skipped:
        err.print(f"skipped {row.model}: {row.reason}", soft_wrap=True, highlight=False)
    if scored:
        err.print(f"measuring {len(scored)} models, intervals by 1000 draws of patients …")
    numbers = {row.model: measured(row) for row in scored}
    if scored:
        out.print(_table(name, numbers))
        err.print(f"{time.monotonic() - started_s:.0f} s")
    if file is not None:
        result = {"dapp": name, "version": dapp.version, "held_out": held_out, "models": numbers}
        result["skipped"] = {row.model: row.reason for row in skipped}
        file.write_bytes(orjson.dumps(result, option=orjson.OPT_INDENT_2) + b"\n")
    if not scored:
        fail("nothing was measured: see what was skipped, and check the folder's layout in docs/models.md")
    if plots is not None:
        _plot(plots, scored, numbers)


def _answers(dapp: DApp, data: Path, held_out: bool, threads: int) -> tuple[list[Scored], list[Skipped]]:
    import torch

    if threads:
        torch.set_num_threads(threads)
    dapp.load("cpu")
    with counting_bar(transient=True) as progress:
        bar = progress.add_task("loading", total=None)

        def show(step: str, done: int, total: int) -> None:
            progress.update(bar, description=step, completed=done, total=total)

        try:
            rows = list(dapp.evaluate(data, held_out, show))
        except (KeyError, ValueError) as error:
            fail(f"the folder's tables cannot be read ({type(error).__name__}: {error}): see docs/models.md")
    return [row for row in rows if isinstance(row, Scored)], [row for row in rows if isinstance(row, Skipped)]


def _table(name: str, numbers: dict[str, dict[str, Any]]) -> Table:
    """One row a model, within 80 columns; the other intervals are in the JSON."""
    table = Table(title=f"{name}: 95 % intervals over patients", box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("model", width=14)
    for head in ("n", "preva-\nlence", "AUC", "low cut-off\nsens./spec.", "high cut-off\nsens./spec.", "ECE"):
        table.add_column(head, justify="right", no_wrap=True)
    for model, row in numbers.items():
        value, low, high = map(_number, row["auc"])
        points = [
            "/".join(_number(row[f"{what}_at_{point}"][0]) for what in ("sensitivity", "specificity"))
            for point in ("low", "high")
        ]
        auc = f"{value}\n[dim]{low}-{high}[/]" if row["auc"][0] is not None else "one class"
        table.add_row(
            model.replace("_", " "), str(row["n"]), _number(row["prevalence"]), auc, *points, _number(row["ece"])
        )
    return table


def _plot(folder: Path, scored: list[Scored], numbers: dict[str, dict[str, Any]]) -> None:
    from dapps.evaluation.plots import curves

    folder.mkdir(parents=True, exist_ok=True)
    for row in scored:
        (folder / f"{row.model}.svg").write_bytes(curves(row, numbers[row.model]))
    err.print(f"wrote {len(scored)} plots into {folder}", soft_wrap=True)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
