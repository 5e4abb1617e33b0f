"""The journal: gapless, fenced, idempotent; it stores each charge once and never lowers anything."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import logging
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from channels.journal.journal import LEASE_S, Journal, JournalError, StaleToken
from channels.journal.statement import Statements
from channels.receipts import Receipt
from channels.settlement.settler import drain
from tests.channels.conftest import OWNER_A, OWNER_B
from tests.examples import examples

pytestmark = pytest.mark.conformance


def refused(code: str):
    return pytest.raises(JournalError, check=lambda error: error.code == code)


def snapshot_of(world, salt: int = 0):
    return next(copy for copy in world.journal.channels() if copy.channel_id == world.identity(salt))


def test_charges_become_receipts_and_raise_the_copy(world):
    world.open_channel(100)
    entries = [world.entry(10), world.entry(0), world.entry(5)]
    assert world.journal.append(3, entries, world.token) == 3
    copy = snapshot_of(world)
    assert (copy.charged, copy.seq, copy.incarnation, copy.proof_maximum) == (15, 3, 1, 15)
    assert copy.config == world.config() and copy.proof_signature == world.voucher(15).signature
    assert world.journal.drained(3) == "3-0" and world.journal.drained(4) == "0-0"
    stored = world.journal.receipts(world.identity())
    assert [(receipt.seq, receipt.before, receipt.after) for receipt in stored] == [
        (1, 0, 10),
        (2, 10, 10),
        (3, 10, 15),
    ]
    assert world.journal.stored(entries[2][1]["call"]).receipt == stored[2]
    assert world.journal.stored("0x" + "00" * 32) is None
    keyed = world.journal.charged_keys(world.identity())
    assert keyed == [(row["key"], row["digest"]) for _, row in entries if row["key"]]
    for _, row in entries:
        record = world.journal.record(row["call"])
        assert record is not None and record.amount == int(row["amount"]) and record.body == row["body"]
        numbers = (record.incarnation, record.seq, record.before, record.after, record.at_ms)
        again = Receipt.of_charge(row["channel"], record.call_id, *numbers, record.body)
        assert again == world.journal.stored(row["call"]).receipt
    assert world.journal.record("0x" + "00" * 32) is None
    assert world.journal.verify() == 3


def test_a_lower_ceiling_drained_late_does_not_lower_the_proof(world):
    world.open_channel(100)
    world.charge(10, maximum=80)
    world.charge(10, maximum=20)
    assert snapshot_of(world).proof_maximum == 80
    assert snapshot_of(world).proof_signature == world.voucher(80).signature


def test_draining_again_is_harmless(world):
    world.open_channel(100)
    entries = [world.entry(10), world.entry(5)]
    assert world.journal.append(0, entries, world.token) == 2
    before = snapshot_of(world)
    assert world.journal.append(0, entries, world.token) == 0
    assert world.journal.append(0, [*entries, world.entry(1)], world.token) == 1
    assert world.journal.append(0, entries[:1], world.token) == 0
    assert snapshot_of(world) == replace(
        before, charged=16, seq=3, proof_maximum=16, proof_signature=world.voucher(16).signature
    )
    assert world.journal.drained(0) == "3-0"
    twice = world.entry(2)
    assert world.journal.append(0, [twice, twice], world.token) == 1


def test_what_cannot_be_true_is_refused_whole(world):
    world.open_channel(100)
    world.charge(10)
    first = world.journal.charged_keys(world.identity())[0][0]
    good = world.entry(5)
    later = world.entry(5)

    def changed(**fields: str):
        return later[0], later[1] | fields

    def body(**fields: object) -> str:
        return json.dumps(json.loads(later[1]["body"]) | fields)

    cases = [
        ("journal_gap", [later]),
        ("journal_gap", [good, changed(before="16", after="21")]),
        ("journal_conflict", [good, changed(seq="2")]),
        ("journal_conflict", [good, changed(seq="1")]),
        ("journal_conflict", [good, changed(incarnation="0")]),
        ("journal_conflict", [good, changed(call=good[1]["call"], key="")]),
        ("journal_conflict", [good, changed(key=first)]),
        ("journal_unknown_channel", [good, changed(channel=world.identity(8))]),
        ("journal_entry_invalid", [good, changed(amount="6")]),
        ("journal_entry_invalid", [good, changed(seq="x")]),
        ("journal_entry_invalid", [good, changed(at_ms=str(2**63))]),
        ("journal_entry_invalid", [good, changed(proof_sig="0xzz")]),
        ("journal_entry_invalid", [good, changed(body="[]")]),
        ("journal_entry_invalid", [good, changed(body=body(shares=[]))]),
        ("journal_entry_invalid", [good, changed(body=body(model=7))]),
        ("journal_entry_invalid", [good, changed(body=body(units=1.5))]),
        ("journal_entry_invalid", [good, ("4-0", {})]),
    ]
    for code, entries in cases:
        with refused(code):
            world.journal.append(0, entries, world.token)
        assert (snapshot_of(world).charged, world.journal.drained(0)) == (10, "1-0"), code
    assert world.journal.append(0, [good, later], world.token) == 2


def test_a_lease_keeps_others_waiting_until_it_ends_or_the_clock_steps_back(world):
    journal = Journal.open(world.journal_url, world.clock)
    first = journal.lease("first")
    assert first > world.token and journal.leased() == "first"
    assert journal.lease("second") is None
    world.clock.now_s += LEASE_S - 1
    journal.renew(first)
    world.clock.now_s += LEASE_S - 1
    assert journal.lease("second") is None
    assert journal.lease("first") == first + 1, "its own holder, started again, need not wait"
    world.clock.now_s += LEASE_S
    assert journal.leased() is None
    second = journal.lease("second")
    assert second == first + 2
    with pytest.raises(StaleToken):
        journal.renew(first)
    world.clock.now_s -= 1_000_000
    third = journal.lease("third")
    assert third == second + 1
    journal.renew(third, 0)
    assert journal.lease("fourth") == third + 1
    journal.close()


def test_an_entry_that_cannot_be_true_is_set_aside_and_what_is_behind_it_goes_on(world, caplog):
    for salt in (0, 1):
        world.open_channel(1_000, salt)
    good = [world.entry(3), world.entry(5, salt=1)]
    stream_id, fields = world.entry(4)
    false = [
        (stream_id, good[0][1] | {"at_ms": "5"}),
        ("4-0", {"channel": "nonsense"}),
        ("5-0", fields | {"key": "a patient's name"}),
        ("6-0", fields | {"proof_sig": "0x" + "00" * 66}),
        ("7-0", fields | {"channel": world.identity(7)}),
    ]
    world.stream = 8
    stream = Stream([*good, *false, ("8-0", fields), world.entry(6, salt=1)], world.journal)
    with caplog.at_level(logging.ERROR, "channels.settlement.settler"):
        assert asyncio.run(drain(stream, world.journal, world.token, buckets=1)) == 4
    assert stream.entries == [] and world.journal.drained(0) == "9-0"
    letters = world.journal.dead_letters()
    assert [entry.stream_id for entry in letters] == ["3-0", "4-0", "5-0", "6-0", "7-0"]
    assert [entry.code.removeprefix("journal_") for entry in letters] == [
        "conflict",
        "entry_invalid",
        "entry_invalid",
        "entry_invalid",
        "unknown_channel",
    ]
    assert [dict(entry.fields) for entry in letters] == [entry for _, entry in false]
    assert caplog.text.count("ALARM") == 5 and "patient" not in caplog.text + repr(letters)
    assert (snapshot_of(world).charged, snapshot_of(world, 1).charged) == (7, 11)
    assert asyncio.run(drain(stream, world.journal, world.token, buckets=1)) == 0
    with pytest.raises(IntegrityError, match="append-only"), world.journal.write(world.token) as conn:
        conn.execute(text("DELETE FROM journal_aside"))


def test_a_lost_charge_of_nothing_is_a_gap_too(world):
    world.open_channel(100)
    world.charge(10)
    world.entry(0)  # never drained: the amounts still join, the numbers do not
    with refused("journal_gap"):
        world.journal.append(0, [world.entry(5)], world.token)


def test_a_rebuilt_store_goes_on_in_a_new_incarnation(world):
    world.open_channel(100)
    world.charge(10)
    stream, fields = world.entry(5)
    world.journal.append(0, [(stream, fields | {"incarnation": "2"})], world.token)
    assert (snapshot_of(world).incarnation, snapshot_of(world).seq) == (2, 2)


def test_a_channel_is_forgotten_only_without_a_receipt_and_by_the_newest_treasury(world):
    world.open_channel(100)
    with pytest.raises(StaleToken):
        world.journal.forget_channel(world.identity(), world.token - 1)
    world.charge(0)
    world.journal.forget_channel(world.identity(), world.token)
    assert snapshot_of(world).seq == 1
    world.open_channel(100, salt=1)
    world.journal.forget_channel(world.identity(1), world.token)
    assert world.journal.channel(world.identity(1)) is None


def test_an_old_treasury_writes_nothing(world):
    world.open_channel(100)
    entry = world.entry(10)
    newer = world.journal.acquire("second")
    assert newer > world.token
    for write in (
        lambda: world.journal.append(0, [entry], world.token),
        lambda: world.journal.remember_channel(world.config(1), world.identity(1), world.token),
        lambda: world.journal.check(world.token),
        lambda: world.journal.check(newer + 1),
    ):
        with pytest.raises(StaleToken):
            write()
    assert snapshot_of(world).charged == 0 and world.journal.receipts() == []
    assert world.journal.append(0, [entry], newer) == 1
    other = Journal.open(world.journal_url)
    assert other.acquire("third") == newer + 1
    other.close()


def test_receipts_cannot_be_changed_and_a_change_from_outside_is_found(world):
    world.open_channel(100)
    world.charge(10, 5)
    with pytest.raises(IntegrityError, match="append-only"), world.journal.write(world.token) as conn:
        conn.execute(text("DELETE FROM journal_receipt"))
    with world.journal.write(world.token) as conn:
        where = " ON journal_receipt" if conn.dialect.name == "postgresql" else ""
        conn.execute(text(f"DROP TRIGGER journal_receipt_no_update{where}"))
        conn.execute(text("UPDATE journal_receipt SET amount = 9 WHERE number = 1"))
    with refused("journal_tampered"):
        world.journal.verify()


class Stream:
    """A bucket's stream that remembers the order of what was done to it."""

    def __init__(self, entries, journal) -> None:
        self.entries, self.journal, self.trims = entries, journal, []

    async def read_journal(self, bucket: int, after: str, count: int):
        if bucket:
            return []
        behind = [entry for entry in self.entries if int(entry[0][:-2]) > int(after[:-2])]
        return behind[:count]

    async def trim_journal(self, bucket: int, upto: str) -> None:
        assert self.journal.drained(bucket) == upto, "trimmed before it was committed"
        self.trims.append(upto)
        self.entries = [entry for entry in self.entries if int(entry[0][:-2]) > int(upto[:-2])]


