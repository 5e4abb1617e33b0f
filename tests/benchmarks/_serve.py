"""Ray Serve started as a mesh starts it, for a deployment of a benchmark's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serving.cluster import data_folder, ray_head, valkey
from serving.config.settings import Settings
from serving.mesh.mesh import Mesh


@contextmanager
def started(folder: Path, port: int) -> Iterator[Settings]:
    """Ray Serve and a store, for the block; Ray may be imported only in it."""
    settings = Settings(data=folder, port=port)
    mesh = Mesh(settings)
    data_folder.private_folder(settings.runtime)
    mesh._lock = data_folder.Lock(settings.home)
    data_folder.signers(settings)
    mesh._valkey = valkey.Valkey(settings)
    try:
        ray_head.start(settings)
        yield settings
    finally:
        mesh.stop()
