"""Opens SQLite and PostgreSQL, and locks each for one writer.

No other module depends on the engine, except the triggers in `migrations/append_only.py`.
"""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import Connection, Engine, ExceptionContext, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.pool import StaticPool

from channels import private_files
from channels.errors import ChannelError
from channels.sql.locations import existing, sqlite_file
from channels.sql.trouble import BUSY_MS, CLOSED, DatabaseUnavailable

WRITERS_LOCK = 0x6C6562656E
"""The advisory lock with which PostgreSQL's writers wait for each other."""
FORMS = "use sqlite:///file or postgresql+psycopg://user@host/database"
WAITING = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def make_engine(url: str, *, read_only: bool = False, create: bool = True) -> tuple[Engine, bool]:
    """An engine, and whether its database is in memory and so has one connection only.

    A read-only engine's connections refuse writes in the database itself. `create` makes the file of an SQLite
    database; SQLite itself never makes one, so that no file is made by a command that looks for it.

    Raises:
        DatabaseUnavailable: there is no such file, and none may or can be made.
        ChannelError: the URL is malformed, or names neither SQLite nor PostgreSQL.
    """
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise ChannelError("ledger_url", f"LEBEN_LEDGER_URL is no URL: {FORMS}") from None  # the cause would quote it
    name = parsed.get_backend_name()
    # Parameters hold payers' signatures: an error's text must not carry them into a log.
    if name == "sqlite":
        memory = parsed.database in (None, "", ":memory:")
        line: dict[str, Any] = {"poolclass": StaticPool, "connect_args": {"check_same_thread": False}} if memory else {}
        path = sqlite_file(parsed)
        if path is not None:
            _prepare(path, create and not read_only)
            parsed = existing(parsed, path)
        engine = create_engine(parsed, hide_parameters=True, **line)
        event.listen(engine, "connect", _connect_sqlite)
        if read_only:
            event.listen(engine, "connect", _refuse_writes)
        event.listen(engine, "begin", _begin_sqlite)
        return engine, memory
    if name == "postgresql":
        # Asked before use: a server that was restarted has closed every connection of the pool.
        psycopg_url = parsed.set(drivername="postgresql+psycopg")
        engine = create_engine(psycopg_url, hide_parameters=True, pool_pre_ping=True)
        if read_only:
            event.listen(engine, "connect", _refuse_writes_postgresql)
        event.listen(engine, "begin", _begin_postgresql)
        event.listen(engine, "handle_error", _hide_values)
        return engine, False
    raise ChannelError("ledger_url", f"LEBEN_LEDGER_URL names an unknown engine: {FORMS}")


def write_ahead(engine: Engine) -> None:
    """Turns an SQLite file's write-ahead log on, for good; SQLite does not wait for another process that does the same.

    Raises:
        sqlite3.OperationalError: it cannot be turned on.
    """
    if engine.dialect.name != "sqlite":
        return
    ends_s = time.monotonic() + BUSY_MS / 1000
    with closing(engine.raw_connection()) as raw:
        while True:
            try:
                raw.cursor().execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_READONLY:
                    return  # it may still be read
                if error.sqlite_errorcode & 0xFF not in WAITING or time.monotonic() > ends_s:
                    raise
                time.sleep(0.02)


def alone(conn: Connection) -> None:
    """Waits until no other transaction writes; SQLite has waited when its transaction began."""
    if conn.dialect.name == "postgresql":
        conn.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITERS_LOCK})")


def _prepare(path: Path, create: bool) -> None:
    """Makes the file, and narrows it to this user: it holds payers' signatures. Its logs take its mode over."""
    try:
        if create:
            private_files.make_file(path)
        elif not path.exists():
            raise DatabaseUnavailable(f"there is no file {path}")
    except OSError as error:
        raise DatabaseUnavailable(CLOSED) from error
    for name in (path.name, f"{path.name}-wal", f"{path.name}-shm"):
        private_files.narrow(path.with_name(name))


def _hide_values(context: ExceptionContext) -> None:
    """Keeps only the first line of PostgreSQL's error: its details show the row, such as a payer's signature."""
    cause = context.original_exception
    if isinstance(cause, psycopg.Error) and cause.diag.message_primary:
        message = cause.diag.message_primary
        cause.args = (message,)
        if context.sqlalchemy_exception is not None:
            context.sqlalchemy_exception.args = (f"({type(cause).__name__}) {message}",)


def _connect_sqlite(raw: Any, _: object) -> None:
    raw.isolation_level = None  # sqlite3 would begin transactions by itself, and late
    raw.execute(f"PRAGMA busy_timeout={BUSY_MS}")
    raw.execute("PRAGMA foreign_keys=ON")
    raw.execute("PRAGMA recursive_triggers=ON")  # else INSERT OR REPLACE deletes without a trigger
    raw.execute("PRAGMA synchronous=FULL")


def _refuse_writes(raw: Any, _: object) -> None:
    raw.execute("PRAGMA query_only=ON")


def _refuse_writes_postgresql(raw: Any, _: object) -> None:
    raw.read_only = True


def _begin_sqlite(conn: Connection) -> None:
    # IMMEDIATE: a writer that first read could otherwise find, at its first write, that what it read is old.
    conn.exec_driver_sql("BEGIN IMMEDIATE" if conn.get_execution_options().get("writes") else "BEGIN")


def _begin_postgresql(conn: Connection) -> None:
    if conn.get_execution_options().get("writes"):
        # A commit that the disk has not seen is a charge that the store forgets and a crash takes back.
        conn.exec_driver_sql("SET LOCAL synchronous_commit = on")
        conn.exec_driver_sql(f"SET LOCAL lock_timeout = {BUSY_MS}")
    else:
        conn.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