def test_drain_commits_first_and_trims_after(world):
    world.open_channel(1_000)
    stream = Stream([world.entry(3) for _ in range(7)], world.journal)
    assert asyncio.run(drain(stream, world.journal, world.token, buckets=2, count=3)) == 7
    assert stream.trims == ["3-0", "6-0", "7-0"] and stream.entries == []
    assert snapshot_of(world).charged == 21
    assert asyncio.run(drain(stream, world.journal, world.token, buckets=2, count=3)) == 0


@settings(max_examples=examples(25))
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 30)), max_size=12), st.data())
def test_any_overlapping_pages_store_each_charge_once(make_world, plan, data):
    world = make_world()
    for salt in range(3):
        world.open_channel(10, salt)
    entries = [world.entry(amount, salt) for salt, amount in plan]
    done = 0
    while done < len(entries):
        start = data.draw(st.integers(0, done))
        end = data.draw(st.integers(done + 1, len(entries)))
        assert world.journal.append(0, entries[start:end], world.token) == end - done
        done = end
    receipts = world.journal.receipts()
    assert [receipt.call_id for receipt in receipts] == [fields["call"] for _, fields in entries]
    assert sum(receipt.amount for receipt in receipts) == sum(copy.charged for copy in world.journal.channels())
    assert world.journal.verify() == len(entries)
    world.close()


