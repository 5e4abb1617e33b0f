"""Checks, copies and repairs the ledger and the journal: `leben ledger`."""

from __future__ import annotations

from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Annotated

import orjson
import typer

from channels.journal import Journal
from channels.ledger import SqlLedger
from channels.settlement import Epochs, backup, restore
from serving.cli.arguments import HERE, Data, read_settings
from serving.cli.console import fail, rows_bar
from serving.cli.wallet import has_ledger, open_money
from serving.cluster import data_folder
from serving.config import Settings


def ledger_verify(data: Data = HERE) -> None:
    """Recompute every hash, balance and receipt, and name the first bad entry."""
    settings = read_settings(data)
    if settings.ledger == "evm":
        with open_money(settings) as chain, open_journal(settings) as journal:
            chain.verify()
            print(f"the contracts hold what they owe; the journal adds up: {journal.verify()} receipts")
        return
    with open_ledger(settings) as ledger, open_journal(settings) as journal:
        count, head = ledger.verify()
        receipts = journal.verify()
    print(f"the ledger adds up: {count} transactions, the last is {head}; the journal adds up: {receipts} receipts")


def ledger_aside(data: Data = HERE) -> None:
    """Print the journal entries that were set aside, as JSON lines."""
    with open_journal(read_settings(data)) as journal:
        for entry in journal.dead_letters():
            row = {"bucket": entry.bucket, "id": entry.stream_id, "code": entry.code, "at_ms": entry.at_ms}
            print(orjson.dumps(row | {"fields": dict(entry.fields)}).decode())


def ledger_quarantine(
    channel: Annotated[str, typer.Argument(help="A channel's id; all quarantined channels by default.")] = "",
    clear: Annotated[bool, typer.Option("--clear", help="Let the channel be settled again.")] = False,
    data: Data = HERE,
) -> None:
    """Show the channels that are not settled, each with the reason, or let one be settled again."""
    with open_journal(read_settings(data)) as journal:
        rows = [row for row in Epochs(journal).quarantined() if channel in ("", row.channel_id)]
        if channel and not rows:
            fail("no such channel is quarantined: leben ledger quarantine lists them")
        for row in rows:
            print(f"{row.channel_id} {row.quarantine} owes {row.charged - row.settled}")
            if channel and clear:
                Epochs(journal).release(row.channel_id)


def ledger_backup(
    file: Annotated[Path, typer.Argument(help="File to write; it must not exist.")], data: Data = HERE
) -> None:
    """Copy ledger and journal to a file, and verify the copy. The mesh may run or not."""
    settings = read_settings(data)
    with open_ledger(settings), rows_bar("backing up") as progress:
        rows = backup(settings.sql_url(), file, progress)
    print(f"{file}: {rows} rows, verified")


def ledger_restore(
    file: Annotated[Path, typer.Argument(help="A file that `leben ledger backup` wrote.")], data: Data = HERE
) -> None:
    """Fill an empty ledger of either engine from a backup. Stop the mesh first."""
    settings = read_settings(data)
    if not file.is_file():
        fail(f"there is no file {file}")
    lock = data_folder.Lock(settings.home)  # first: the store of a mesh that runs must stay where it is
    try:
        if (settings.home / "store").exists():
            fail(
                f"no mesh runs on {settings.home}: move its folder store to another place and keep it, then restore "
                "again; the mesh makes a new store from the restored ledger"
            )
        with rows_bar("restoring") as progress:
            rows = restore(file, settings.sql_url(), progress)
    finally:
        lock.release()
    print(f"{rows} rows restored and verified")


def open_ledger(settings: Settings) -> AbstractContextManager[SqlLedger]:
    """The mesh's SQL ledger, closed at the end of the block."""
    _require_ledger(settings)
    return closing(SqlLedger.open(settings.sql_url(), create=False))


def open_journal(settings: Settings) -> AbstractContextManager[Journal]:
    """The mesh's journal, closed at the end of the block."""
    _require_ledger(settings)
    return closing(Journal.open(settings.sql_url(), create=False))


def _require_ledger(settings: Settings) -> None:
    if not has_ledger(settings):
        fail(f"there is no ledger in {settings.home}")
