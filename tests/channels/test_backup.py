"""Backups: whole and of one moment while others write, readable by themselves, restorable into either engine."""

from __future__ import annotations

import shutil
import sqlite3
import threading
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
    kept = file.read_bytes()
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
    assert file.read_bytes() == kept


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
