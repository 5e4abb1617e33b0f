"""Ends the processes that a killed mesh left behind."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import psutil

from serving.config import Settings


def end_orphans(settings: Settings) -> None:
    """Ends the processes that a killed mesh left on this data folder; the caller holds its lock, so none is in use.

    HAProxy outlives its mesh and would go on taking calls for replicas that have ended; Ray's agent outlives it too,
    under a meaningless name, and would keep the port of the metrics.
    """
    left = orphans(settings)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, stubborn = psutil.wait_procs(left, timeout=5)
    for process in stubborn:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(stubborn, timeout=5)


def orphans(settings: Settings) -> list[psutil.Process]:
    """Our processes whose command or environment names the runtime folder, and Ray's agents on ports of ours."""
    mark, agents = f"{settings.runtime}/", _agents(settings)
    return [
        process
        for process in psutil.process_iter(["cmdline", "uids"])
        if process.info["uids"]
        and process.info["uids"].real == os.getuid()
        and (process.pid in agents or _marked(process, mark))
    ]


def _agents(settings: Settings) -> set[int]:
    """Ray's agents that have a port of ours and no raylet any more.

    An agent that renames itself overwrites its arguments and part of its environment.
    """
    try:
        connections = psutil.net_connections("tcp")
    except psutil.AccessDenied:
        return set()
    listening = (
        (connection.pid, connection.laddr) for connection in connections if connection.status == psutil.CONN_LISTEN
    )
    ours = {pid for pid, address in listening if pid and address and address.port in settings.own_ports}
    return {pid for pid in ours if _orphaned(pid)}


def _orphaned(pid: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        parent = process.parent()
        return process.name().startswith("ray::") and (parent is None or parent.name() != "raylet")
    return False


def _marked(process: psutil.Process, mark: str) -> bool:
    if process.pid == os.getpid():
        return False
    if any(mark in word for word in process.info["cmdline"] or []):
        return True
    with suppress(OSError):  # read raw: a process that renamed itself has overwritten the beginning
        return mark.encode() in Path(f"/proc/{process.pid}/environ").read_bytes()
    return False


def end_with_parent() -> None:
    """Makes a child about to start end whenever its parent ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: a killed mesh leaves no store behind
