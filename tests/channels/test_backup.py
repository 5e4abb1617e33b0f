"""Backups: whole and of one moment while others write, readable by themselves, restorable into either engine."""

from __future__ import annotations

import shutil
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest

from channels.errors import LedgerError
from channels.journal.journal import Journal
from channels.ledger.books import BrokenBooks
from channels.ledger.sql_ledger import SqlLedger
from channels.protocol.signer import Signer
from channels.settlement.backup import backup, restore
from channels.settlement.epochs import Epochs
from channels.settlement.settler import SettlePolicy, Settler
from channels.sql import DatabaseUnavailable, sqlite_url

MESH, PAYER, OWNER_A, OWNER_B = (Signer(bytes([number] * 32)) for number in (1, 2, 3, 4))
OLD = Path(__file__).parent / "data" / "ledger-0.1.sql"


def refused(code: str):
    return pytest.raises(LedgerError, check=lambda error: error.code == code)


def test_a_backup_holds_everything_and_is_restored_into_either_engine(world, tmp_path: Path, postgresql) -> None:
    for salt in (0, 1):
        world.open_channel(1_000, salt)
    world.charge(10, 0, 7)
    world.charge(101, salt=1)
    world.settler().settle(world.token)
    world.charge(5)
    world.journal.add_dead_letter(3, ("1-1", {"not": "a charge"}), "journal_entry_invalid", world.token)
    head, receipts = world.ledger.verify(), world.journal.receipts()
    file, seen = tmp_path / "ledger.backup", []
    rows = backup(world.url, file, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (rows, rows) and not list(tmp_path.glob(".ledger*"))
    with refused("backup_exists"):
        backup(world.url, file)
    content = file.read_bytes()
    for url in (f"sqlite:///{tmp_path / 'new.db'}", postgresql.database()):
        assert restore(file, url) == rows
        ledger, journal = SqlLedger.open(url, world.clock), Journal.open(url)
        assert (ledger.verify(), journal.receipts()) == (head, receipts) and ledger.terms == world.ledger.terms
        assert [entry.code for entry in journal.dead_letters()] == ["journal_entry_invalid"]
        token = journal.acquire("after")
        assert token > world.token + 1_000, "the store may have seen newer treasuries than the backup has"
        settler = Settler(journal, ledger, MESH, SettlePolicy(), world.clock)
        assert settler.settle(token).claimed == 5
        assert Epochs(journal).proof(receipts[0].call_id, world.chain_id).epoch == 1
        ledger.verify()
        ledger.close()
        journal.close()
        with refused("restore_not_empty"):
            restore(file, url)
    assert file.read_bytes() == content


def test_a_backup_made_while_others_write_adds_up(world, tmp_path: Path) -> None:
    world.open_channel(10_000)
    stop, failures = threading.Event(), []

    def work() -> None:
        other = SqlLedger.open(world.url)
        try:
            while not stop.is_set():
                other.fund(OWNER_A.address, 1)
        except Exception as error:
            failures.append(error)
        finally:
            other.close()

    writer = threading.Thread(target=work)
    writer.start()
    try:
        for number in range(5):
            backup(world.url, tmp_path / f"{number}.backup")
    finally:
        stop.set()
        writer.join()
    assert not failures
    counts = []
    for number in range(5):
        ledger = SqlLedger.open(f"sqlite:///{tmp_path / f'{number}.backup'}")
        counts.append(ledger.verify()[0])
        ledger.close()
    assert counts == sorted(counts) and counts[-1] > counts[0]


def test_a_backup_that_was_changed_is_not_restored(world, tmp_path: Path) -> None:
    world.open_channel(1_000)
    file = tmp_path / "ledger.backup"
    backup(world.url, file)
    raw = sqlite3.connect(file)
    raw.execute("UPDATE ledger_balance SET amount = amount + 1 WHERE account LIKE 'channel:%'")
    raw.commit()
    raw.close()
    target = tmp_path / "new.db"
    with pytest.raises(BrokenBooks, match="balance of channel"):
        restore(file, f"sqlite:///{target}")
    assert not target.exists()
    with refused("backup_missing"):
        restore(tmp_path / "nothing", f"sqlite:///{target}")


def truncated(file: Path) -> None:
    with file.open("r+b") as raw:
        raw.truncate(file.stat().st_size // 2)


def foreign(file: Path) -> None:
    file.unlink()
    with sqlite3.connect(file) as raw:
        raw.execute("CREATE TABLE bookmarks (url TEXT)")
    raw.close()


def bare(file: Path) -> None:
    """An SQLite file in which nothing was ever made."""
    file.unlink()
    with sqlite3.connect(file) as raw:
        raw.execute("PRAGMA user_version = 1")
    raw.close()


def without_genesis(file: Path) -> None:
    file.unlink()
    Journal.open(sqlite_url(file)).close()
    with sqlite3.connect(file) as raw:
        raw.execute("PRAGMA journal_mode=DELETE")
    raw.close()


def newer(file: Path) -> None:
    with sqlite3.connect(file) as raw:
        raw.execute("UPDATE alembic_version SET version_num = '9999'")
    raw.close()


NO_BACKUPS = [
    pytest.param(lambda file: file.write_bytes(b""), "it is empty", id="0 bytes"),
    pytest.param(lambda file: file.write_text("Dear operator"), "it is not an SQLite file", id="text"),
    pytest.param(truncated, "it is damaged", id="truncated"),
    pytest.param(foreign, "its tables are not those of a ledger", id="another program's"),
    pytest.param(bare, "it is empty, there is no ledger in it", id="no tables"),
    pytest.param(without_genesis, "it is empty, there is no ledger in it", id="no genesis"),
    pytest.param(newer, "its schema 9999 is of a newer version", id="newer"),
    pytest.param(lambda file: file.with_name(f"{file.name}-wal").write_text("rest"), "has it open", id="in use"),
]


@pytest.mark.parametrize(("spoil", "why"), NO_BACKUPS)
def test_what_is_no_backup_is_refused_unchanged_and_makes_no_ledger(world, tmp_path: Path, spoil, why: str) -> None:
    file, target = tmp_path / "ledger.backup", tmp_path / "new" / "ledger.db"
    target.parent.mkdir()
    backup(world.url, file)
    spoil(file)
    before = file.read_bytes()
    with refused("backup_invalid") as caught:
        restore(file, sqlite_url(target))
    assert why in str(caught.value) and str(file) in str(caught.value)
    assert file.read_bytes() == before and not list(target.parent.iterdir())


ODD = ["what?.db", "100%25.db", "a%20b.db", "a#b.db", "[1].db", "ü é.db", "file:x", ":memory:", "a&mode=ro.db"]


@pytest.mark.parametrize("name", ODD)
def test_every_name_is_the_name_of_a_file(world, tmp_path: Path, name: str) -> None:
    world.open_channel(1_000)
    (tmp_path / "out").mkdir()
    file = tmp_path / "out" / name
    rows = backup(world.url, file)
    assert [path.name for path in file.parent.iterdir()] == [name]
    with sqlite3.connect(tmp_path / shutil.copy(file, tmp_path / "plain.db")) as raw:
        assert raw.execute("SELECT count(*) FROM ledger_transaction").fetchone()[0] == world.ledger.verify()[0]
    raw.close()
    folder = tmp_path / name
    folder.mkdir()
    assert restore(file, sqlite_url(folder / name)) == rows
    with closing(SqlLedger.open(sqlite_url(folder / name), create=False)) as ledger:
        assert ledger.verify() == world.ledger.verify() and ledger.terms == world.ledger.terms
    assert {path.name for path in folder.iterdir()} <= {name, f"{name}-wal", f"{name}-shm"}


def test_a_relative_name_is_a_file_of_the_working_directory(world, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name in ("what?.db", ":memory:"):
        rows = backup(world.url, Path(name))
        assert (tmp_path / "here" / name).stat().st_size > 0
        assert restore(Path(name), sqlite_url(Path(f"{name}.new"))) == rows


def test_a_copy_that_differs_from_what_was_read_is_not_called_verified(world, tmp_path: Path, monkeypatch) -> None:
    """Another file takes the place of the backup before it is read again."""
    other = tmp_path / "other.db"
    SqlLedger.open(sqlite_url(other)).close()
    real = Path.replace

    def swapped(path: Path, target: Path) -> Path:
        path.write_bytes(other.read_bytes())
        return real(path, target)

    monkeypatch.setattr(Path, "replace", swapped)
    with refused("backup_differs"):
        backup(world.url, tmp_path / "ledger.backup")


def test_no_ledger_is_made_by_a_backup_of_none(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnavailable, match="there is no file"):
        backup(sqlite_url(tmp_path / "none.db"), tmp_path / "ledger.backup")
    assert not list(tmp_path.iterdir())


def test_a_backup_of_an_older_version_is_brought_up_to_date(tmp_path: Path) -> None:
    file = tmp_path / "old.backup"
    raw = sqlite3.connect(file)
    raw.executescript(OLD.read_text())
    raw.close()
    shutil.copy(file, tmp_path / "kept")
    restore(file, f"sqlite:///{tmp_path / 'new.db'}")
    assert file.read_bytes() == (tmp_path / "kept").read_bytes()
    ledger = SqlLedger.open(f"sqlite:///{tmp_path / 'new.db'}")
    assert ledger.verify()[0] == 13 and ledger.earnings(OWNER_B.address) == 79
    ledger.close()
