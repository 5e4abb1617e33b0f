"""Makes files that only their owner reads (0600) and folders that only their owner enters (0700), whatever the umask.

What another program made too wide is narrowed where this user owns it; what another user owns stays as it is.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

FILE, FOLDER = 0o600, 0o700


def make_file(path: Path) -> None:
    """Makes an empty file, or narrows the one that exists.

    Raises:
        OSError: it can neither be made nor found.
    """
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE))
    narrow(path)


def make_folder(path: Path) -> None:
    """Makes a folder and its parents, or narrows the folder that exists; parents that exist stay as they are.

    Raises:
        OSError: it cannot be made, or something else has its name.
    """
    path.mkdir(parents=True, exist_ok=True, mode=FOLDER)
    narrow(path)


def narrow(path: Path) -> None:
    """Takes every right of others to a file or folder of this user; does nothing where there is none."""
    # A mounted secret may be on a medium that takes no changes: who mounted it answers for its mode.
    with suppress(OSError):
        status = path.stat()
        widest = FOLDER if stat.S_ISDIR(status.st_mode) else FILE
        regular = stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode)
        if regular and status.st_uid == os.getuid() and stat.S_IMODE(status.st_mode) & ~widest:
            path.chmod(stat.S_IMODE(status.st_mode) & widest)


def narrow_tree(folder: Path) -> None:
    """Narrows a folder and everything in it; links are not followed."""
    narrow(folder)
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(root) / name
            if not path.is_symlink():
                narrow(path)


def write(path: Path, content: bytes) -> None:
    """Writes a file that a user named, in place: it may be a pipe or a device.

    Raises:
        OSError: it cannot be written.
    """
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, FILE), "wb") as file:
        narrow(path)
        file.write(content)


def replace(path: Path, content: bytes) -> None:
    """Replaces a file in one step: a reader sees the old content or the new, after a crash too.

    Raises:
        OSError: it cannot be written; the old file stays.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.unlink(missing_ok=True)
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
