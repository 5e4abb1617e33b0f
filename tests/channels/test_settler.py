"""Settlement: receipts, claim and credits are one number, whatever crashes, lags or is poisoned."""

from __future__ import annotations

import asyncio
import logging
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from channels.errors import LedgerError
from channels.journal.journal import JournalError, StaleToken
from channels.metering.store import Attempt, HoldRequest, LedgerSnapshot
from channels.protocol.digests import finalize_digest, initiate_digest
from channels.protocol.signer import Signer
from channels.receipts import split_charge, verify_proof
from channels.redis_store.store import RedisStore
from channels.settlement.epoch import ClaimSelection, Totals
from channels.settlement.epochs import Epochs
from channels.settlement.settler import Settlement, SettlePolicy, Settler, drain
from tests.examples import examples

MESH, PAYER, OWNER_A, OWNER_B = (Signer(bytes([number] * 32)) for number in (1, 2, 3, 4))
RECEIVER = Signer(bytes([5] * 32)).address


class Crash(Exception):
    pass


class Faulty:
    """A ledger that dies before or after one of its effects."""

    def __init__(self, ledger, name: str, after: bool) -> None:
        self._ledger, self._name, self._after = ledger, name, after

    def __getattr__(self, name: str):
        real = getattr(self._ledger, name)
        if name != self._name:
            return real

        def die(*args: object):
            if self._after:
                real(*args)
            raise Crash

        return die


def earned(world) -> int:
    return world.ledger.earnings(OWNER_A.address) + world.ledger.earnings(OWNER_B.address)


def is_exact(world, settlement: Settlement) -> None:
    """Receipts, claim, credits and what owners hold are the same number."""
    inside = world.journal.receipts(epoch=settlement.epoch)
    assert sum(receipt.amount for receipt in inside) == settlement.claimed
    assert sum(credit.amount for credit in settlement.payouts) == settlement.claimed
    assert sorted(world.ledger.payouts(settlement.epoch), key=str) == sorted(settlement.payouts, key=str)
    assert world.ledger.root(settlement.epoch, RECEIVER) == settlement.root
    world.ledger.verify()


def test_settles_exactly_what_receipts_say(world):
    for salt in (0, 1):
        world.open_channel(1_000, salt)
    world.charge(10, 0, 7)
    world.charge(101, salt=1)
    done = world.settler().settle(world.token)
    assert (done.epoch, done.claimed, done.quarantined) == (1, 118, ())
    is_exact(world, done)
    assert earned(world) == 118
    assert world.ledger.channel(world.identity()).total_claimed == 17
    epoch = Epochs(world.journal).epoch(1)
    assert epoch.status == "closed" and all(epoch.transactions) and len(epoch.transactions) == 2
    assert world.settler().settle(world.token) == Settlement()
    for receipt in world.journal.receipts():
        proof = Epochs(world.journal).proof(receipt.call_id, world.chain_id)
        assert proof.root == done.root and proof.leaf == receipt.digest(world.chain_id)
        assert verify_proof(proof.leaf, proof.steps, bytes.fromhex(done.root[2:]))
    assert Epochs(world.journal).proof("0x" + "00" * 32, world.chain_id) is None


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", ["claim", "split", "close"])
def test_a_crash_at_any_step_is_finished_and_pays_once(world, monkeypatch, step, after):
    world.open_channel(1_000)
    world.charge(10, 20)
    broken = world.settler(Faulty(world.ledger, step, after))
    if step == "close":
        real = Epochs.close

        def die(*args: object):
            if after:
                real(*args)
            raise Crash

        monkeypatch.setattr(Epochs, "close", die)
    with pytest.raises(Crash):
        broken.settle(world.token)
    monkeypatch.undo()
    world.charge(5)  # calls go on while the treasury is down
    token = world.token = world.journal.acquire("next")
    finished = [world.settler().settle(token) for _ in range(3)]
    assert finished[-1].epoch is None
    assert earned(world) == 35 == world.ledger.channel(world.identity()).total_claimed
    for settlement in finished:
        if settlement.epoch:
            is_exact(world, settlement)
    assert sum(len(world.journal.receipts(epoch=number)) for number in (1, 2)) == 3


