"""A SQL database as money needs it: one writer at a time, full sync, append-only tables.

Owns everything that differs between SQL dialects, and no table of its own. SQLite today: a file that several processes
may open. Used by `ledger_sql.py` and `journal.py`.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from sqlalchemy import Connection, Engine, MetaData, Table, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.pool import StaticPool

BUSY_MS = 30_000
"""How long a writer waits for one in another process."""


class Database:
    """Transactions on one database; two never write at once, in this process or another.

    Args:
        url: SQLAlchemy URL, `sqlite:///file` or `sqlite://` for one in memory.
        metadata: the tables to make where they are absent.
        append_only: tables whose rows the database itself refuses to change or delete.
    """

    def __init__(self, url: str, metadata: MetaData, append_only: Sequence[Table] = ()) -> None:
        parsed = make_url(url)
        if parsed.get_backend_name() != "sqlite":
            raise ValueError(f"no such engine yet: {parsed.get_backend_name()}; use sqlite:///file")
        # Parameters hold payers' signatures: an error's text must not carry them into a log.
        memory = parsed.database in (None, "", ":memory:")
        self._engine = _memory_engine(url) if memory else create_engine(url, hide_parameters=True)
        event.listen(self._engine, "connect", _connect)
        event.listen(self._engine, "begin", _begin)
        self._writer = self._engine.execution_options(writes=True)
        self._lock = threading.Lock()
        # A database in memory has one connection: its readers wait in line too.
        self._reading: Any = self._lock if memory else nullcontext()
        with self.write() as conn:
            metadata.create_all(conn)
            for table in append_only:
                _forbid_changes(conn, table.name)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """One consistent view."""
        with self._reading, self._engine.begin() as conn:
            yield conn

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """The only writer; commits at the end of the block, or leaves no trace if it raises."""
        with self._lock, self._writer.begin() as conn:
            yield conn

    def close(self) -> None:
        """Closes every connection."""
        self._engine.dispose()


def _memory_engine(url: str) -> Engine:
    return create_engine(url, hide_parameters=True, poolclass=StaticPool, connect_args={"check_same_thread": False})


def _connect(raw: Any, _: object) -> None:
    raw.isolation_level = None  # sqlite3 would begin transactions by itself, and late
    raw.execute(f"PRAGMA busy_timeout={BUSY_MS}")
    raw.execute("PRAGMA foreign_keys=ON")
    raw.execute("PRAGMA recursive_triggers=ON")  # else INSERT OR REPLACE deletes without a trigger
    raw.execute("PRAGMA synchronous=FULL")
    _write_ahead(raw)


def _write_ahead(raw: Any) -> None:
    """Turns the write-ahead log on; SQLite does not wait for another process that is doing the same."""
    ends_s = time.monotonic() + BUSY_MS / 1000
    while True:
        try:
            raw.execute("PRAGMA journal_mode=WAL").fetchone()
            return
        except sqlite3.OperationalError:
            if time.monotonic() > ends_s:
                raise
            time.sleep(0.02)


def _begin(conn: Connection) -> None:
    # IMMEDIATE: a writer that first read could otherwise find, at its first write, that what it read is old.
    conn.exec_driver_sql("BEGIN IMMEDIATE" if conn.get_execution_options().get("writes") else "BEGIN")


def _forbid_changes(conn: Connection, table: str) -> None:
    for verb in ("UPDATE", "DELETE"):
        conn.exec_driver_sql(
            f"CREATE TRIGGER IF NOT EXISTS {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
            f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
        )
