"""The command `leben`: runs a mesh, shows it, funds payers, and lets everyone look at their money.

Every command finds the mesh by its data folder. What moves money asks the treasury or the ledger; nothing here does
sums of its own. Next: `app.py`, which `leben up` starts.
"""

from __future__ import annotations

import base64
import logging
import os
import signal
import threading
from pathlib import Path
from typing import Annotated, Any, NoReturn

import orjson
import typer
from eth_utils import is_checksum_address, to_checksum_address
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from channels.errors import ChannelError
from channels.ledger_sql import SqlLedger
from dapps import IntakeRefused, registry
from serving import embedded
from serving.settings import Settings

app = typer.Typer(
    no_args_is_help=True, help="Leben Mesh: clinical models, paid per call.", pretty_exceptions_enable=False
)
wallet_app = typer.Typer(no_args_is_help=True, help="Payers' wallets on the embedded ledger.")
dapp_app = typer.Typer(no_args_is_help=True, help="The DApps that are installed.")
ledger_app = typer.Typer(no_args_is_help=True, help="The ledger: who has what, and whether it adds up.")
app.add_typer(wallet_app, name="wallet")
app.add_typer(dapp_app, name="dapp")
app.add_typer(ledger_app, name="ledger")
out, err = Console(), Console(stderr=True)

Data = Annotated[Path, typer.Option(help="Folder of keys, ledger and store.", envvar="LEBEN_DATA")]
Port = Annotated[int, typer.Option(help="HTTP port; the 99 above it are used too.", envvar="LEBEN_PORT")]
HERE = Path(".leben")


@app.command()
def up(data: Data = HERE, port: Port = 8700) -> None:
    """Run a mesh until Ctrl-C. Prints `ready URL` once every DApp has answered its own example."""
    from serving.app import Mesh

    settings = Settings(data=data, port=port)
    stop = stopping()
    with err.status("starting") as status:
        mesh = Mesh(settings, lambda step: status.update(f"starting {step} …"))
        try:
            mesh.start()
            print(f"ready {settings.url}", flush=True)
            err.print(f"dashboard {mesh.dashboard}   data {settings.home}   Ctrl-C stops", soft_wrap=True)
            status.stop()
            wait(stop)
        finally:
            end(mesh)


@app.command()
def demo(
    data: Data = Path(".leben/demo"),
    port: Port = 8700,
    once: Annotated[
        bool, typer.Option("--once", help="Exit after the demo instead of leaving the mesh running.")
    ] = False,
    json: Annotated[Path | None, typer.Option(help="Write what happened to this file.")] = None,
) -> None:
    """Start a mesh, pay for calls on real inputs, settle, and show who was paid."""
    from serving.app import Mesh
    from serving.demo import Demo

    settings = Settings(data=data, port=port)
    stop = stopping()
    mesh = Mesh(settings, lambda step: out.print(f"[dim]starting[/] {step}"))
    try:
        mesh.start()
        story = Demo(mesh, out).run()
        if json is not None:
            json.write_bytes(orjson.dumps(story, option=orjson.OPT_INDENT_2))
        if not once:
            out.print(f"\nThe mesh is running: {settings.url}   dashboard {mesh.dashboard}", soft_wrap=True)
            out.print(f"Look at it from another terminal: leben status --data {data}\nCtrl-C stops it.", soft_wrap=True)
            wait(stop)
    finally:
        end(mesh)


@app.command()
def status(data: Data = HERE) -> None:
    """Show whether a mesh runs on a data folder, its DApps, and what its ledger holds."""
    settings = Settings(data=data)
    facts = embedded.running(settings)
    table = Table(show_header=False, box=None)
    if facts is None:
        table.add_row("mesh", f"not running on {settings.home}; start it with: leben up --data {data}")
    else:
        table.add_row("mesh", f"{facts['url']}   (process {facts['pid']})")
        table.add_row("dashboard", facts["dashboard"])
        table.add_row("DApps", ", ".join(facts["dapps"]))
    if (settings.home / "ledger.db").exists() or settings.ledger_url.get_secret_value():
        for name, value in _totals(settings).items():
            table.add_row(name, value)
    out.print(table)


@app.command()
def settle(
    data: Data = HERE, json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False
) -> None:
    """Claim everything that is charged by now, and pay the owners."""
    facts = embedded.running(Settings(data=data))
    if facts is None:
        fail(f"no mesh runs on {data}: start it with leben up --data {data}")
    _connect(Settings(data=data), facts)
    from serving.app import settle as settle_now

    settled = settle_now()
    if json:
        print(orjson.dumps(settled).decode())
    else:
        from serving.demo import payouts_table

        payouts_table(out, settled)


@wallet_app.command("new")
def wallet_new(
    file: Annotated[Path, typer.Argument(help="Where to keep the key; it is made if there is none.")],
) -> None:
    """Make a wallet's key and print its address."""
    from channels.client import Wallet

    print(Wallet.from_file(file).address)