def test_a_treasury_that_was_replaced_has_no_effect(world):
    world.open_channel(1_000)
    world.charge(10)
    old = world.settler(Faulty(world.ledger, "claim", False))
    with pytest.raises(Crash):
        old.settle(world.token)
    world.journal.acquire("next")
    with pytest.raises(StaleToken):
        world.settler().settle(world.token)
    assert world.ledger.channel(world.identity()).total_claimed == 0


def test_bad_rows_are_bisected_out_and_the_rest_is_paid(world, caplog):
    for salt in range(9):
        world.open_channel(100, salt)
        world.charge(10, salt=salt, signer=MESH if salt in (2, 7) else PAYER)
    with caplog.at_level(logging.ERROR, "channels.settlement.settler"):
        done = world.settler().settle(world.token)
    bad = {world.identity(2), world.identity(7)}
    assert done.claimed == 70 and set(done.quarantined) == bad
    assert all(identity in caplog.text for identity in bad) and "voucher_signature" in caplog.text
    is_exact(world, done)
    quiet = world.settler(interval_s=0)
    assert quiet.due() is None and quiet.settle(world.token) == Settlement()
    marks = {copy.channel_id for copy in world.journal.channels() if copy.quarantine}
    assert marks == bad


def test_one_poisoned_row_of_a_hundred_is_quarantined_and_ninety_nine_are_paid(world):
    for salt in range(100):
        world.open_channel(100, salt)
        world.charge(10, salt=salt, signer=MESH if salt == 61 else PAYER)
    done = world.settler().settle(world.token)
    assert (done.claimed, done.quarantined, len(done.channels)) == (990, (world.identity(61),), 99)
    is_exact(world, done)
    # Once the cause is gone a person lets it be settled again.
    Epochs(world.journal).release(world.identity(61))
    world.charge(5, salt=61)  # its proof is a good one now
    done = world.settler().settle(world.token)
    assert (done.claimed, done.quarantined) == (15, ())
    is_exact(world, done)


def test_settlers_that_work_at_once_pay_once(world):
    """One that was replaced may still be at any step: fenced in the journal, harmless on the ledger."""
    world.open_channel(100_000)
    world.open_channel(100_000, salt=1)
    for _ in range(6):
        world.charge(10, 20)
        world.charge(5, salt=1)
        old, stale = world.journal.acquire("old"), []

        def work(token: int = old, stale: list[object] = stale) -> None:
            try:
                while world.settler().settle(token).epoch is not None:
                    pass
            except (StaleToken, JournalError, LedgerError) as error:
                stale.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        world.token = world.journal.acquire("new")
        while True:
            try:
                if world.settler().settle(world.token).epoch is None:
                    break
            except (JournalError, LedgerError):  # the other was between two steps: its epoch is finished next
                continue
        thread.join()
        assert not stale or isinstance(stale[0], StaleToken), stale
    assert earned(world) == sum(world.charged.values()) == 6 * 35
    for salt in (0, 1):
        assert world.ledger.channel(world.identity(salt)).total_claimed == world.charged[world.identity(salt)]
    world.ledger.verify()


def test_never_asks_for_more_than_voucher_and_ledger_cover(world):
    config = world.open_channel(100)
    world.open_channel(100, salt=1)
    world.charge(40, 30)
    world.charge(40, 30, salt=1, maximum=50)
    # Our authorizer refunds what a correct mesh would not: the balance is then below what was charged.
    world.ledger.refund(config, 50, 0, world.sign_refund(50, 0))
    done = world.settler().settle(world.token)
    assert done.claimed == 80 and set(done.quarantined) == {world.identity(), world.identity(1)}
    is_exact(world, done)


