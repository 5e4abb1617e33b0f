"""Every ledger: x402's rules and idempotence. The SQL ledger: double entry, books that show any change from outside."""

# ruff: noqa: S608 - the tables are named in this file
from __future__ import annotations

import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from channels.errors import X402, LedgerError
from channels.ledger.books import BrokenBooks, Entry, post
from channels.ledger.ledger import Credit
from channels.ledger.sql_ledger import SqlLedger
from channels.protocol.digests import finalize_digest, initiate_digest
from channels.protocol.signer import Signer
from tests.examples import examples

pytestmark = pytest.mark.conformance
MESH, PAYER, OWNER_A, OWNER_B = (Signer(bytes([number] * 32)) for number in (1, 2, 3, 4))
RECEIVER = Signer(bytes([5] * 32)).address


def word32(number: int) -> str:
    return "0x" + number.to_bytes(32, "big").hex()


def refused(code: str):
    return pytest.raises(LedgerError, check=lambda error: error.code in (code, X402 + code))


def sums(world) -> dict[str, int]:
    with world.ledger.database.read() as conn:
        return dict(conn.execute(text("SELECT account, amount FROM ledger_balance")).all())


def test_reopened_it_is_the_same_ledger_and_another_is_another(world, tmp_path):
    again = SqlLedger.open(world.url)
    other = SqlLedger.open(f"sqlite:///{tmp_path / 'other.db'}")
    assert again.terms == world.ledger.terms
    assert other.terms.chain_id != again.terms.chain_id and other.terms.asset != again.terms.asset
    assert 2**31 <= again.terms.chain_id < 2**52
    assert again.terms.network == f"eip155:{again.terms.chain_id}"
    again.close()
    other.close()


def test_deposit_moves_once_whatever_is_lost(anywhere):
    anywhere.fund(PAYER.address, 100)
    authorised = anywhere.authorise(60)
    first = anywhere.ledger.deposit(anywhere.config(), authorised)
    anywhere.clock.now_s += 10_000  # the retry comes after the window closed
    again = anywhere.ledger.deposit(anywhere.config(), authorised)
    assert first.transaction == again.transaction and first.channel.balance == again.channel.balance == 60
    assert anywhere.ledger.wallet(PAYER.address.lower()) == 40
    assert anywhere.ledger.channel(anywhere.identity()) == again.channel
    with refused("already_used"):
        anywhere.ledger.deposit(anywhere.config(), anywhere.authorise(10))  # the same nonce for another amount
    second = anywhere.ledger.deposit(anywhere.config(), anywhere.authorise(10, once=1))
    assert second.channel.balance == 70 and second.channel.version > again.channel.version


def test_deposit_refusals_move_nothing(anywhere):
    anywhere.fund(PAYER.address, 100)
    config, good = anywhere.config(), anywhere.authorise(50)
    before = anywhere.holdings()
    cases = [
        ("receive_authorization_signature", config, anywhere.authorise(50, signer=MESH)),
        ("receive_authorization_signature", config, replace(good, amount=51)),
        ("receive_authorization_signature", replace(config, salt=word32(9)), good),
        ("token_mismatch", replace(config, token=RECEIVER), good),
        ("withdraw_delay_out_of_range", replace(config, withdraw_delay=899), good),
        ("withdraw_delay_out_of_range", replace(config, withdraw_delay=2_592_001), good),
        ("authorizer_not_configured", replace(config, receiver_authorizer="0x" + "00" * 20), good),
        ("insufficient_balance", config, anywhere.authorise(101)),
        ("deposit_payload", config, anywhere.authorise(0)),
        ("balance_limit", config, anywhere.authorise(2**53)),
    ]
    for code, channel, deposit in cases:
        with refused(code):
            anywhere.ledger.deposit(channel, deposit)
    with refused("payload_authorization_valid_after"):
        anywhere.ledger.deposit(config, anywhere.authorise(50, shift_s=60))
    with refused("payload_authorization_valid_before"):
        anywhere.ledger.deposit(config, anywhere.authorise(50, shift_s=-100))
    assert anywhere.holdings() == before
    assert anywhere.ledger.channel(anywhere.identity()) is None


