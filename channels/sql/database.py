"""Runs transactions on one SQL database: one writer at a time, synchronous commits, the newest schema.

`engines.py` holds what differs between SQLite and PostgreSQL; `migrations/` makes the tables.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from sqlalchemy import Connection, inspect

from channels.sql import migrations
from channels.sql.engines import alone, make_engine, write_ahead
from channels.sql.trouble import EMPTY, NO_TABLES, DatabaseDamaged, DatabaseUnavailable, explained

OURS = frozenset({"ledger_transaction", "journal_channel"})
"""Tables of every revision: a database without either is not a ledger's."""


class Database:
    """Transactions on one database; never two writers at once, in this process or another.

    Args:
        url: SQLAlchemy URL: `sqlite:///file`, `sqlite://` for one in memory, or `postgresql+psycopg://…`.
        read_only: the database itself refuses every write; its schema must be up to date.
        create: make the file and the tables where there are none; without it an empty database is refused.

    Raises:
        DatabaseUnavailable: it cannot be opened, is empty, or its schema is not this program's.
        ChannelError: the URL is none, or of another engine.
    """

    def __init__(self, url: str, *, read_only: bool = False, create: bool = True) -> None:
        self.engine, memory = make_engine(url, read_only=read_only, create=create)
        self._read_only, self._create = read_only, create and not read_only
        self._writer = self.engine.execution_options(writes=True)
        self._lock = threading.Lock()
        # A database in memory has one connection, so its readers wait for the writer.
        self._reading: Any = self._lock if memory else nullcontext()
        try:
            self._upgrade()
        except BaseException:
            self.close()
            raise

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """One consistent view."""
        with self._reading, explained(), self.engine.begin() as conn:
            yield conn

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """The only writer; commits at the end of the block, or leaves no trace if it raises."""
        with self._lock, explained(), self._writer.begin() as conn:
            alone(conn)
            yield conn

    def close(self) -> None:
        """Closes every connection."""
        self.engine.dispose()

    def _upgrade(self) -> None:
        # Without a write first: a file that may only be read can still be verified.
        with self.read() as conn:
            tables = set(inspect(conn).get_table_names())
            # PostgreSQL's databases may be shared with other programs; an SQLite file is one program's.
            foreign = tables if conn.dialect.name == "sqlite" else tables & {"alembic_version"}
            if foreign and not tables & OURS:
                raise DatabaseDamaged(NO_TABLES)
            if not tables & OURS and not self._create:
                raise DatabaseUnavailable(EMPTY)
            present = migrations.revision(conn)
        if present is not None and present not in migrations.REVISIONS:
            raise DatabaseUnavailable(f"its schema {present} is of a newer version: use that version of Leben Mesh")
        if self._create:  # after the checks: it changes the file
            with explained():
                write_ahead(self.engine)
        if present == migrations.HEAD:
            return
        if self._read_only:
            raise DatabaseUnavailable("its schema is of an older version: open it for writing once")
        with self.write() as conn:
            if migrations.revision(conn) != migrations.HEAD:  # else another process was first
                migrations.upgrade(conn)