def test_an_epoch_that_the_ledger_now_refuses_is_abandoned_and_made_anew(world):
    config, identity = world.open_channel(100), world.identity()
    world.open_channel(100, salt=1)
    world.charge(90)
    world.charge(10, salt=1)
    start = PAYER.sign(initiate_digest(world.chain_id, identity, 100, 1))
    world.ledger.initiate_withdraw(config, 100, 1, start)
    with pytest.raises(Crash):
        world.settler(Faulty(world.ledger, "claim", False)).settle(world.token)
    world.clock.now_s += 900
    world.ledger.finalize_withdraw(config, 2, PAYER.sign(finalize_digest(world.chain_id, identity, 2)))
    done = world.settler().settle(world.token)
    assert (done.epoch, done.claimed, done.quarantined) == (2, 10, (identity,))
    assert Epochs(world.journal).epoch(1).status == "abandoned"
    assert world.journal.receipts(epoch=1) == []
    is_exact(world, done)


def test_a_refusal_of_our_key_does_not_free_receipts_that_were_paid(world):
    world.open_channel(100)
    world.charge(10)
    with pytest.raises(Crash):
        world.settler(Faulty(world.ledger, "split", True)).settle(world.token)
    stranger = Settler(world.journal, world.ledger, PAYER, SettlePolicy(), world.clock)
    with pytest.raises(LedgerError):
        stranger.settle(world.token)
    assert Epochs(world.journal).pending().number == 1
    assert world.settler().settle(world.token).claimed == 10
    assert earned(world) == 10


def test_epochs_hold_their_books_together(world):
    world.open_channel(100)
    world.charge(10, 20)
    epochs = Epochs(world.journal)
    right = ClaimSelection(world.config(), world.voucher(30), 30, 2)
    for wrong in (
        ClaimSelection(world.config(), world.voucher(30), 29, 2),
        ClaimSelection(world.config(), world.voucher(30), 30, 1),
        ClaimSelection(world.config(1), world.voucher(30, salt=1), 30, 2),
    ):
        with pytest.raises(JournalError, match="add up"):
            epochs.open(world.token, [wrong], world.chain_id)
    assert epochs.pending() is None and epochs.epoch(1) is None
    opened = epochs.open(world.token, [right], world.chain_id)
    assert (opened, opened.claimed) == (epochs.pending(), 30)
    with pytest.raises(JournalError, match="pending"):
        epochs.open(world.token, [right], world.chain_id)
    epochs.close(1, ["a", "b"], 5, world.token, world.chain_id)
    with pytest.raises(JournalError, match="pending"):
        epochs.abandon(1, world.token)
    with pytest.raises(JournalError, match="add up"):
        epochs.open(world.token, [right], world.chain_id)


@pytest.mark.parametrize(
    ("totals", "reason"),
    [
        pytest.param(Totals(0, 0, None), None, id="nothing"),
        pytest.param(Totals(10, 10, 999_000), None, id="young-and-small"),
        pytest.param(Totals(50, 50, 999_000), "exposure", id="exposure"),
        pytest.param(Totals(100, 49, 999_000), "amount", id="amount"),
        pytest.param(Totals(1, 1, 940_000), "interval", id="interval"),
    ],
)
def test_due_is_a_function_of_totals_and_clock(totals, reason):
    assert SettlePolicy(interval_s=60, amount=100, exposure=50).reason(totals, 1_000.0) == reason


def test_due_reads_the_journal(world):
    world.open_channel(100)
    settler = world.settler(interval_s=60)
    assert settler.due() is None
    world.charge(0)
    world.clock.now_s += 100
    assert settler.due() is None  # what cost nothing is never due
    world.charge(5)
    assert settler.due() is None
    world.clock.now_s += 60
    assert settler.due() == "interval"
    settler.settle(world.token)
    assert settler.due() is None


def test_a_clock_that_stepped_back_keeps_nobody_waiting(world):
    world.open_channel(1_000)
    settler = world.settler(interval_s=60)
    world.charge(5)
    world.clock.now_s -= 30
    assert settler.due() is None, "clocks of two machines differ by seconds"
    world.clock.now_s -= 86_400
    assert settler.due() == "interval"
    assert settler.settle(world.token).claimed == 5
    world.charge(7)
    assert settler.due() is None
    world.clock.now_s += 60
    assert settler.due() == "interval"
    world.ledger.verify()


