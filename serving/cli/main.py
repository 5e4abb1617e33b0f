"""The command `leben`: runs a mesh, shows it, funds payers, and lets everyone look at their money.

Every command finds the mesh by its data folder. What moves money asks the treasury or the ledger; nothing here does
sums of its own.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from pydantic import SecretStr, ValidationError
from rich.markup import escape
from rich.table import Table

from channels.errors import ChannelError
from dapps.packages import registry
from serving.cli.account import earnings_app, receipt_app, statement, withdraw_app
from serving.cli.audit import audit_app
from serving.cli.catalogue import dapps
from serving.cli.chain import chain_app
from serving.cli.console import HERE, Data, Port, Stop, Stopped, err, fail, out, stopping
from serving.cli.guideline import guideline_app
from serving.cli.install import dapp_app
from serving.cli.keys import keys_app
from serving.cli.ledger import ledger_app, rows_bar, wallet_app
from serving.cli.logs import logs
from serving.cli.node import node_rows, run_node
from serving.cluster import data_folder, ray_head
from serving.config import Settings
from serving.errors import StartError


class Ledger(StrEnum):
    """Where money is kept."""

    sql = "sql"
    evm = "evm"


app = typer.Typer(
    no_args_is_help=True, help="Leben Mesh: clinical models, paid per call.", pretty_exceptions_enable=False
)
app.add_typer(wallet_app, name="wallet")
app.add_typer(dapp_app, name="dapp")
app.add_typer(guideline_app, name="guideline")
app.add_typer(ledger_app, name="ledger")
app.add_typer(keys_app, name="keys")
app.add_typer(audit_app, name="audit")
app.add_typer(receipt_app, name="receipt")
app.add_typer(earnings_app, name="earnings")
app.add_typer(withdraw_app, name="withdraw")
app.command()(statement)
app.command()(dapps)
app.command()(logs)
app.add_typer(chain_app, name="chain")


@app.callback()
def _environment(context: typer.Context) -> None:
    unknown = Settings.unknown()
    if unknown and context.invoked_subcommand not in ("up", "demo"):  # these refuse it
        err.print(f"[yellow]leben:[/] no such setting: {', '.join(unknown)}", highlight=False, soft_wrap=True)


Kept = Annotated[
    Ledger | None,
    typer.Option("--ledger", help="Where money is kept: sql, or evm, a chain.", envvar="LEBEN_LEDGER"),
]


@app.command()
def up(
    data: Data = HERE,
    port: Port = 8700,
    grpc_port: Annotated[
        int, typer.Option(help="Answer gRPC on this port too; 0: no gRPC.", envvar="LEBEN_GRPC_PORT")
    ] = 0,
    ledger: Kept = None,
    listen: Annotated[
        str, typer.Option(help="This machine's address, for others to join and call.", envvar="LEBEN_LISTEN")
    ] = "127.0.0.1",
    join: Annotated[
        str, typer.Option(metavar="HOST[:PORT]", help="Make this machine a node of the mesh that runs there.")
    ] = "",
) -> None:
    """Run a mesh until Ctrl-C. Prints `ready URL [URL]` once every DApp has answered its own example."""
    stop = stopping()
    settings = Settings(data=data, port=port, grpc_port=grpc_port, listen=listen, **_on(ledger))  # type: ignore[arg-type]
    if join:
        run_node(settings, join, stop)
        return
    from serving.mesh import Mesh

    with err.status("starting") as status:
        mesh = Mesh(settings, lambda step: status.update(f"starting {step} …"), stop.check)
        try:
            mesh.start()
            print(settings.ready_line, flush=True)
            for line in mesh.unchecked:
                err.print(f"the store was not checked for {line}", soft_wrap=True, markup=False)
            asks = f"(it asks for what is in {settings.ray_token})"
            err.print(f"dashboard {mesh.dashboard} {asks}", soft_wrap=True, markup=False)
            err.print(f"data {settings.home}   Ctrl-C stops", soft_wrap=True, markup=False)
            if settings.clustered:
                err.print("open on every interface: let none but this mesh's machines in, see docs/cluster.md")
            status.stop()
            wait(stop, mesh)
        finally:
            status.stop()
            end(mesh)


@app.command()
def demo(
    data: Data = Path(".leben/demo"),
    port: Port = 8700,
    once: Annotated[
        bool, typer.Option("--once", help="Exit after the demo instead of leaving the mesh running.")
    ] = False,
    json: Annotated[Path | None, typer.Option(help="Write what happened to this file.")] = None,
    ledger: Kept = None,
) -> None:
    """Start a mesh, pay for calls on real inputs, settle, and show who was paid."""
    stop = stopping()
    from serving.cli.demo import Demo
    from serving.mesh import Mesh

    settings, chain = Settings(data=data, port=port, **_on(ledger)), None
    if settings.ledger == "evm" and not settings.rpc_url.get_secret_value():
        from serving.cli import dev_chain

        out.print("[dim]starting[/] a chain of its own (anvil)")
        chain = dev_chain.started(settings)
        settings = settings.model_copy(update={"rpc_url": SecretStr(chain.url)})
    mesh = Mesh(settings, lambda step: out.print(f"[dim]starting[/] {step}"), stop.check)
    try:
        mesh.start()
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


@app.command()
def status(data: Data = HERE) -> None:
    """Show what runs on a data folder: a mesh, its DApps and what its ledger holds, or a node of another mesh."""
    settings = Settings(data=data)
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
        for name, value in _totals(settings).items():
            table.add_row(name, value)
    out.print(table)


@app.command()
def settle(
    data: Data = HERE, json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False
) -> None:
    """Claim everything that is charged by now, and pay the owners."""
    facts = data_folder.running(Settings(data=data))
    if facts is None:
        fail(f"no mesh runs on {data}: start it with leben up --data {data}")
    ray_head.connect(Settings(data=data), facts["ray"])
    from serving.treasury import settle as settle_now

    with rows_bar("channels settled") as progress:
        settled = settle_now(progress)
    if json:
        print(orjson.dumps(settled).decode())
    else:
        from serving.cli.demo import payouts_table

        payouts_table(out, settled)


def _on(ledger: Ledger | None) -> dict[str, Any]:
    return {} if ledger is None else {"ledger": ledger.value}


def main() -> None:
    """Runs a command; a refusal is one plain line, not a traceback."""
    try:
        app()
    except Stopped as stopped:
        err.print(f"leben: {stopped}", highlight=False)
        raise SystemExit(stopped.status) from None
    except ValidationError as error:
        wrong = error.errors()[0]
        fail(f"LEBEN_{str(wrong['loc'][0]).upper()}: {wrong['msg'][0].lower()}{wrong['msg'][1:]}; see docs/operate.md")
    except (ChannelError, StartError, data_folder.FolderInUse, registry.UnknownDApp) as error:
        fail(str(error))
    except OSError as error:
        fail(f"{error.filename or 'the system'}: {error.strerror or error}")


def end(mesh: Any) -> None:
    """Stops a mesh; it takes some seconds, and whoever asked for it has been told that it began."""
    mesh.stop()
    err.print(f"stopped; everything is kept in {mesh.settings.home}", soft_wrap=True, markup=False)


def wait(stop: Stop, mesh: Any) -> None:
    """Blocks until `stop` is set, in steps short enough for a signal to be seen, and tends the mesh meanwhile."""
    while not stop.wait(0.5):
        if mesh.poll():
            err.print("the store had ended and has been started again; see the log in its folder")


def _totals(settings: Settings) -> dict[str, str]:
    from contextlib import closing

    from channels.journal import Journal
    from channels.settlement import Epochs

    with closing(Journal.open(settings.sql_url())) as journal:
        channels = list(journal.channels())
        waiting, stopped = Epochs(journal).unsettled(), Epochs(journal).quarantined()
        aside, holder = len(journal.dead_letters()), journal.leased()
    charged = sum(channel.charged for channel in channels)
    receipts = sum(channel.seq for channel in channels)
    told = {
        "channels": str(len(channels)),
        "charged": f"{charged} in {receipts} receipts",
        "unsettled": f"{waiting.amount} in {waiting.channels} channels",
        "treasury": holder or "none at work",
    }
    if stopped:
        told["[red]quarantined[/]"] = ", ".join(f"{copy.channel_id[:10]}… {copy.quarantine}" for copy in stopped)
    if aside:
        told["[red]set aside[/]"] = f"{aside} journal entries that cannot be true: leben ledger aside"
    return told