def test_claim_moves_what_the_voucher_allows_and_old_totals_are_no_ops(anywhere):
    anywhere.open_channel(100)
    row = anywhere.row(30, maximum=40)
    first = anywhere.ledger.claim([row], anywhere.sign_claim(row))
    again = anywhere.ledger.claim([row], anywhere.sign_claim(row))
    assert (first.moved, again.moved) == ((30,), (0,)) and first.transaction == again.transaction
    # A row at or below the recorded total is skipped before its signature is looked at, as in the contract.
    old = anywhere.row(30, signer=MESH)
    assert anywhere.ledger.claim([old], anywhere.sign_claim(old)).moved == (0,)
    more = anywhere.row(100)
    assert anywhere.ledger.claim([more], anywhere.sign_claim(more)).moved == (70,)
    channel = anywhere.ledger.channel(anywhere.identity())
    assert (channel.balance, channel.total_claimed, channel.left) == (100, 100, 0)
    assert anywhere.claimed() == 100


def test_one_bad_row_reverts_the_batch(anywhere):
    anywhere.open_channel(100, salt=1)
    anywhere.open_channel(100, salt=2)
    good = anywhere.row(50, salt=1)
    foreign = replace(anywhere.row(1, salt=2), voucher=anywhere.voucher(1, salt=1))
    cases = [
        ("charge_exceeds_signed_cumulative", anywhere.row(11, salt=2, maximum=10)),
        ("cumulative_exceeds_balance", anywhere.row(101, salt=2)),
        ("voucher_signature", anywhere.row(10, salt=2, signer=MESH)),
        ("channel_not_found", anywhere.row(10, salt=3)),
        ("channel_id_mismatch", foreign),
    ]
    for code, bad in cases:
        with refused(code):
            anywhere.ledger.simulate_claim([good, bad])
        with refused(code):
            anywhere.ledger.claim([good, bad], anywhere.sign_claim(good, bad))
    with refused("authorizer_address_mismatch"):
        anywhere.ledger.claim([good], anywhere.sign_claim(good, signer=PAYER))
    with refused("authorizer_address_mismatch"):
        anywhere.ledger.claim([good], anywhere.sign_claim(good, good))
    with refused("claim_payload"):
        anywhere.ledger.claim([], b"")
    assert anywhere.ledger.channel(anywhere.identity(1)).total_claimed == 0
    anywhere.ledger.simulate_claim([good])
    assert anywhere.ledger.claim([good, good], anywhere.sign_claim(good, good)).moved == (50, 0)


def test_split_pays_owners_once_an_epoch(anywhere):
    anywhere.open_channel(100)
    row = anywhere.row(90)
    anywhere.ledger.claim([row], anywhere.sign_claim(row))
    credits = [
        Credit(OWNER_A.address, "knowledge", "chdr", 30),
        Credit(OWNER_A.address, "data", "chdr", 20),
        Credit(OWNER_B.address, "compute", "chdr", 40),
    ]
    done = anywhere.ledger.split(1, word32(1), RECEIVER, credits)
    assert done == anywhere.ledger.split(1, word32(1), RECEIVER, credits)
    assert anywhere.ledger.earnings(OWNER_A.address) == 50
    assert anywhere.ledger.earned(OWNER_A.address) == [credits[1], credits[0]]
    assert anywhere.ledger.payouts(1) == anywhere.ledger.payouts(1, RECEIVER) == credits
    assert anywhere.ledger.payouts(2) == []
    assert anywhere.ledger.root(1, RECEIVER) == word32(1) and anywhere.ledger.root(2, RECEIVER) is None
    for changed in (credits[:2], [replace(credits[0], amount=31), *credits[1:]]):
        with refused("already_used"):
            anywhere.ledger.split(1, word32(1), RECEIVER, changed)
    with refused("already_used"):
        anywhere.ledger.split(1, word32(2), RECEIVER, credits)
    with refused("split_exceeds_claimed"):
        anywhere.ledger.split(2, word32(2), RECEIVER, credits)
    with refused("split_invalid"):
        anywhere.ledger.split(2, word32(2), RECEIVER, [replace(credits[0], amount=-1)])
    anywhere.verify()


