"""Migrations: an older ledger keeps its money, its chain and its work; the tables are what the code says they are."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import text

from channels.journal.journal import Journal
from channels.journal.refunds import Refunds
from channels.journal.statement import Statements
from channels.journal.tables import journal_tables
from channels.ledger.books import books
from channels.ledger.sql_ledger import SqlLedger
from channels.protocol.signer import Signer
from channels.receipts.merkle import verify_proof
from channels.settlement.epochs import Epochs
from channels.settlement.settler import SettlePolicy, Settler
from channels.sql import Database, DatabaseUnavailable, migrations

pytestmark = pytest.mark.conformance
OLD = Path(__file__).parent / "data" / "ledger-0.1.sql"
HEAD = "0x544173218aa5bdd2ce126b96cdc27ff1bf84f6f6d61f7d384dc9d55093d275ab"
"""Last hash of the old ledger, as the version that wrote it gave it."""
CHAIN_ID = 1964710654086382
MESH, PAYER, OWNER_A, OWNER_B = (Signer(bytes([number] * 32)) for number in (1, 2, 3, 4))


@pytest.fixture
def old(tmp_path: Path) -> str:
    """A ledger of version 0.1: an epoch paid, one whose claim never came, a refund and a withdrawal under way."""
    path = tmp_path / "old.db"
    with sqlite3.connect(path) as raw:
        raw.executescript(OLD.read_text())
    raw.close()
    return f"sqlite:///{path}"


def test_an_older_ledger_keeps_its_money_its_chain_and_its_work(old: str) -> None:
    ledger, journal = SqlLedger.open(old), Journal.open(old)
    assert ledger.verify() == (13, HEAD) and journal.verify() == 9
    assert (ledger.earnings(OWNER_A.address), ledger.earnings(OWNER_B.address)) == (38, 79)
    assert [channel.withdraw_amount for channel in ledger.withdrawing()] == [500]
    copies = {copy.channel_id: copy for copy in journal.channels()}
    assert sorted((copy.charged, copy.settled, copy.seq, copy.settled_seq) for copy in copies.values()) == [
        (0, 0, 0, 0),
        (5, 0, 1, 0),
        (40, 37, 6, 5),
        (130, 130, 2, 2),
    ]
    (bad,) = Epochs(journal).quarantined()
    assert bad.charged == 5 and bad.quarantine.endswith("voucher_signature")
    assert [(intent.amount, intent.nonce) for intent in Refunds(journal).pending()] == [(50, 1)]
    settler = Settler(journal, ledger, MESH, SettlePolicy(), lambda: 1_000_000.0)
    token = journal.acquire("new")
    assert settler.due() == "pending"
    assert [settler.settle(token).claimed for _ in range(3)] == [50, 3, 0]
    assert ledger.earnings(OWNER_A.address) + ledger.earnings(OWNER_B.address) == 117 + 53
    assert ledger.verify()[0] == 13 + 4
    ledger.close()
    journal.close()


def test_an_old_epoch_can_still_be_abandoned(old: str) -> None:
    journal = Journal.open(old)
    Epochs(journal).abandon(2, journal.acquire("new"))
    assert sorted((copy.settled, copy.settled_seq) for copy in journal.channels()) == [
        (0, 0),
        (0, 0),
        (17, 3),
        (100, 1),
    ]
    assert [receipt.amount for receipt in Epochs(journal).waiting(_busiest(journal))] == [0, 20, 3]
    journal.close()


def _busiest(journal: Journal) -> str:
    return max(journal.channels(), key=lambda copy: copy.seq).channel_id


def test_an_older_ledgers_receipts_get_their_shares_and_their_epochs_their_levels(old: str) -> None:
    journal = Journal.open(old)
    assert journal.verify() == 9, "which compares each receipt with its shares"
    for owner in (PAYER, OWNER_A, OWNER_B):
        lines = Statements(journal).page(owner.address, 0, 2**62).lines
        parties = [[PAYER.address, *(owed.share.owner for owed in receipt.owed)] for receipt in journal.receipts()]
        assert len(lines) == sum(names.count(owner.address) for names in parties) > 0
    first = journal.receipts(epoch=1)[0]
    computed: list[Any] = []
    epochs = Epochs(journal, lambda *levels: computed.append(levels))
    proof = epochs.proof(first.call_id, CHAIN_ID)
    assert proof is not None and verify_proof(proof.leaf, proof.steps, bytes.fromhex(proof.root[2:]))
    epochs.store_levels(*computed[0], journal.acquire("new"))
    assert epochs.proof(first.call_id, CHAIN_ID) == proof and len(computed) == 1
    journal.close()


def test_books_without_a_journal_are_brought_up_to_date_too(tmp_path: Path, old: str) -> None:
    """A wallet was funded before any mesh had run: the file has the ledger's tables and nothing else."""
    with sqlite3.connect(old.removeprefix("sqlite:///")) as raw:
        raw.execute("PRAGMA foreign_keys=OFF")
        names = [
            row[0] for row in raw.execute("SELECT name FROM sqlite_master WHERE name GLOB 'journal_*' AND type='table'")
        ]
        for name in names:
            raw.execute(f"DROP TABLE {name}")
    raw.close()
    ledger, journal = SqlLedger.open(old), Journal.open(old)
    assert ledger.verify() == (13, HEAD) and journal.acquire("first") == 1
    ledger.close()
    journal.close()


def test_the_migrated_tables_are_those_that_the_code_describes(ledger_url: str, old: str) -> None:
    for url in (ledger_url, old):
        database = Database(url)
        with database.read() as conn:
            context = MigrationContext.configure(conn, opts={"compare_type": True, "compare_server_default": True})
            assert compare_metadata(context, [books, journal_tables]) == []
        database.close()
    assert migrations.heads() == (migrations.HEAD,)


def test_a_ledger_of_a_newer_version_is_left_alone(ledger_url: str) -> None:
    database = Database(ledger_url)
    with database.write() as conn:
        conn.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    database.close()
    with pytest.raises(DatabaseUnavailable, match="newer version"):
        Database(ledger_url)