PEOPLE = [Signer(bytes([number] * 32)).address for number in range(40, 45)]
shares_of_a_dapp = st.lists(
    st.tuples(st.sampled_from(["knowledge", "data", "compute", "operator"]), st.sampled_from(PEOPLE)),
    min_size=1,
    max_size=6,
).flatmap(
    lambda who: st.lists(st.integers(0, 10_000), min_size=len(who) - 1, max_size=len(who) - 1).map(
        lambda cuts: [
            (*owner, high - low)
            for owner, low, high in zip(who, [0, *sorted(cuts)], [*sorted(cuts), 10_000], strict=True)
        ]
    )
)


@settings(max_examples=examples(25))
@given(st.lists(st.tuples(st.integers(0, 997), shares_of_a_dapp, st.booleans()), min_size=1, max_size=8))
def test_owners_earn_exactly_the_shares_in_force_when_each_call_was_charged(make_world, plan):
    world = make_world()
    world.open_channel(10_000)
    due = dict.fromkeys(PEOPLE, 0)
    for amount, shares, settles in plan:
        world.charge(amount, shares=shares)
        for part in split_charge(amount, shares):
            due[part.owner] += part.amount
        if settles:
            world.settler().settle(world.token)
    while world.settler().settle(world.token).epoch is not None:
        pass
    # Charges that cost nothing wait for the next that costs something: nobody is owed anything for them.
    assert {owner: world.ledger.earnings(owner) for owner in PEOPLE} == due
    assert sum(due.values()) == sum(amount for amount, _, _ in plan)
    for owner in PEOPLE:
        assert sum(credit.amount for credit in world.ledger.earned(owner)) == due[owner]
        assert sum(credit.amount for _, credit in world.ledger.earned_by_epoch(owner)) == due[owner]
    world.ledger.verify()
    world.close()


plans = st.lists(
    st.one_of(
        st.tuples(st.just("charge"), st.integers(0, 2), st.integers(0, 40)),
        st.tuples(st.just("settle"), st.sampled_from(["", "claim", "split"]), st.booleans()),
    ),
    max_size=14,
)


@settings(max_examples=examples(25))
@given(plans)
def test_nothing_is_lost_or_paid_twice_under_random_crashes(make_world, plan):
    world = make_world()
    for salt in range(3):
        world.open_channel(600, salt)
    for kind, which, how in plan:
        if kind == "charge":
            world.charge(how, salt=which)
            continue
        try:
            world.settler(Faulty(world.ledger, which, how) if which else None).settle(world.token)
        except Crash:
            world.token = world.journal.acquire("next")
        assert earned(world) <= sum(world.charged.values())
    while world.settler().settle(world.token).epoch:
        pass
    assert earned(world) == sum(world.charged.values())
    for salt in range(3):
        state = world.ledger.channel(world.identity(salt))
        assert state.total_claimed == world.charged.get(world.identity(salt), 0)
    world.ledger.verify()
    world.journal.verify()
    world.close()


def test_from_a_charge_in_redis_to_the_owners_account(world, store_url):
    """The seam: what `charge.lua` journals is what SQL stores and the ledger pays."""
    world.open_channel(1_000)
    identity, voucher = world.identity(), world.voucher(500)
    _, fields = world.entry(60)

    async def scenario() -> int:
        store = RedisStore(store_url, exposure_cap=1_000)
        try:
            await store.begin_reconcile(world.token)
            await store.open_for_service(world.token)
            await store.mirror(LedgerSnapshot(identity, 1_000, 0, False, 0, 1), world.token)
            for number in range(3):
                attempt = Attempt(identity, "0x" + f"{number:064x}", "t", number != 1, "0x" + "ab" * 32)
                ask = HoldRequest(attempt, 100, 500, voucher.signature)
                if number == 1:  # a stock call signs exactly what it needs
                    ask = HoldRequest(attempt, 100, 160, world.voucher(160).signature)
                assert (await store.hold(ask)).outcome == "accepted"
                assert (await store.charge(ask, 60, fields["body"], b"answer", 60_000)).outcome == "charged"
            return await drain(store, world.journal, world.token)
        finally:
            await store.close()

    assert asyncio.run(scenario()) == 3
    done = world.settler().settle(world.token)
    assert (done.claimed, done.quarantined) == (180, ())
    is_exact(world, done)
    assert len(world.journal.charged_keys(identity)) == 2
