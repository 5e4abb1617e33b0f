"""Opens SQLite and PostgreSQL, locks each for one writer, and explains its failures to an operator.

No other module depends on the engine, except the triggers in `migrations/append_only.py`.
"""

from __future__ import annotations

import sqlite3
import time
from typing import Any

import psycopg
from sqlalchemy import Connection, Engine, ExceptionContext, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.pool import StaticPool

from channels.errors import ChannelError

BUSY_MS = 30_000
"""How long a writer waits for a writer in another process."""
WRITERS_LOCK = 0x6C6562656E
"""The advisory lock with which PostgreSQL's writers wait for each other."""
FORMS = "use sqlite:///file or postgresql+psycopg://user@host/database"
WAITING = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
SQLITE_TROUBLE = {
    sqlite3.SQLITE_READONLY: "it is read-only: give this user the right to write it and its folder",
    sqlite3.SQLITE_FULL: "the disk is full: nothing is lost, free some space",
    sqlite3.SQLITE_IOERR: "the disk cannot be read or written: look at its health and free space",
    sqlite3.SQLITE_CANTOPEN: "its file cannot be opened: look at the folder and its permissions",
    sqlite3.SQLITE_BUSY: f"another process has been writing for {BUSY_MS // 1000} s: end it or wait",
}
POSTGRESQL_TROUBLE = {
    "53100": "the server's disk is full: nothing is lost, free some space",
    "55P03": f"another process has been writing for {BUSY_MS // 1000} s: end it or wait",
    "25006": "the server takes no writes: is this a standby?",
    "28P01": "the server refuses the password",
    "28000": "the server refuses this user",
    "3D000": "the server has no such database: create it first",
}


def make_engine(url: str, *, read_only: bool = False) -> tuple[Engine, bool]:
    """An engine, and whether its database is in memory and so has one connection only.

    A read-only engine's connections refuse writes in the database itself.

    Raises:
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


def alone(conn: Connection) -> None:
    """Waits until no other transaction writes; SQLite has waited when its transaction began."""
    if conn.dialect.name == "postgresql":
        conn.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITERS_LOCK})")


def trouble(error: DBAPIError) -> str | None:
    """The remedy for a failure of the database itself; None if the statement was at fault."""
    cause = error.orig
    if isinstance(cause, sqlite3.Error):
        return SQLITE_TROUBLE.get(getattr(cause, "sqlite_errorcode", 0) & 0xFF)
    if isinstance(cause, psycopg.Error):
        remedy = POSTGRESQL_TROUBLE.get(cause.sqlstate or "")
        if remedy is None and (error.connection_invalidated or isinstance(cause, psycopg.OperationalError)):
            return "the server cannot be reached or is being restarted: nothing is lost, it is tried again"
        return remedy
    return None


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
    _write_ahead(raw)


def _refuse_writes(raw: Any, _: object) -> None:
    raw.execute("PRAGMA query_only=ON")


def _refuse_writes_postgresql(raw: Any, _: object) -> None:
    raw.read_only = True


def _write_ahead(raw: Any) -> None:
    """Turns the write-ahead log on; SQLite itself does not wait for another process that does the same."""
    ends_s = time.monotonic() + BUSY_MS / 1000
    while True:
        try:
            raw.execute("PRAGMA journal_mode=WAL").fetchone()
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_READONLY:
                return  # it may still be read
            if error.sqlite_errorcode & 0xFF not in WAITING or time.monotonic() > ends_s:
                raise
            time.sleep(0.02)


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
