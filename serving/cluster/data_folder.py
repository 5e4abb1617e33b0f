"""Owns the data folder: its lock, the mesh's keys and the note of what runs on it.

The lock frees itself when its process ends, so a killed mesh can start again on its folder.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
from eth_keys.exceptions import ValidationError

from channels import private_files
from channels.protocol import KeyFileError, Signer
from serving.config import Settings

OURS = ("lock", "ledger.db", "leben.yaml", "owners.json", "chain.json")
"""Files by which a data folder is told from another folder."""


RETIRED = re.compile(r"authorizer-(\d{8})-[0-9a-f]{8}\.key")
REFUNDS_S = 30 * 86_400
"""How long a retired authorizer is kept to sign refunds; the longest notice of a withdrawal is as long."""


class FolderInUse(Exception):
    """Another mesh runs on this data folder."""


class Lock:
    """An exclusive lock on the data folder; the kernel frees it when its process ends, however it ends."""

    def __init__(self, home: Path) -> None:
        private_home(home)
        private_files.make_file(home / "lock")
        self._file = (home / "lock").open("a+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise FolderInUse(f"another mesh runs on {home}: stop it, or choose another --data") from error

    def release(self) -> None:
        """Frees the folder."""
        self._file.close()


def private_home(home: Path) -> None:
    """Makes the data folder, or narrows it to this user if it is empty or holds a mesh's files.

    A folder of other things that is only named by mistake keeps its mode; so does one that is shared by its nature.
    """
    if home.is_dir() and (home == Path.home() or home.stat().st_mode & stat.S_ISVTX):
        return
    if not home.is_dir() or not any(home.iterdir()) or any((home / name).exists() for name in OURS):
        private_files.make_folder(home)
        for name in OURS:
            private_files.narrow(home / name)


def private_folder(path: Path) -> Path:
    """Makes a folder that only this user can enter; refuses one that another user made first."""
    path.mkdir(mode=0o700, exist_ok=True)
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o077:
        raise PermissionError(
            f"{path} is not a private folder of this user: choose another --data, or look who made it and ask them"
        )
    return path


def signers(settings: Settings) -> dict[str, Signer]:
    """The mesh's keys, made on first start: `receiver`, `authorizer` and `receipt`; makes Ray's token too."""
    private_files.make_folder(settings.keys)
    for path in settings.keys.iterdir():
        private_files.narrow(path)
    signers = {name: _key(settings, name) for name in ("receiver", "authorizer", "receipt")}
    token = settings.ray_token
    if not token.exists():
        private_files.replace(token, secrets.token_hex(32).encode())
    return signers


def retired_at_s(path: Path) -> float:
    """When an authorizer was retired, in seconds since 1970, by the date in its file's name.

    Files of earlier versions have no date: their last change of status is never before they were retired.
    """
    dated = RETIRED.fullmatch(path.name)
    if dated is None:
        return path.stat().st_ctime
    return datetime.strptime(dated[1], "%Y%m%d").replace(tzinfo=UTC).timestamp()


def retired_authorizers(settings: Settings) -> list[Signer]:
    """Earlier authorizers, whose channels still hold money."""
    password = settings.key_password.get_secret_value()
    return [Signer.from_file(path, password) for path in sorted(settings.keys.glob("authorizer-*.key"))]


def _key(settings: Settings, name: str) -> Signer:
    text: str = getattr(settings, f"{name}_key").get_secret_value()
    if not text:
        return Signer.from_file(settings.keys / f"{name}.key", settings.key_password.get_secret_value())
    try:
        return Signer(bytes.fromhex(text.strip().removeprefix("0x")))
    except (ValueError, ValidationError):
        # The cause would quote the text.
        raise KeyFileError("key_file", f"LEBEN_{name.upper()}_KEY is not a key of 64 hex digits") from None


def note_running(settings: Settings, facts: dict[str, Any], file: str = "mesh.json") -> None:
    """Writes the facts by which commands find the running mesh; replaces the file in one step."""
    private_files.replace(settings.home / file, orjson.dumps(facts, option=orjson.OPT_INDENT_2))


def running(settings: Settings, file: str = "mesh.json") -> dict[str, Any] | None:
    """Facts of the mesh that runs on this data folder, or with `node.json` of a node; None if none runs."""
    path = settings.home / file
    if not path.exists():
        return None
    try:
        Lock(settings.home).release()
    except FolderInUse:
        facts: dict[str, Any] = orjson.loads(path.read_bytes())
        return facts
    return None
