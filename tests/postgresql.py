"""Runs a real PostgreSQL server for the tests: Debian's binaries, a private socket and a folder of its own."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from sqlalchemy.engine import make_url

MISSING = "PostgreSQL is not installed: apt-get install postgresql (its binaries in /usr/lib/postgresql/*/bin)"
FAST = ("fsync=off", "full_page_writes=off", "max_connections=40", "shared_buffers=32MB")


def binaries() -> Path | None:
    """The newest installed version's folder of programs."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[4]))
    on_path = shutil.which("postgres")
    return programs[-1].parent if programs else Path(on_path).parent if on_path else None


def user() -> str | None:
    """The user that runs the server: PostgreSQL refuses root."""
    if os.getuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


class Server:
    """One PostgreSQL server; it can be killed and started again on the same data."""

    def __init__(self, programs: Path) -> None:
        self._programs, self._user = programs, user()
        self.home = Path(tempfile.mkdtemp(prefix="lpg-"))
        if self._user:
            shutil.chown(self.home, self._user)
        data = str(self.home / "data")
        self._run("initdb", "-D", data, "-U", "leben", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
        self._count = 0
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Starts the server and waits until it answers."""
        words = [str(self._programs / "postgres"), "-D", str(self.home / "data"), "-k", str(self.home)]
        words += ["-c", "listen_addresses="]
        for option in FAST:
            words += ["-c", option]
        with (self.home / "log").open("ab") as log:
            self._process = subprocess.Popen(words, stdout=log, stderr=log, user=self._user, cwd=self.home)
        until = time.monotonic() + 120
        while True:
            try:
                self._admin("SELECT 1")
                return
            except psycopg.OperationalError:
                if time.monotonic() > until or self._process.poll() is not None:
                    raise
                time.sleep(0.05)

    def kill(self) -> None:
        """Ends the server without letting it finish anything: its clients lose their connections."""
        assert self._process is not None
        self._run("pg_ctl", "-D", str(self.home / "data"), "-m", "immediate", "-w", "stop")
        self._process.wait(timeout=30)
        self._process = None

    def database(self) -> str:
        """URL of a new, empty database."""
        self._count += 1
        name = f"test_{self._count}"
        self._admin(f"CREATE DATABASE {name}")
        return f"postgresql+psycopg://leben@/{name}?host={self.home}"

    def drop(self, url: str) -> None:
        """Removes a database."""
        self._admin(f"DROP DATABASE {make_url(url).database} WITH (FORCE)")

    def close(self) -> None:
        """Ends the server and removes its folder."""
        if self._process is not None:
            self.kill()
        shutil.rmtree(self.home, ignore_errors=True)

    def _admin(self, statement: str) -> None:
        with psycopg.connect(host=str(self.home), user="leben", dbname="postgres", autocommit=True) as conn:
            conn.execute(statement)  # type: ignore[arg-type]

    def _run(self, name: str, *words: str) -> None:
        command = [str(self._programs / name), *words]
        subprocess.run(command, check=True, capture_output=True, user=self._user, cwd=self.home, timeout=120)


@contextmanager
def running() -> Iterator[Server]:
    """A server for the block; skips the test where PostgreSQL is not installed."""
    programs = binaries()
    if programs is None:
        pytest.skip(MISSING)
    server = Server(programs)
    try:
        yield server
    finally:
        server.close()
