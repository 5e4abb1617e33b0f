"""Private files: 0600 and 0700 whatever the umask is, and whoever made the file before."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from channels import private_files
from channels.ledger import SqlLedger
from channels.settlement import backup
from channels.sql import sqlite_url


@pytest.fixture(params=[0o000, 0o022, 0o077], ids=oct)
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_what_is_made_is_this_users_alone(umask: int, tmp_path: Path) -> None:
    private_files.make_folder(tmp_path / "a" / "b")
    private_files.make_file(tmp_path / "file")
    private_files.write(tmp_path / "written", b"1")
    private_files.replace(tmp_path / "replaced", b"2")
    assert mode(tmp_path / "a" / "b") == 0o700
    assert {mode(tmp_path / name) for name in ("file", "written", "replaced")} == {0o600}
    assert (tmp_path / "replaced").read_bytes() == b"2" and len(list(tmp_path.iterdir())) == 4


def test_what_was_made_too_wide_is_narrowed_and_keeps_its_content(umask: int, tmp_path: Path) -> None:
    folder, file = tmp_path / "folder", tmp_path / "folder" / "file"
    folder.mkdir()
    file.write_text("kept")
    folder.chmod(0o755)
    file.chmod(0o664)
    private_files.make_folder(folder)
    private_files.make_file(file)
    assert (mode(folder), mode(file), file.read_text()) == (0o700, 0o600, "kept")


def test_a_narrower_file_and_a_device_keep_their_mode(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    file.chmod(0o400)
    private_files.narrow(file)
    before = mode(Path(os.devnull))
    private_files.write(Path(os.devnull), b"a receipt")
    assert mode(file) == 0o400 and mode(Path(os.devnull)) == before


def test_a_tree_is_narrowed_and_links_are_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.touch()
    outside.chmod(0o644)
    tree = tmp_path / "tree" / "deep"
    tree.mkdir(parents=True)
    (tree / "file").touch()
    for path in (tree, tree.parent, tree / "file"):
        path.chmod(0o755)
    (tree / "link").symlink_to(outside)
    private_files.narrow_tree(tree.parent)
    assert (mode(tree), mode(tree / "file"), mode(outside)) == (0o700, 0o600, 0o644)


def test_a_ledger_its_logs_and_its_backups_are_private(umask: int, tmp_path: Path) -> None:
    file = tmp_path / "ledger.db"
    ledger = SqlLedger.open(sqlite_url(file))
    ledger.fund("0x" + "11" * 20, 1)
    assert {path.name: mode(path) for path in tmp_path.iterdir()} == {
        name: 0o600 for name in ("ledger.db", "ledger.db-wal", "ledger.db-shm")
    }
    for path in tmp_path.iterdir():
        path.chmod(0o644)
    again = SqlLedger.open(sqlite_url(file))
    backup(sqlite_url(file), tmp_path / "copy.db")
    assert {mode(path) for path in tmp_path.iterdir()} == {0o600}
    again.close()
    ledger.close()