def test_payout_needs_the_owners_signature_and_happens_once_a_nonce(anywhere):
    anywhere.open_channel(100)
    row = anywhere.row(90)
    anywhere.ledger.claim([row], anywhere.sign_claim(row))
    anywhere.ledger.split(1, word32(1), RECEIVER, [Credit(OWNER_A.address, "data", "chdr", 90)])
    owner, to = OWNER_A.address, OWNER_B.address

    def sign(amount: int, nonce: int, signer: Signer = OWNER_A) -> bytes:
        return signer.sign(anywhere.ledger.terms.payout_digest(owner, to, amount, nonce))

    done = anywhere.ledger.payout(owner, to, 40, 7, sign(40, 7))
    assert anywhere.ledger.payout(owner, to, 40, 7, sign(40, 7)) == done
    assert (anywhere.ledger.earnings(owner), anywhere.ledger.wallet(to)) == (50, 40)
    assert anywhere.ledger.earned(owner) == [Credit(owner, "data", "chdr", 90)]
    with refused("already_used"):
        anywhere.ledger.payout(owner, to, 41, 7, sign(41, 7))
    with refused("payout_signature"):
        anywhere.ledger.payout(owner, to, 10, 8, sign(10, 8, MESH))
    for amount in (51, 0):
        with refused("payout_amount"):
            anywhere.ledger.payout(owner, to, amount, 9, sign(amount, 9))


def test_refund_moves_unclaimed_money_once_a_nonce(anywhere):
    config = anywhere.open_channel(100)
    row = anywhere.row(30)
    anywhere.ledger.claim([row], anywhere.sign_claim(row))
    with refused("refund_amount_invalid"):
        anywhere.ledger.refund(config, 71, 0, anywhere.sign_refund(71, 0))
    with refused("authorizer_address_mismatch"):
        anywhere.ledger.refund(config, 70, 0, anywhere.sign_refund(69, 0))
    done = anywhere.ledger.refund(config, 60, 0, anywhere.sign_refund(60, 0))
    assert (done.channel.balance, done.channel.refund_nonce, done.channel.left) == (40, 1, 10)
    for nonce in (0, 2):
        with refused("refund_nonce"):
            anywhere.ledger.refund(config, 5, nonce, anywhere.sign_refund(5, nonce))
    anywhere.ledger.refund(config, 10, 1, anywhere.sign_refund(10, 1))
    with refused("refund_no_balance"):
        anywhere.ledger.refund(config, 1, 2, anywhere.sign_refund(1, 2))
    with refused("channel_not_found"):
        anywhere.ledger.refund(anywhere.config(9), 1, 0, anywhere.sign_refund(1, 0, salt=9))
    assert anywhere.ledger.wallet(PAYER.address) == 70


def test_a_withdrawal_waits_its_delay_and_gives_what_claims_left(anywhere):
    anywhere.open_channel(100)
    with refused("withdraw_signature"):
        anywhere.start_withdraw(100, 1, MESH)
    with refused("withdraw_amount"):
        anywhere.start_withdraw(101, 1)
    with refused("withdraw_not_pending"):
        anywhere.finish_withdraw(1)
    assert anywhere.ledger.withdrawing() == []
    anywhere.start_withdraw(100, 1)
    begun = anywhere.ledger.channel(anywhere.identity())
    assert begun.withdraw_amount == 100 and begun.withdraw_requested_at_s == int(anywhere.clock.now_s)
    assert anywhere.ledger.withdrawing() == [begun]
    with refused("withdraw_pending"):
        anywhere.start_withdraw(50, 2)
    anywhere.clock.now_s += 600
    with refused("withdraw_too_early"):
        anywhere.finish_withdraw(3)
    row = anywhere.row(30)
    anywhere.ledger.claim([row], anywhere.sign_claim(row))
    anywhere.clock.now_s += 300
    anywhere.finish_withdraw(3)
    done = anywhere.ledger.channel(anywhere.identity())
    assert (done.balance, done.left, done.withdraw_amount) == (30, 0, 0) and done.version > begun.version
    assert anywhere.ledger.withdrawing() == [] and anywhere.ledger.wallet(PAYER.address) == 70
    anywhere.verify()


