"""Names SQLite files by URLs: every character of a path is quoted, so that none is read as a part of the URL."""

from __future__ import annotations

import os
from pathlib import Path

from sqlalchemy import URL


def sqlite_url(path: Path) -> str:
    """The URL of an SQLite file; `make_engine` finds exactly this path in it."""
    return URL.create("sqlite", database=os.path.abspath(path)).render_as_string(hide_password=False)


def source_url(path: Path) -> str:
    """The URL of an SQLite file that is only read: SQLite itself neither makes it nor writes to it."""
    query = {"mode": "ro", "uri": "true"}
    return URL.create("sqlite", database=_uri(path), query=query).render_as_string(hide_password=False)


def sqlite_file(url: URL) -> Path | None:
    """The file of an SQLite URL; None if the database is in memory, or the URL holds an SQLite URI of its own."""
    if url.database in (None, "", ":memory:") or url.query.get("uri"):
        return None
    return Path(os.path.abspath(url.database or ""))


def existing(url: URL, path: Path) -> URL:
    """The URL by which SQLite opens a file that is there, and never makes one."""
    return url.set(database=_uri(path), query={"mode": "rw", **url.query, "uri": "true"})


def _uri(path: Path) -> str:
    return Path(os.path.abspath(path)).as_uri()
