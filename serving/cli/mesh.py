"""Runs a mesh: `leben up`, `demo`, `status` and `settle`."""

from __future__ import annotations

import sys
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from pydantic import SecretStr
from rich.markup import escape
from rich.table import Table

from channels.errors import ChannelError
from serving.cli.arguments import HERE, Data, Json, Port, read_settings
from serving.cli.console import Stop, err, fail, out, rows_bar, stopping
from serving.cli.node import node_rows, run_node
from serving.cluster import data_folder, ray_environment
from serving.cluster.surroundings import check_path, leave_working_directory
from serving.config import Settings


class Ledger(StrEnum):
    """Where the money is."""

    sql = "sql"
    evm = "evm"


LedgerOption = Annotated[
    Ledger | None,
    typer.Option("--ledger", help="Where the money is: sql, or evm for a chain.", envvar="LEBEN_LEDGER"),
]


def up(
    data: Data = HERE,
    port: Port = 8700,
    grpc_port: Annotated[int, typer.Option(help="gRPC port; 0: no gRPC.", envvar="LEBEN_GRPC_PORT")] = 0,
    ledger: LedgerOption = None,
    listen: Annotated[
        str, typer.Option(help="This machine's address, for other machines to join and call.", envvar="LEBEN_LISTEN")
    ] = "127.0.0.1",
    join: Annotated[str, typer.Option(metavar="HOST[:PORT]", help="Join the mesh that runs there, as a node.")] = "",
) -> None:
    """Run a mesh until Ctrl-C.

    Prints `ready URL [URL]` once every DApp has answered its own example.
    """
    stop = stopping()
    check_path(data)
    home = data.expanduser().resolve()
    settings = Settings(data=home, port=port, grpc_port=grpc_port, listen=listen, **_on(ledger))  # type: ignore[arg-type]
    leave_working_directory()
    if join:
        run_node(settings, join, stop)
        return
    with err.status("starting") as status:
        ray_environment.prepare(settings)
        from serving.mesh.mesh import Mesh

        mesh = Mesh(settings)
        try:
            mesh.start(progress=lambda step: status.update(f"starting {step} …"), check=stop.check)
            print(settings.ready_line, flush=True)
            for line in mesh.unchecked:
                err.print(f"the store was not checked for {line}", soft_wrap=True, markup=False)
            token = f"(its token is in {settings.ray_token})"
            err.print(f"dashboard {mesh.dashboard} {token}", soft_wrap=True, markup=False)
            err.print(f"data {settings.home}   Ctrl-C stops", soft_wrap=True, markup=False)
            if settings.clustered:
                err.print("open on every interface: admit only this mesh's machines, see docs/cluster.md")
            status.stop()
            wait(stop, mesh)
        finally:
            status.stop()
            end(mesh)


def demo(
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder of keys, ledger and store; by default .leben/demo, on a chain .leben/demo-evm.",
            envvar="LEBEN_DATA",
        ),
    ] = None,
    port: Port = 8700,
    once: Annotated[bool, typer.Option("--once", help="Exit after the demo.")] = False,
    json: Annotated[Path | None, typer.Option(help="File to write the results to.")] = None,
    ledger: LedgerOption = None,
) -> None:
    """Start a mesh, pay for calls on real inputs, settle, and show who was paid."""
    stop = stopping()
    # A folder's channels are on one ledger: each has a folder of its own.
    chosen = Settings(port=port, **_on(ledger)).ledger
    data = data or Path(".leben/demo" if chosen == "sql" else f".leben/demo-{chosen}")
    check_path(data)
    settings, chain = Settings(data=data.expanduser().resolve(), port=port, **_on(ledger)), None
    if settings.ledger == "evm" and not settings.rpc_url.get_secret_value():
        from serving.cli import dev_chain

        out.print("[dim]starting[/] a dev chain (anvil)")
        chain = dev_chain.started(settings)
        settings = settings.model_copy(update={"rpc_url": SecretStr(chain.url)})
    ray_environment.prepare(settings)
    from serving.cli.demo import Demo
    from serving.mesh.mesh import Mesh

    mesh = Mesh(settings)
    try:
        mesh.start(progress=lambda step: out.print(f"[dim]starting[/] {step}"), check=stop.check)
        story = Demo(mesh, out).run()
        if json is not None:
            json.write_bytes(orjson.dumps(story, option=orjson.OPT_INDENT_2))
        if not once:
            out.print(f"\nThe mesh is running: {settings.url}   dashboard {mesh.dashboard}", soft_wrap=True)
            out.print(f"Look at it from another terminal: leben status --data {data}\nCtrl-C stops it.", soft_wrap=True)
            wait(stop, mesh)
    finally:
        end(mesh)
        if chain is not None:
            chain.stop()


