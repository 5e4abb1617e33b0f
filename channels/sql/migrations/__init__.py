"""Makes the schema of ledger and journal, and brings older ones up to date, by Alembic revisions.

A revision is never edited once released; a change is a new file in `versions/`. Each runs in one transaction and
changes no money: hashed rows stay as they were written.
"""

from __future__ import annotations

import threading
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

REVISIONS = ("0001", "0002", "0003")
"""Every revision in order; a ledger from before revisions has none and is brought to the first without a change."""
HEAD = REVISIONS[-1]
_ONE = threading.Lock()


def revision(conn: Connection) -> str | None:
    """The revision that a database is at; None if it is empty or from before revisions."""
    return MigrationContext.configure(conn).get_current_revision()


def upgrade(conn: Connection, to: str = "head") -> None:
    """Brings a database to a revision inside the transaction that is open."""
    with _ONE:  # Alembic's `op` is one for the whole process
        config = _config()
        config.attributes["connection"] = conn
        command.upgrade(config, to)


def heads() -> tuple[str, ...]:
    """The revisions that no other follows; a test compares them with `HEAD`."""
    return tuple(ScriptDirectory.from_config(_config()).get_heads())


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    return config