@wallet_app.command("fund", context_settings={"ignore_unknown_options": True})
def wallet_fund(
    address: Annotated[str, typer.Argument(help="The payer's address.")],
    amount: Annotated[str, typer.Argument(help="Atomic units; 1000000 is 1.00.")],
    data: Data = HERE,
) -> None:
    """Credit a payer on the embedded ledger, while the mesh runs or not."""
    with opened_ledger(Settings(data=data)) as ledger:
        if not amount.isascii() or not amount.isdigit():
            fail("an amount is a whole number of atomic units above 0; 1000000 is 1.00")
        ledger.fund(checked_address(address), int(amount))
        print(f"{checked_address(address)} has {ledger.wallet(checked_address(address))}")


@wallet_app.command("show")
def wallet_show(address: Annotated[str, typer.Argument(help="The payer's address.")], data: Data = HERE) -> None:
    """Print what an address holds outside channels, in atomic units."""
    with opened_ledger(Settings(data=data), fresh=False) as ledger:
        print(ledger.wallet(checked_address(address)))


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


@ledger_app.command("verify")
def ledger_verify(data: Data = HERE) -> None:
    """Recompute the ledger's hash chain and balances; name the first bad entry if there is one."""
    with opened_ledger(Settings(data=data), fresh=False) as ledger:
        count, head = ledger.verify()
    print(f"the ledger adds up: {count} transactions, the last is {head}")


def main() -> None:
    """Runs a command; a refusal is one plain line, not a traceback."""
    from serving.app import StartError

    unknown = [
        name for name in os.environ if name.startswith("LEBEN_") and name[6:].lower() not in Settings.model_fields
    ]
    if unknown:
        err.print(f"[yellow]leben:[/] no such setting: {', '.join(sorted(unknown))}", highlight=False, soft_wrap=True)
    try:
        app()
    except ValidationError as error:
        wrong = error.errors()[0]
        fail(f"LEBEN_{str(wrong['loc'][0]).upper()}: {wrong['msg'][0].lower()}{wrong['msg'][1:]}; see docs/operate.md")
    except (ChannelError, StartError, embedded.FolderInUse, registry.UnknownDApp) as error:
        fail(str(error))
    except OSError as error:
        fail(f"{error.filename or 'the system'}: {error.strerror or error}")


def fail(message: str) -> NoReturn:
    """Prints what went wrong and what to do, and exits with 1."""
    err.print(f"[red]leben:[/] {message}", highlight=False, soft_wrap=True)
    raise SystemExit(1)


def end(mesh: Any) -> None:
    """Stops a mesh, and says so: it takes some seconds."""
    err.print("stopping …")
    mesh.stop()
    err.print(f"stopped; everything is kept in {mesh.settings.home}", soft_wrap=True)


_STOP = threading.Event()


def stopping() -> threading.Event:
    """An event that Ctrl-C and SIGTERM set; a second one interrupts at once."""

    def on_signal(number: int, frame: object) -> None:
        if _STOP.is_set():
            raise KeyboardInterrupt
        _STOP.set()

    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGTERM, on_signal)
    return _STOP


def wait(stop: threading.Event) -> None:
    """Blocks until `stop` is set, in steps short enough for a signal to be seen."""
    while not stop.wait(0.5):
        pass


def opened_ledger(settings: Settings, fresh: bool = True) -> Any:
    """The mesh's ledger, closed at the end of the block; made if it is not there and `fresh` allows it."""
    from contextlib import closing

    if not fresh and not settings.ledger_url.get_secret_value() and not (settings.home / "ledger.db").exists():
        fail(f"there is no ledger in {settings.home}")
    settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    return closing(SqlLedger.open(settings.sql_url()))


def checked_address(raw: str) -> str:
    """A checksummed address, or a plain refusal: a mistyped one would lose the money."""
    try:
        address = str(to_checksum_address(raw))
    except ValueError:
        fail("that is not an address: 0x and 40 hex digits")
    if raw not in (raw.lower(), raw.upper()) and not is_checksum_address(raw):
        fail("the address's checksum is wrong: copy it again")
    return address


def _totals(settings: Settings) -> dict[str, str]:
    from contextlib import closing

    from channels.epochs import Epochs
    from channels.journal import Journal

    with closing(Journal.open(settings.sql_url())) as journal:
        channels = list(journal.channels())
        unsettled = Epochs(journal).unsettled().amount
    charged = sum(channel.charged for channel in channels)
    receipts = sum(channel.seq for channel in channels)
    return {"channels": str(len(channels)), "charged": f"{charged} in {receipts} receipts", "unsettled": str(unsettled)}


def _connect(settings: Settings, facts: dict[str, Any]) -> None:
    os.environ.update(settings.engine_environment())
    import ray

    for name in ("ray", "ray.serve"):
        logging.getLogger(name).setLevel(logging.WARNING)
    ray.init(address=facts["ray"], namespace="leben", log_to_driver=False, logging_level=logging.ERROR)