def status(data: Data = HERE) -> None:
    """Show what runs on a data folder: a mesh with its DApps and money, or a node of another mesh."""
    settings = read_settings(data)
    facts = data_folder.running(settings)
    table = Table(show_header=False, box=None)
    node = [] if facts else node_rows(settings)
    for name, value in node:
        table.add_row(name, escape(value))
    if facts is None and not node:
        table.add_row("mesh", escape(f"not running on {settings.home}; start it with: leben up --data {data}"))
    elif facts:
        table.add_row("mesh", f"{facts['url']}   (process {facts['pid']})")
        table.add_row("dashboard", facts["dashboard"])
        table.add_row("nodes", escape("\n".join(facts["nodes"])))
        table.add_row("DApps", ", ".join(facts["dapps"]))
        for name, why in sorted(facts["failed"].items()):
            table.add_row("[red]not as asked[/]", escape(why if why.startswith(name) else f"{name}: {why}"))
    if (settings.home / "ledger.db").exists() or settings.ledger_url.get_secret_value():
        try:
            rows = _totals(settings)
        except ChannelError:  # what runs is shown whatever became of its ledger
            out.print(table)
            raise
        for name, value in rows.items():
            table.add_row(name, value)
    out.print(table)


def settle(data: Data = HERE, json: Json = False) -> None:
    """Claim all charges now, and pay the owners."""
    settings = read_settings(data)
    facts = data_folder.running(settings)
    if facts is None:
        fail(f"no mesh runs on {data}: start it with leben up --data {data}")
    ray_environment.prepare(settings)
    from serving.cluster import ray_head
    from serving.treasury import settle as settle_now

    ray_head.connect(facts["ray"])

    with rows_bar("channels settled") as progress:
        settled = settle_now(progress)
    if json:
        print(orjson.dumps(settled).decode())
    else:
        from serving.cli.demo import payouts_table

        payouts_table(out, settled)


def _on(ledger: Ledger | None) -> dict[str, Any]:
    return {} if ledger is None else {"ledger": ledger.value}


def end(mesh: Any) -> None:
    """Stops a mesh, which takes some seconds; the signal handler has already printed that it stops.

    A start that was refused has stopped nothing that anybody saw, and prints its refusal alone.
    """
    refused = isinstance(sys.exception(), Exception)
    mesh.stop()
    if refused:
        return
    with suppress(OSError):  # the terminal may be gone
        err.print(f"stopped; everything is kept in {mesh.settings.home}", soft_wrap=True, markup=False)


def wait(stop: Stop, mesh: Any) -> None:
    """Blocks until `stop` is set, in steps short enough to handle a signal, and maintains the mesh meanwhile."""
    while not stop.wait(0.5):
        if mesh.poll():
            err.print("the store had ended and has been started again; see the log in its folder")


def _totals(settings: Settings) -> dict[str, str]:
    from contextlib import closing

    from channels.journal import Journal
    from channels.settlement import Epochs

    with closing(Journal.open(settings.sql_url(), create=False)) as journal:
        channels = list(journal.channels())
        waiting, stopped = Epochs(journal).unsettled(), Epochs(journal).quarantined()
        aside, holder = len(journal.dead_letters()), journal.leased()
    charged = sum(channel.charged for channel in channels)
    receipts = sum(channel.seq for channel in channels)
    rows = {
        "channels": str(len(channels)),
        "charged": f"{charged} in {receipts} receipts",
        "unsettled": f"{waiting.amount} in {waiting.channels} channels",
        "treasury": holder or "none at work",
    }
    if stopped:
        rows["[red]quarantined[/]"] = ", ".join(f"{row.channel_id[:10]}… {row.quarantine}" for row in stopped)
    if aside:
        rows["[red]set aside[/]"] = f"{aside} journal entries that cannot be true: leben ledger aside"
    return rows