def test_a_statements_line_names_its_carrier_and_repeats_it_as_role_until_0_3(world):
    world.open_channel(100)
    world.charge(30)
    page = Statements(world.journal).page(OWNER_A.address, 0, 2**62)
    (line,) = page.to_json()["lines"]
    assert (line["carrier"], line["role"]) == ("knowledge", "knowledge")
    (row,) = csv.DictReader(io.StringIO(page.to_csv()))
    assert (row["carrier"], row["role"], row["amount"]) == ("knowledge", "knowledge", "10")


SHARES_CHANGED = {
    "owner": "UPDATE journal_share SET owner = 'somebody' WHERE receipt = 2 AND position = 1",
    "amount": "UPDATE journal_share SET amount = amount + 1 WHERE receipt = 2 AND position = 0",
    "carrier": "UPDATE journal_share SET carrier = 'operator' WHERE receipt = 2 AND position = 2",
    "missing": "DELETE FROM journal_share WHERE receipt = 2 AND position = 2",
    "one more": "INSERT INTO journal_share VALUES (2, 9, 'somebody', 'data', 1)",
}


@pytest.mark.parametrize("change", SHARES_CHANGED.values(), ids=SHARES_CHANGED)
def test_a_share_that_does_not_agree_with_its_receipt_is_found(world, change):
    world.open_channel(100)
    world.charge(10, 20, 5)
    assert world.journal.verify() == 3
    if not change.startswith("INSERT"):
        with pytest.raises(IntegrityError, match="append-only"), world.journal.write(world.token) as conn:
            conn.execute(text(change))
    with world.journal.write(world.token) as conn:
        where = " ON journal_share" if conn.dialect.name == "postgresql" else ""
        for verb in ("update", "delete"):
            conn.execute(text(f"DROP TRIGGER journal_share_no_{verb}{where}"))
        conn.execute(text(change))
    with pytest.raises(JournalError, match="shares of receipt 2"):
        world.journal.verify()


def test_a_statement_is_paged_by_receipts_and_has_a_line_for_each_carrier(world):
    world.open_channel(100)
    both = (("knowledge", OWNER_A.address, 5_000), ("compute", OWNER_A.address, 5_000))
    world.charge(10, 20, 30, shares=both)
    pages, after = [], 0
    while after is not None:
        pages.append(Statements(world.journal).page(OWNER_A.address, 0, 2**62, after, count=2))
        after = pages[-1].after
    assert [[(line.carrier, line.amount) for line in page.lines] for page in pages] == [
        [("knowledge", 5), ("compute", 5), ("knowledge", 10), ("compute", 10)],
        [("knowledge", 15), ("compute", 15)],
    ]
    assert [page.charged + page.earned for page in pages] == [30, 30]
    assert Statements(world.journal).page(OWNER_B.address, 0, 2**62).lines == ()