def test_a_signed_withdrawal_asked_for_again_is_done_once(world):
    config, identity = world.open_channel(100), world.identity()
    start = PAYER.sign(initiate_digest(world.chain_id, identity, 100, 1))
    finish = PAYER.sign(finalize_digest(world.chain_id, identity, 3))
    begun = world.ledger.initiate_withdraw(config, 100, 1, start)
    assert begun == world.ledger.initiate_withdraw(config, 100, 1, start)
    world.clock.now_s += 899
    with refused("withdraw_too_early"):
        world.ledger.finalize_withdraw(config, 3, finish)
    world.clock.now_s += 1
    done = world.ledger.finalize_withdraw(config, 3, finish)
    assert done == world.ledger.finalize_withdraw(config, 3, finish) and world.ledger.wallet(PAYER.address) == 100


def test_unbalanced_or_overdrawn_entries_leave_no_trace(world):
    head = world.ledger.verify()
    with pytest.raises(ValueError, match="sum to 0"), world.ledger.database.write() as conn:
        post(conn, "fund", 0, None, {}, [Entry("mint", -2), Entry("wallet:x", 1)])
    with pytest.raises(IntegrityError), world.ledger.database.write() as conn:
        post(conn, "fund", 0, None, {}, [Entry("wallet:x", -1), Entry("wallet:y", 1)])
    assert world.ledger.verify() == head
    with refused("amount_invalid"):
        world.ledger.fund(PAYER.address, 2**53)
    with refused("address_invalid"):
        world.ledger.fund("nobody", 1)


steps = st.lists(
    st.tuples(st.sampled_from(["deposit", "claim", "refund", "withdraw"]), st.integers(0, 2), st.integers(-1, 120)),
    max_size=25,
)


@settings(max_examples=examples(25))
@given(steps)
def test_conservation_whatever_is_asked(make_world, plan):
    world = make_world()
    world.ledger.fund(PAYER.address, 500)
    seen = {"deposit": 0, "claim": 0, "refund": 0, "withdraw": 0}
    for once, (kind, salt, amount) in enumerate(plan):
        config, channel = world.config(salt), world.ledger.channel(world.identity(salt))
        try:
            if kind == "deposit":
                world.ledger.deposit(config, world.authorise(max(amount, 0), salt, once))
                seen[kind] += amount
            elif kind == "claim":
                row = world.row(max(amount, 0), salt)
                seen[kind] += sum(world.ledger.claim([row], world.sign_claim(row)).moved)
            elif kind == "refund":
                nonce = channel.refund_nonce if channel else 0
                world.ledger.refund(config, max(amount, 0), nonce, world.sign_refund(max(amount, 0), nonce, salt))
                seen[kind] += amount
            else:
                identity, wallet = world.identity(salt), world.ledger.wallet(PAYER.address)
                sign = PAYER.sign(initiate_digest(world.chain_id, identity, max(amount, 0), once))
                world.ledger.initiate_withdraw(config, max(amount, 0), once, sign)
                world.clock.now_s += 900
                sign = PAYER.sign(finalize_digest(world.chain_id, identity, 1_000 + once))
                world.ledger.finalize_withdraw(config, 1_000 + once, sign)
                seen[kind] += world.ledger.wallet(PAYER.address) - wallet
        except LedgerError:
            pass
        channels = [world.ledger.channel(world.identity(salt)) for salt in range(3)]
        left = sum(channel.left for channel in channels if channel)
        assert seen["deposit"] == seen["claim"] + seen["refund"] + seen["withdraw"] + left
        assert all(0 <= channel.total_claimed <= channel.balance for channel in channels if channel)
        held = sums(world)
        assert sum(held.values()) == 0
        assert all(amount >= 0 for account, amount in held.items() if account != "mint")
    world.ledger.verify()
    world.close()


def test_the_database_refuses_to_change_what_is_written(world):
    world.open_channel(10)
    for table in ("ledger_transaction", "ledger_entry"):
        column = "id" if table == "ledger_transaction" else "position"
        for statement in (f"UPDATE {table} SET {column} = {column}", f"DELETE FROM {table}"):
            with pytest.raises(IntegrityError, match="append-only"), world.ledger.database.write() as conn:
                conn.execute(text(statement))


TABLES = ("ledger_transaction", "ledger_entry", "ledger_balance", "ledger_channel")


@pytest.fixture(scope="module")
def pristine(make_world, tmp_path_factory) -> Path:
    """A ledger file with one transaction of each kind."""
    path = tmp_path_factory.mktemp("books") / "pristine.db"
    world = make_world(f"sqlite:///{path}")
    config = world.open_channel(100)
    row = world.row(50)
    world.ledger.claim([row], world.sign_claim(row))
    world.ledger.split(1, word32(1), RECEIVER, [Credit(OWNER_A.address, "data", "chdr", 50)])
    world.ledger.refund(config, 10, 0, world.sign_refund(10, 0))
    world.ledger.verify()
    world.close()
    return path


