"""Explains every failure of a database to an operator: one sentence with the remedy, for SQLite and PostgreSQL."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from sqlalchemy.exc import DBAPIError

from channels.errors import ChannelError

BUSY_MS = 30_000
"""How long a writer waits for a writer in another process."""
BUSY = f"another process has been writing for {BUSY_MS // 1000} s: wait for it, and look which it is before you end it"
DAMAGED = "it is damaged: stop the mesh, keep the file as it is, and restore the newest backup into a new ledger"
NOT_SQLITE = (
    "its file is not an SQLite database: is it the right file? If it is, stop the mesh, keep it, and restore"
    " the newest backup into a new ledger"
)
NO_TABLES = (
    "its tables are not those of a ledger: is it the right database? If it is, stop the mesh, keep it, and"
    " restore the newest backup into a new ledger"
)
EMPTY = "it is empty, there is no ledger in it"
CLOSED = "its file cannot be opened: look at the folder and its permissions"

SQLITE_TROUBLE = {
    sqlite3.SQLITE_CORRUPT: DAMAGED,
    sqlite3.SQLITE_NOTADB: NOT_SQLITE,
    sqlite3.SQLITE_READONLY: "it is read-only: give this user the right to write it and its folder",
    sqlite3.SQLITE_FULL: "the disk is full: nothing is lost, free some space",
    sqlite3.SQLITE_IOERR: "the disk cannot be read or written: look at its health and free space",
    sqlite3.SQLITE_CANTOPEN: CLOSED,
    sqlite3.SQLITE_PERM: CLOSED,
    sqlite3.SQLITE_BUSY: BUSY,
    sqlite3.SQLITE_LOCKED: BUSY,
}
POSTGRESQL_TROUBLE = {
    "53100": "the server's disk is full: nothing is lost, free some space",
    "55P03": BUSY,
    "25006": "the server takes no writes: is this a standby?",
    "28P01": "the server refuses the password",
    "28000": "the server refuses this user",
    "3D000": "the server has no such database: create it first",
    "42501": "the server denies this user a right: make it the owner of the database",
    "42P01": NO_TABLES,
    "42703": NO_TABLES,
    "XX001": DAMAGED,
    "XX002": DAMAGED,
}


class DatabaseUnavailable(ChannelError):
    """The database cannot be read or written now; the transaction left no trace, or may be repeated.

    Attributes:
        what: the sentence without its subject.
    """

    what = ""

    def __init__(self, what: str) -> None:
        super().__init__("database_unavailable", f"the ledger's database: {what}")
        self.what = what


class DatabaseDamaged(DatabaseUnavailable):
    """The database's own pages or tables are not what was written: no repetition helps."""


@contextmanager
def explained() -> Iterator[None]:
    """Turns a failure of the database itself into a refusal; a statement at fault stays what it is.

    Raises:
        DatabaseUnavailable: with the remedy.
    """
    try:
        yield
    except (DBAPIError, sqlite3.Error) as error:
        what = trouble(error)
        if what is None:
            raise
        damaged = what in (DAMAGED, NOT_SQLITE, NO_TABLES)
        raise (DatabaseDamaged if damaged else DatabaseUnavailable)(what) from error


def trouble(error: DBAPIError | sqlite3.Error) -> str | None:
    """The remedy for a failure of the database itself; None if the statement was at fault."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(cause, sqlite3.Error):
        code = getattr(cause, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_ERROR and str(cause).startswith(("no such table", "no such column")):
            return NO_TABLES
        return SQLITE_TROUBLE.get(code)
    if isinstance(cause, psycopg.Error):
        remedy = POSTGRESQL_TROUBLE.get(cause.sqlstate or "")
        if remedy is None and (
            getattr(error, "connection_invalidated", False) or isinstance(cause, psycopg.OperationalError)
        ):
            return "the server cannot be reached or is being restarted: nothing is lost, it is tried again"
        return remedy
    return None
