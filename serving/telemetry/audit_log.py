"""Writes JSON lines in a hash chain: append-only, rotated, with one writer per file, verifiable by anyone.

Each line has its number, the hash of the line before it and its own hash, so that a changed, removed or inserted line
is found.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson

from channels import private_files

log = logging.getLogger("leben.audit")
START = "0" * 64
ROTATE_BYTES = 16 << 20
KEEP_FILES = 64
MAX_WRITERS = 1_000
Line = dict[str, Any]


class BrokenChain(Exception):
    """A line differs from what was written; the message names it."""


class AuditLog:
    """One writer's chain in a folder; a second writer of the same name has a chain of its own.

    Args:
        folder: created if it does not exist.
        name: prefix of the files' names.
        rotate_bytes: a file that has grown past this is closed and the next one begun.
        keep_files: how many closed files of a chain are kept.
    """

    def __init__(self, folder: Path, name: str, rotate_bytes: int = ROTATE_BYTES, keep_files: int = KEEP_FILES) -> None:
        private_files.make_folder(folder)
        self._rotate_bytes, self._keep_files = rotate_bytes, keep_files
        self._lock, self._path = _claim(folder, re.sub(r"[^A-Za-z0-9_-]", "_", name))
        self._number, self._head = self._last()
        self._missed = 0
        self._file = self._open()

    def write(self, line: Line) -> None:
        """Appends a line and never raises; a line that cannot be written is counted in the next one that can."""
        body = {"n": self._number + 1, "prev": self._head} | line | ({"missed": self._missed} if self._missed else {})
        head = _hash(body)
        text = orjson.dumps(body | {"hash": head}) + b"\n"
        begins = self._file.tell()
        try:
            if self._file.write(text) != len(text):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            if self._missed == 0:
                log.error("ALARM: the audit log cannot be written: %s", error.strerror)
            self._missed += 1
            with suppress(OSError):  # leave no half of a line behind
                self._file.truncate(begins)
                self._file.seek(begins)
            return
        self._number, self._head, self._missed = self._number + 1, head, 0
        if begins + len(text) >= self._rotate_bytes:
            self._rotate()

    def close(self) -> None:
        """Closes the file and frees its name for another writer."""
        self._file.close()
        self._lock.close()

    def _open(self) -> Any:
        private_files.make_file(self._path)
        file = self._path.open("r+b", buffering=0)
        file.seek(0, os.SEEK_END)
        return file

    def _rotate(self) -> None:
        self._file.close()
        self._path.rename(self._path.with_name(f"{self._path.stem}.{self._number:012d}.jsonl"))
        for old in _closed(self._path)[: -self._keep_files]:
            old.unlink()
        self._file = self._open()

    def _last(self) -> tuple[int, str]:
        """Number and hash of the last whole line; half a line left by a crash is cut off."""
        for path in (self._path, *reversed(_closed(self._path))):
            if not path.exists():
                continue
            data = path.read_bytes()
            whole = data[: data.rfind(b"\n") + 1]
            if path == self._path and len(whole) != len(data):
                os.truncate(path, len(whole))
            if whole:
                last = orjson.loads(whole[whole.rfind(b"\n", 0, -1) + 1 :])
                return last["n"], last["hash"]
        return 0, START


def chains(folder: Path) -> list[Path]:
    """The open file of each chain in a folder."""
    return sorted(path for path in folder.glob("*.jsonl") if path.stem.count(".") == 0)


def read(chain: Path) -> Iterator[Line]:
    """Yields every kept line of a chain, oldest first, each after it has been verified.

    Raises:
        BrokenChain: at the first line that does not verify.
    """
    number, head = None, ""
    for path in (*_closed(chain), chain):
        with path.open("rb") as file:
            for text in file:
                line = _line(text)
                place = f"{path.name}, line {line['n'] if line else f'after {number}'}"
                if line is None or (number is not None and (line["n"], line["prev"]) != (number + 1, head)):
                    raise BrokenChain(f"{place} is not what was written")
                number, head = line["n"], line["hash"]
                yield line


def _line(text: bytes) -> Line | None:
    try:
        line: Line = orjson.loads(text)
        body = {name: value for name, value in line.items() if name != "hash"}
        whole = text == orjson.dumps(body | {"hash": line["hash"]}) + b"\n"
        return line if whole and type(line["n"]) is int and line["hash"] == _hash(body) else None
    except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError):
        return None


def _hash(body: Line) -> str:
    return hashlib.sha256(orjson.dumps(body)).hexdigest()


def _closed(chain: Path) -> list[Path]:
    return sorted(chain.parent.glob(f"{chain.stem}.*.jsonl"))


def _claim(folder: Path, name: str) -> tuple[Any, Path]:
    for number in range(MAX_WRITERS):
        private_files.make_file(folder / f"{name}-{number}.lock")
        lock = (folder / f"{name}-{number}.lock").open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock, folder / f"{name}-{number}.jsonl"
        except OSError:
            lock.close()
    raise OSError(f"more than {MAX_WRITERS} writers of {name}")