def without_triggers(path: Path) -> sqlite3.Connection:
    """What somebody with the file has: a connection that the append-only triggers do not stop."""
    raw = sqlite3.connect(path)
    for (name,) in raw.execute("SELECT name FROM sqlite_master WHERE type='trigger'").fetchall():
        raw.execute(f"DROP TRIGGER {name}")
    return raw


def found_broken(path: Path) -> None:
    with pytest.raises(BrokenBooks):  # a changed first transaction does not even open
        ledger = SqlLedger.open(f"sqlite:///{path}")
        try:
            ledger.verify()
        finally:
            ledger.close()


def tampered(value: object, rng: random.Random) -> object:
    """The value with one byte changed, as another value of its column."""
    if isinstance(value, int):
        return value ^ (1 << rng.randrange(16))
    place = rng.randrange(len(value))
    return value[:place] + ("#" if value[place] != "#" else "!") + value[place + 1 :]


@settings(max_examples=examples(80))
@given(st.randoms(use_true_random=False))
def test_any_tampered_byte_is_found(pristine, rng):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tampered.db"
        shutil.copy(pristine, path)
        raw = without_triggers(path)
        table = rng.choice(TABLES)
        column = rng.choice([row[1] for row in raw.execute(f"PRAGMA table_info({table})")])
        cells = raw.execute(f"SELECT rowid, {column} FROM {table} WHERE length({column}) > 0").fetchall()
        rowid, value = rng.choice(cells)
        try:
            raw.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (tampered(value, rng), rowid))
        except sqlite3.IntegrityError:
            return  # the database's own constraints stopped it
        finally:
            raw.commit()
            raw.close()
        found_broken(path)


@pytest.mark.parametrize("table", TABLES)
def test_a_removed_row_is_found(pristine, tmp_path, table):
    path = tmp_path / "shortened.db"
    shutil.copy(pristine, path)
    raw = without_triggers(path)
    raw.execute(f"DELETE FROM {table} WHERE rowid = (SELECT max(rowid) FROM {table})")
    raw.commit()
    raw.close()
    found_broken(path)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE ledger_transaction SET at_ms = at_ms + 1 WHERE id = 3",
        "UPDATE ledger_entry SET amount = amount - 1 WHERE transaction_id = 3 AND position = 0",
        "DELETE FROM ledger_entry WHERE transaction_id = 3",
        "UPDATE ledger_balance SET amount = amount + 1 WHERE account = 'mint'",
        "UPDATE ledger_channel SET total_claimed = 1",
    ],
)
def test_a_change_from_outside_is_found_and_named_on_each_engine(world, change):
    world.open_channel(100)
    row = world.row(30)
    world.ledger.claim([row], world.sign_claim(row))
    world.ledger.verify()
    with world.ledger.database.write() as conn:
        for table in ("ledger_transaction", "ledger_entry"):
            for verb in ("update", "delete"):
                where = f" ON {table}" if conn.dialect.name == "postgresql" else ""
                conn.execute(text(f"DROP TRIGGER {table}_no_{verb}{where}"))
        conn.execute(text(change))
    wrong = {"ledger_t": "transaction 3 ", "ledger_e": "transaction 3 ", "ledger_b": "mint", "ledger_c": "channel 0x"}
    table = next(word for word in change.split() if word.startswith("ledger_"))
    with pytest.raises(BrokenBooks, match=wrong[table[:8]]):
        world.ledger.verify()


WRITER = """
import sys
from channels.ledger import SqlLedger
ledger = SqlLedger.open(sys.argv[1])
for _ in range(40):
    ledger.fund(sys.argv[2], 1)
ledger.close()
"""


def test_two_processes_write_one_chain(ledger_url):
    url = ledger_url
    wallets = PAYER.address, OWNER_A.address
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, url, wallet]) for wallet in wallets]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    ledger = SqlLedger.open(url)
    assert ledger.verify()[0] == 1 + 80
    assert [ledger.wallet(wallet) for wallet in wallets] == [40, 40]
    ledger.close()
