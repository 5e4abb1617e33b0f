"""Runs transactions on one SQL database: one writer at a time, synchronous commits, the newest schema.

`engines.py` holds what differs between SQLite and PostgreSQL; `migrations/` makes the tables.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from channels.errors import ChannelError
from channels.sql import migrations
from channels.sql.engines import alone, make_engine, trouble


class DatabaseUnavailable(ChannelError):
    """The database cannot be read or written now; the transaction left no trace, or may be repeated."""

    def __init__(self, what: str) -> None:
        super().__init__("database_unavailable", f"the ledger's database: {what}")


class Database:
    """Transactions on one database; never two writers at once, in this process or another.

    Args:
        url: SQLAlchemy URL: `sqlite:///file`, `sqlite://` for one in memory, or `postgresql+psycopg://…`.
        read_only: the database itself refuses every write; its schema must be up to date.

    Raises:
        DatabaseUnavailable: it cannot be opened, or its schema is not this program's.
        ChannelError: the URL is none, or of another engine.
    """

    def __init__(self, url: str, *, read_only: bool = False) -> None:
        self.engine, memory = make_engine(url, read_only=read_only)
        self._read_only = read_only
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
        with self._reading, _explained(), self.engine.begin() as conn:
            yield conn

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """The only writer; commits at the end of the block, or leaves no trace if it raises."""
        with self._lock, _explained(), self._writer.begin() as conn:
            alone(conn)
            yield conn

    def close(self) -> None:
        """Closes every connection."""
        self.engine.dispose()

    def _upgrade(self) -> None:
        # Without a write first: a file that may only be read can still be verified.
        with self.read() as conn:
            present = migrations.revision(conn)
        if present == migrations.HEAD:
            return
        if present is not None and present not in migrations.REVISIONS:
            raise DatabaseUnavailable(f"its schema {present} is of a newer version: use that version of Leben Mesh")
        if self._read_only:
            raise DatabaseUnavailable("its schema is of an older version: open it for writing once")
        with self.write() as conn:
            if migrations.revision(conn) != migrations.HEAD:  # else another process was first
                migrations.upgrade(conn)


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        what = trouble(error)
        if what is None:
            raise
        raise DatabaseUnavailable(what) from error
