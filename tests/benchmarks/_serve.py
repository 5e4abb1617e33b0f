"""Starts Ray Serve as a mesh starts it, for a deployment of a benchmark's own."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from serving.cluster import data_folder, processes, ray_environment, valkey
from serving.config import Settings


@contextmanager
def started(folder: Path, port: int) -> Iterator[Settings]:
    """Ray Serve and a store, for the block; Ray may be imported only in it."""
    settings = Settings(data=folder, port=port)
    ray_environment.prepare(settings)
    from serving.cluster import ray_head
    from serving.mesh.shutdown import stop_ray

    data_folder.private_folder(settings.runtime)
    with ExitStack() as last:
        last.callback(data_folder.Lock(settings.home).release)
        last.callback(shutil.rmtree, settings.runtime, ignore_errors=True)
        last.callback(processes.end_orphans, settings)
        data_folder.signers(settings)
        last.callback(valkey.Valkey(settings).stop)
        last.callback(stop_ray)
        ray_head.start(settings)
        yield settings
