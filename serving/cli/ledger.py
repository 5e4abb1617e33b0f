"""`leben wallet` and `leben ledger`: payers' wallets on the embedded ledger, and whether its books add up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import orjson
import typer
from eth_utils import is_checksum_address, to_checksum_address
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from channels.journal import Journal
from channels.ledger import SqlLedger
from channels.protocol import Signer
from channels.settlement import Epochs, backup, restore
from serving.cli.console import HERE, Data, err, fail
from serving.cluster import data_folder
from serving.config import Settings

if TYPE_CHECKING:
    from serving.cli.play_money import DemoLedger

wallet_app = typer.Typer(no_args_is_help=True, help="Payers' wallets on the embedded ledger.")
ledger_app = typer.Typer(no_args_is_help=True, help="The ledger: who has what, and whether it adds up.")


@wallet_app.command("new")
def wallet_new(
    file: Annotated[Path, typer.Argument(help="Where to keep the key; it is made if there is none.")],
) -> None:
    """Make a wallet's key and print its address."""
    print(Signer.from_file(file, Settings().key_password.get_secret_value()).address)


@wallet_app.command("fund", context_settings={"ignore_unknown_options": True})
def wallet_fund(
    address: Annotated[str, typer.Argument(help="The payer's address.")],
    amount: Annotated[str, typer.Argument(help="Atomic units; 1000000 is 1.00.")],
    data: Data = HERE,
) -> None:
    """Credit a payer on the embedded ledger, while the mesh runs or not; on a dev chain, with its token."""
    if not amount.isascii() or not amount.isdigit():
        fail("an amount is a whole number of atomic units above 0; 1000000 is 1.00")
    with _money(Settings(data=data)) as ledger:
        ledger.fund(checked_address(address), int(amount))
        print(f"{checked_address(address)} has {ledger.wallet(checked_address(address))}")


@wallet_app.command("show")
def wallet_show(address: Annotated[str, typer.Argument(help="The payer's address.")], data: Data = HERE) -> None:
    """Print what an address holds outside channels, in atomic units."""
    with _money(Settings(data=data), fresh=False) as ledger:
        print(ledger.wallet(checked_address(address)))


@ledger_app.command("verify")
def ledger_verify(data: Data = HERE) -> None:
    """Recompute every hash, balance and receipt; name the first bad entry if there is one."""
    settings = Settings(data=data)
    if settings.ledger == "evm":
        with _money(settings) as chain, opened_journal(settings) as journal:
            chain.verify()
            print(f"the contracts hold what they owe; the journal adds up: {journal.verify()} receipts")
        return
    with opened_ledger(settings, fresh=False) as ledger, closing(Journal.open(settings.sql_url())) as journal:
        count, head = ledger.verify()
        receipts = journal.verify()
    print(f"the ledger adds up: {count} transactions, the last is {head}; the journal adds up: {receipts} receipts")


@ledger_app.command("aside")
def ledger_aside(data: Data = HERE) -> None:
    """Print the journal entries that were set aside, one JSON object a line."""
    with opened_journal(Settings(data=data)) as journal:
        for entry in journal.dead_letters():
            row = {"bucket": entry.bucket, "id": entry.stream_id, "code": entry.code, "at_ms": entry.at_ms}
            print(orjson.dumps(row | {"fields": dict(entry.fields)}).decode())


@ledger_app.command("quarantine")
def ledger_quarantine(
    channel: Annotated[str, typer.Argument(help="A channel's id; without one, all that are quarantined.")] = "",
    clear: Annotated[bool, typer.Option("--clear", help="Let the channel be settled again.")] = False,
    data: Data = HERE,
) -> None:
    """Show channels that are kept out of settlement and why, or let one be settled again."""
    with opened_journal(Settings(data=data)) as journal:
        found = [copy for copy in Epochs(journal).quarantined() if channel in ("", copy.channel_id)]
        if channel and not found:
            fail("no such channel is quarantined: leben ledger quarantine lists them")
        for copy in found:
            print(f"{copy.channel_id} {copy.quarantine} owes {copy.charged - copy.settled}")
            if channel and clear:
                Epochs(journal).release(copy.channel_id)


@ledger_app.command("backup")
def ledger_backup(
    file: Annotated[Path, typer.Argument(help="Where to write it; must not exist.")], data: Data = HERE
) -> None:
    """Copy ledger and journal to a file, while the mesh runs or not; the copy is verified."""
    settings = Settings(data=data)
    with opened_ledger(settings, fresh=False), rows_bar("backing up") as progress:
        rows = backup(settings.sql_url(), file, progress)
    print(f"{file}: {rows} rows, verified")


@ledger_app.command("restore")
def ledger_restore(
    file: Annotated[Path, typer.Argument(help="A file that `leben ledger backup` wrote.")], data: Data = HERE
) -> None:
    """Fill an empty ledger, of either engine, from a backup; the mesh must be stopped."""
    settings = Settings(data=data)
    if (settings.home / "store").exists():
        fail(f"move {settings.home / 'store'} away: the store is made again from what is restored")
    lock = data_folder.Lock(settings.home)
    try:
        with rows_bar("restoring") as progress:
            rows = restore(file, settings.sql_url(), progress)
    finally:
        lock.release()
    print(f"{rows} rows restored and verified")


@contextmanager
def rows_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar that is told (done, total)."""
    with Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), console=err) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def opened_ledger(settings: Settings, fresh: bool = True) -> AbstractContextManager[SqlLedger]:
    """The mesh's ledger, closed at the end of the block; made if it is not there and `fresh` allows it."""
    if not fresh and not settings.ledger_url.get_secret_value() and not (settings.home / "ledger.db").exists():
        fail(f"there is no ledger in {settings.home}")
    settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    return closing(SqlLedger.open(settings.sql_url()))


def _money(settings: Settings, fresh: bool = True) -> AbstractContextManager[DemoLedger]:
    """The money of a mesh, on whichever ledger it is."""
    if settings.ledger == "sql":
        if not fresh and not settings.ledger_url.get_secret_value() and not (settings.home / "ledger.db").exists():
            fail(f"there is no ledger in {settings.home}")
        settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    from serving.cli import play_money  # web3 takes a second to import

    return closing(play_money.opened(settings))


def opened_journal(settings: Settings) -> AbstractContextManager[Journal]:
    """The mesh's journal, closed at the end of the block."""
    if not settings.ledger_url.get_secret_value() and not (settings.home / "ledger.db").exists():
        fail(f"there is no ledger in {settings.home}")
    return closing(Journal.open(settings.sql_url()))


def checked_address(raw: str) -> str:
    """A checksummed address, or a plain refusal: a mistyped one would lose the money."""
    try:
        address = str(to_checksum_address(raw))
    except ValueError:
        fail("that is not an address: 0x and 40 hex digits")
    if raw not in (raw.lower(), raw.upper()) and not is_checksum_address(raw):
        fail("the address's checksum is wrong: copy it again")
    return address
