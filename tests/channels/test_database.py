"""The database in trouble: what is said, that nothing is lost, and that work goes on by itself afterwards."""

from __future__ import annotations

import asyncio
import traceback
from pathlib import Path

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import IntegrityError

from channels.errors import ChannelError
from channels.journal.journal import Journal
from channels.ledger.sql_ledger import SqlLedger
from channels.protocol.signer import Signer
from channels.settlement.settler import drain
from channels.sql import Database, DatabaseUnavailable

pytestmark = pytest.mark.conformance
PAYER, OWNER_A, OWNER_B = (Signer(bytes([number] * 32)) for number in (2, 3, 4))


class Stream:
    """The store's journal of bucket 0, kept until it is trimmed."""

    def __init__(self, entries) -> None:
        self.entries = entries

    async def read_journal(self, bucket: int, after: str, count: int):
        return [] if bucket else [entry for entry in self.entries if int(entry[0][:-2]) > int(after[:-2])][:count]

    async def trim_journal(self, bucket: int, upto: str) -> None:
        self.entries = [entry for entry in self.entries if int(entry[0][:-2]) > int(upto[:-2])]


def unavailable(what: str):
    return pytest.raises(DatabaseUnavailable, match=what)


def earned(world) -> int:
    return world.ledger.earnings(OWNER_A.address) + world.ledger.earnings(OWNER_B.address)


def test_a_read_only_file_is_read_and_verified_but_not_written(make_world, tmp_path: Path) -> None:
    path = tmp_path / "mesh.db"
    world = make_world(f"sqlite:///{path}", f"sqlite:///{path}")
    world.open_channel(100)
    world.charge(10)
    world.close()
    url = f"sqlite:///file:{path}?mode=ro&uri=true"
    ledger, journal = SqlLedger.open(url), Journal.open(url)
    assert ledger.verify()[0] == 3 and journal.verify() == 1
    with unavailable("read-only: give this user the right"):
        ledger.fund(PAYER.address, 1)
    with unavailable("read-only"):
        journal.acquire("treasury")
    ledger.close()
    journal.close()
    with unavailable("cannot be opened"):
        SqlLedger.open(f"sqlite:///{tmp_path / 'nowhere' / 'mesh.db'}")


def test_a_full_disk_loses_nothing_and_settlement_goes_on_when_there_is_room(make_world, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'mesh.db'}"
    world = make_world(url, url)
    world.open_channel(100_000)
    databases = world.ledger.database, world.journal.database

    def limit(pages: int) -> None:
        for database in databases:
            with database.write() as conn:
                conn.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

    with world.ledger.database.read() as conn:
        pages = conn.exec_driver_sql("PRAGMA page_count").scalar()
    limit(pages)
    charges = [world.entry(5) for _ in range(300)]
    stream = Stream(list(charges))
    with unavailable("disk is full: nothing is lost"):
        asyncio.run(drain(stream, world.journal, world.token, buckets=1))
    assert stream.entries == charges and world.journal.drained(0) == "0-0" and world.journal.receipts() == []
    limit(pages + 200)
    assert asyncio.run(drain(stream, world.journal, world.token, buckets=1)) == 300 and stream.entries == []
    with world.ledger.database.read() as conn:
        pages = conn.exec_driver_sql("PRAGMA page_count").scalar()
    limit(pages)
    with unavailable("disk is full"):
        for _ in range(500):
            world.settler().settle(world.token)
            world.charge(5)
    limit(pages + 1_000)
    while world.settler().settle(world.token).epoch is not None:
        pass
    copy = next(world.journal.channels())
    assert earned(world) == copy.charged == world.ledger.channel(world.identity()).total_claimed
    world.ledger.verify()
    world.journal.verify()
    world.close()


def test_postgresql_restarted_in_mid_settlement_moves_nothing_twice(postgresql, make_world) -> None:
    """The server is killed at a later statement of a settlement each time, until one ends before it."""
    for dies_at in range(3, 300, 11):
        url = postgresql.database()
        world = make_world(url, url)
        world.open_channel(1_000)
        world.charge(10, 20)
        count = 0

        def killer(conn, cursor, statement, *rest, at: int = dies_at) -> None:
            nonlocal count
            count += 1
            if count == at:
                postgresql.kill()

        engines = [database.engine for database in (world.ledger.database, world.journal.database)]
        for engine in engines:
            event.listen(engine, "before_cursor_execute", killer)
        try:
            world.settler().settle(world.token)
            survived = count < dies_at
            assert survived
        except DatabaseUnavailable as error:
            assert "restarted: nothing is lost" in str(error)
            survived = False
        for engine in engines:
            event.remove(engine, "before_cursor_execute", killer)
        if not survived:
            postgresql.start()
        while world.settler().settle(world.token).epoch is not None:
            pass
        assert earned(world) == 30 == world.ledger.channel(world.identity()).total_claimed, dies_at
        world.ledger.verify()
        world.journal.verify()
        world.close()
        postgresql.drop(url)
        if survived:
            return
    raise AssertionError("the settlement never ended")


def test_a_lost_connection_is_found_and_replaced(postgresql) -> None:
    url = postgresql.database()
    ledger = SqlLedger.open(url)
    ledger.fund(PAYER.address, 5)
    postgresql.kill()
    with unavailable("cannot be reached"):
        ledger.fund(PAYER.address, 5)
    postgresql.start()
    ledger.fund(PAYER.address, 5)
    assert ledger.wallet(PAYER.address) == 10
    ledger.close()
    postgresql.drop(url)


def test_a_reader_sees_one_moment_while_others_write(ledger_url: str) -> None:
    ledger, other = SqlLedger.open(ledger_url), SqlLedger.open(ledger_url)
    with ledger.database.read() as conn:
        before = conn.scalar(text("SELECT count(*) FROM ledger_transaction"))
        other.fund(PAYER.address, 1)
        assert conn.scalar(text("SELECT count(*) FROM ledger_transaction")) == before
    assert ledger.wallet(PAYER.address) == 1
    ledger.close()
    other.close()


def test_an_error_shows_no_values(ledger_url: str) -> None:
    ledger = SqlLedger.open(ledger_url)
    with pytest.raises(IntegrityError) as caught, ledger.database.write() as conn:
        conn.execute(
            text("INSERT INTO ledger_balance (account, amount) VALUES (:account, -5)"), {"account": "secret-value"}
        )
    assert "secret-value" not in str(caught.value)
    ledger.close()


def test_another_engine_is_refused_in_words() -> None:
    for url in ("mysql://user:password@somewhere/ledger", "password, not a URL"):
        with pytest.raises(ChannelError, match=r"use sqlite:///file or postgresql\+psycopg") as caught:
            Database(url)
        assert caught.value.code == "ledger_url" and "password" not in "".join(traceback.format_exception(caught.value))
