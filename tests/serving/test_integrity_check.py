"""A change of the books by hand raises an alarm: the treasury verifies them every hour."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from pydantic import SecretStr

from channels.journal.journal import Journal
from channels.ledger.sql_ledger import SqlLedger
from channels.protocol.signer import Signer
from serving.treasury.integrity_check import PAUSE_S, IntegrityCheck


def read(check: IntegrityCheck) -> bool:
    async def once() -> None:
        check.poll()
        assert check.reading is not None
        await check.reading

    asyncio.run(once())
    return check.sound


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def an_hour_later(check: IntegrityCheck, clock: Clock) -> bool:
    clock.now_s += PAUSE_S + 1
    return read(check)


def test_a_balance_changed_by_hand_raises_the_alarm_and_a_mended_one_ends_it(tmp_path: Path) -> None:
    file = tmp_path / "ledger.db"
    with closing(SqlLedger.open(f"sqlite:///{file}")) as ledger:
        ledger.fund(Signer(b"\1" * 32).address, 500)
    clock = Clock()
    check = IntegrityCheck(SecretStr(f"sqlite:///{file}"), ledger=True, clock=clock)
    assert read(check)
    with closing(sqlite3.connect(file)) as raw, raw:
        triggers = raw.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for name, _ in triggers:
            raw.execute(f"DROP TRIGGER {name}")
        raw.execute("UPDATE ledger_balance SET amount = amount + 1 WHERE account LIKE 'wallet:%'")
    assert not an_hour_later(check, clock)
    with closing(sqlite3.connect(file)) as raw, raw:
        raw.execute("UPDATE ledger_balance SET amount = amount - 1 WHERE account LIKE 'wallet:%'")
        for _, sql in triggers:
            raw.execute(sql)
    assert an_hour_later(check, clock)


def test_books_are_read_once_an_hour_and_a_chains_have_no_ledger_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path / 'journal.db'}"
    Journal.open(url).close()
    monkeypatch.setattr(SqlLedger, "open", None)  # a call would fail
    check = IntegrityCheck(SecretStr(url), ledger=False)
    assert read(check)
    first = check.reading
    check.poll()
    assert check.reading is first
