"""Backs up and restores ledger and journal: every row of one moment, in an SQLite file whatever the engine is.

The file is itself a ledger that `verify` reads. It can be restored into either engine, which is also the way from
SQLite to PostgreSQL. A backup does not block writers.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from sqlalchemy import Connection, func, insert, select, update

from channels.errors import LedgerError
from channels.journal import Journal, channels, fence, journal_tables
from channels.ledger import SqlLedger, books, transactions
from channels.sql import Database

Progress = Callable[[int, int], None]
TABLES = [*books.sorted_tables, *journal_tables.sorted_tables]
PAGE = 1_000
TOKENS_AHEAD = 1_000_000
"""Added to the restored fencing token: the store may have seen treasuries that started after the backup."""


def backup(url: str, file: Path, progress: Progress = lambda done, total: None) -> int:
    """Writes every row to a new file while treasuries go on writing; returns the number of rows.

    Args:
        url: the ledger's SQLAlchemy URL.
        file: must not exist; appears whole or not at all.
        progress: called with (rows done, rows in all).

    Raises:
        LedgerError: the file exists.
        BrokenBooks, JournalError: the copy does not add up; no file is left.
    """
    if file.exists():
        raise LedgerError("backup_exists", f"{file} exists: name a file that does not")
    fresh = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        fresh.touch(mode=0o600)  # it holds payers' signatures
        with _both(url, f"sqlite:///{fresh}") as (old, new):
            rows = _copy(old, new, progress)
        _verify(f"sqlite:///{fresh}")
        with closing(sqlite3.connect(fresh)) as raw:
            raw.execute("PRAGMA journal_mode=DELETE")  # one file, that can be read from any medium
        fresh.replace(file)
        return rows
    finally:
        for left in fresh.parent.glob(f"{fresh.name}*"):
            left.unlink()


def restore(file: Path, url: str, progress: Progress = lambda done, total: None) -> int:
    """Copies a backup into an empty ledger; returns the number of rows.

    Raises:
        LedgerError: there is no such file, or the ledger is not empty.
        BrokenBooks, JournalError: the backup does not add up; nothing was written.
    """
    if not file.is_file():
        raise LedgerError("backup_missing", f"there is no file {file}")
    with tempfile.TemporaryDirectory() as folder:
        # A copy: a backup of an older version is brought up to date, and the file itself stays as it is.
        copy = shutil.copy(file, folder)
        _verify(f"sqlite:///{copy}")
        with _both(f"sqlite:///{copy}", url) as (old, new):
            if any(new.scalar(select(func.count()).select_from(table)) for table in (transactions, channels)):
                raise LedgerError("restore_not_empty", "the ledger is not empty: restore into a new database")
            new.execute(fence.delete())
            rows = _copy(old, new, progress)
            new.execute(update(fence).values(token=fence.c.token + TOKENS_AHEAD, expires_ms=0))
    _verify(url)
    return rows


@contextmanager
def _both(source: str, target: str) -> Iterator[tuple[Connection, Connection]]:
    with closing(Database(source)) as old, closing(Database(target)) as new, old.read() as reads, new.write() as writes:
        yield reads, writes


def _copy(old: Connection, new: Connection, progress: Progress) -> int:
    total = sum(int(old.scalar(select(func.count()).select_from(table)) or 0) for table in TABLES)
    done = 0
    for table in TABLES:
        chosen = select(table).order_by(*table.primary_key.columns).execution_options(yield_per=PAGE)
        for rows in old.execute(chosen).mappings().partitions():
            new.execute(insert(table), [dict(row) for row in rows])
            done += len(rows)
            progress(done, total)
    return done


def _verify(url: str) -> None:
    with closing(SqlLedger.open(url)) as ledger, closing(Journal.open(url)) as journal:
        ledger.verify()
        journal.verify()
