"""Ray Serve started as a mesh starts it, for a deployment of a benchmark's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serving import embedded, engine
from serving.app import Mesh
from serving.settings import Settings


@contextmanager
def started(folder: Path, port: int) -> Iterator[Settings]:
    """Ray Serve and a store, for the block; Ray may be imported only in it."""
    settings = Settings(data=folder, port=port)
    mesh = Mesh(settings)
    embedded.private_folder(settings.runtime)
    mesh._lock = embedded.Lock(settings.home)
    embedded.keys(settings)
    mesh._valkey = embedded.Valkey(settings)
    try:
        engine.start(settings)
        yield settings
    finally:
        mesh.stop()
