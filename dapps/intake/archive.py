"""Yields the files of a ZIP archive one at a time, or refuses it, with bounds before and during unpacking.

The directory of a ZIP is only a claim: reading a file stops as soon as it is longer than claimed or allowed. Names are
used only to skip folders, indexes and resource forks.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterator

from dapps.api import IntakeRefused

MAX_MEMBERS = 600
MAX_BYTES = 512 * 1024 * 1024
MAX_MEMBER_BYTES = 64 * 1024 * 1024
MAX_RATIO = 200
"""CT slices shrink fourfold at best; a bomb shrinks a thousandfold."""
ENTRY = b"PK\x01\x02"
"""The start of each directory entry; a few more may occur in the files by chance."""
PLAIN = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})


def is_zip(data: bytes) -> bool:
    """Whether the bytes begin like a ZIP archive."""
    return data[:4] in (b"PK\x03\x04", b"PK\x05\x06")


def members(data: bytes) -> Iterator[bytes]:
    """The files of an archive; folders, an index named DICOMDIR and resource forks are skipped.

    Raises:
        IntakeRefused: `unreadable`, `too_many`, `too_large`, `encrypted`, `wrong_format`, `nested_archive` or `empty`.
    """
    # Counted before the directory is read: a million empty entries fit into a body and would fill the memory.
    if data.count(ENTRY) > 2 * MAX_MEMBERS:
        raise IntakeRefused("too_many", f"the archive holds more than {MAX_MEMBERS} files: send one series")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for entry in _entries(archive):
                content = _content(archive, entry)
                if is_zip(content):
                    raise IntakeRefused("nested_archive", "the archive holds another archive: send the files in one")
                yield content
    except IntakeRefused:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError, RuntimeError):
        raise IntakeRefused("unreadable", "the ZIP archive is damaged") from None  # their texts quote names


def _entries(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    listed = archive.infolist()
    if len(listed) > MAX_MEMBERS:
        raise IntakeRefused("too_many", f"the archive holds more than {MAX_MEMBERS} files: send one series")
    names = [entry.filename.rpartition("/")[2] for entry in listed]
    entries = [
        entry
        for entry, name in zip(listed, names, strict=True)
        if not entry.is_dir()
        and name.upper() != "DICOMDIR"
        and not name.startswith(".")
        and not entry.filename.startswith("__MACOSX/")
    ]
    if not entries:
        raise IntakeRefused("empty", "the archive holds no files")
    if any(entry.flag_bits & 1 for entry in entries):
        raise IntakeRefused("encrypted", "the archive is encrypted: send it without a password")
    if any(entry.compress_type not in PLAIN for entry in entries):
        raise IntakeRefused("wrong_format", "the archive is packed in an unusual way: use deflate")
    if sum(entry.file_size for entry in entries) > MAX_BYTES or any(map(_swollen, entries)):
        raise IntakeRefused("too_large", "the archive unpacks to more than a CT series needs")
    return entries


def _swollen(entry: zipfile.ZipInfo) -> bool:
    small = max(entry.compress_size, 1024)
    return entry.file_size > MAX_MEMBER_BYTES or entry.file_size > small * MAX_RATIO


def _content(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    with archive.open(entry) as file:
        content = file.read(entry.file_size + 1)
    if len(content) != entry.file_size:
        raise IntakeRefused("unreadable", "a file in the archive is not as long as the archive says")
    return content
