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
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, func, insert, select, update

from channels.errors import LedgerError
from channels.journal import Journal, channels, fence, journal_tables
from channels.ledger import SqlLedger, books, transactions
from channels.sql import Database, DatabaseUnavailable, source_url, sqlite_url

Progress = Callable[[int, int], None]
TABLES = [*books.sorted_tables, *journal_tables.sorted_tables]
PAGE = 1_000
MAGIC = b"SQLite format 3\0"
"""The first bytes of every SQLite file."""
TOKENS_AHEAD = 1_000_000
"""Added to the restored fencing token: the store may have seen treasuries that started after the backup."""


def backup(url: str, file: Path, progress: Progress = lambda done, total: None) -> int:
    """Writes every row to a new file while treasuries go on writing; returns the number of rows.

    Args:
        url: the ledger's SQLAlchemy URL; it is only read.
        file: must not exist; appears whole or not at all, and is read again under this path.
        progress: called with (rows done, rows in all).

    Raises:
        LedgerError: the file exists, or what is read under its path is not what was written.
        BrokenBooks, JournalError: the copy does not add up; no file is left.
        DatabaseUnavailable: there is no ledger, or it cannot be read.
        OSError: the file cannot be written.
    """
    if os.path.lexists(file):
        raise LedgerError("backup_exists", f"{file} exists: name a file that does not")
    # Beside the file, so that it takes its place in one step; entered by this user alone.
    with tempfile.TemporaryDirectory(dir=file.absolute().parent, prefix=".leben-backup-") as folder:
        fresh = Path(folder) / "backup.db"
        with _both(url, sqlite_url(fresh)) as (old, new):
            expected = _contents(old)
            _copy(old, new, expected, progress)
        _verify(source_url(fresh))
        with closing(sqlite3.connect(fresh)) as raw:
            raw.execute("PRAGMA journal_mode=DELETE")  # one file, that can be read from any medium
        fresh.replace(file)
    _compare(source_url(file), expected)
    return expected.rows


def restore(file: Path, url: str, progress: Progress = lambda done, total: None) -> int:
    """Copies a backup into an empty ledger; returns the number of rows.

    Args:
        file: a backup; it stays as it is.
        url: the ledger's SQLAlchemy URL, made if it does not exist, and read again after the copy.
        progress: called with (rows done, rows in all).

    Raises:
        LedgerError: the file is no backup, the ledger is not empty, or it does not hold what was copied.
        BrokenBooks, JournalError: the backup does not add up; nothing was written.
        DatabaseUnavailable: the ledger cannot be written.
    """
    _check_file(file)
    with tempfile.TemporaryDirectory() as folder:
        # A copy: a backup of an older version is brought up to date, and the file itself stays as it is.
        copy = Path(folder) / "backup.db"
        shutil.copyfile(file, copy)
        try:
            Database(sqlite_url(copy), create=False).close()
            _verify(source_url(copy))
        except DatabaseUnavailable as error:
            raise _no_backup(file, error.what.partition(":")[0]) from error
        with _both(source_url(copy), url) as (old, new):
            if any(new.scalar(select(func.count()).select_from(table)) for table in (transactions, channels)):
                raise LedgerError("restore_not_empty", "the ledger is not empty: restore into a new database")
            new.execute(fence.delete())
            expected = _contents(old)
            _copy(old, new, expected, progress)
            new.execute(update(fence).values(token=fence.c.token + TOKENS_AHEAD, expires_ms=0))
    _compare(url, expected)
    _verify(url)
    return expected.rows


@dataclass(frozen=True, slots=True)
class _Contents:
    """What a copy must hold: the hash of the genesis, which names the mesh, the last hash, and the rows by table."""

    genesis: str | None
    head: str | None
    counts: dict[str, int]

    @property
    def rows(self) -> int:
        return sum(self.counts.values())


def _contents(conn: Connection) -> _Contents:
    number = transactions.c.id
    genesis, head = (
        conn.scalar(select(transactions.c.hash).order_by(order).limit(1)) for order in (number, number.desc())
    )
    counts = {table.name: int(conn.scalar(select(func.count()).select_from(table)) or 0) for table in TABLES}
    return _Contents(genesis, head, counts)


def _compare(url: str, expected: _Contents) -> None:
    with closing(Database(url, read_only=True)) as database, database.read() as conn:
        if _contents(conn) != expected:
            raise LedgerError("backup_differs", "the copy does not hold what was read: do not use it, and repeat this")


def _check_file(file: Path) -> None:
    if not file.is_file():
        raise LedgerError("backup_missing", f"there is no file {file}")
    with file.open("rb") as raw:
        begins = raw.read(len(MAGIC))
    if not begins:
        raise _no_backup(file, "it is empty")
    if begins != MAGIC:
        raise _no_backup(file, "it is not an SQLite file")
    log = file.with_name(f"{file.name}-wal")
    if log.exists() and log.stat().st_size:
        raise _no_backup(
            file, f"a program has it open or has left a part of it in {log.name}: copy it with leben ledger backup"
        )


def _no_backup(file: Path, why: str) -> LedgerError:
    return LedgerError("backup_invalid", f"{file} is not a backup of a ledger: {why}; nothing was written")


@contextmanager
def _both(source: str, target: str) -> Iterator[tuple[Connection, Connection]]:
    # The source first: a target is not made for a source that cannot be read.
    with (
        closing(Database(source, read_only=True)) as old,
        closing(Database(target)) as new,
        old.read() as reads,
        new.write() as writes,
    ):
        yield reads, writes


def _copy(old: Connection, new: Connection, expected: _Contents, progress: Progress) -> None:
    done = 0
    for table in TABLES:
        chosen = select(table).order_by(*table.primary_key.columns).execution_options(yield_per=PAGE)
        for rows in old.execute(chosen).mappings().partitions():
            new.execute(insert(table), [dict(row) for row in rows])
            done += len(rows)
            progress(done, expected.rows)


def _verify(url: str) -> None:
    with (
        closing(SqlLedger.open(url, read_only=True)) as ledger,
        closing(Journal.open(url, read_only=True)) as journal,
    ):
        ledger.verify()
        journal.verify()
