"""The rules of money behind the store, left out one by one: journal, settler, ledger, transfers, and the start."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from sqlalchemy.exc import IntegrityError

from channels.errors import ChannelError, NotReady
from channels.journal.batch import JournalBatch, _raised
from channels.journal.journal import Journal
from channels.journal.refunds import Intent, Refunds
from channels.ledger.rules import check_deposit
from channels.ledger.sql_ledger import SqlLedger
from channels.metering.memory_store import MemoryStore
from channels.metering.store import Attempt, HoldRequest, LedgerSnapshot
from channels.protocol.digests import initiate_digest
from channels.protocol.signer import Signer
from channels.protocol.x402 import Payment
from channels.redis_store import keys
from channels.settlement.settler import SettlePolicy, Settler, drain
from serving.config.settings import Settings
from serving.errors import StartError
from serving.mesh.selection import select_dapps
from serving.treasury.transfers import ChannelTransfers, mirror_of
from tests.channels.place import Swap, in_memory, on_valkey

PAYER, MESH = Signer(bytes([2] * 32)), Signer(bytes([1] * 32))
OFF = "if False:"


def code(step: Callable[[], object]) -> str:
    """How a step is refused; empty if it is not."""
    try:
        step()
        return ""
    except ChannelError as error:
        return error.code
    except IntegrityError:
        return "the database itself"


# Journal


def a_missing_charge_stops_the_journal(world: Any) -> None:
    world.open_channel(100)
    world.entry(10)  # charged, but nobody has its receipt
    assert code(lambda: world.journal.append(0, [world.entry(5)], world.token)) == "journal_gap"


def a_number_is_never_written_over(world: Any) -> None:
    world.open_channel(100)
    world.charge(10)
    stream, fields = world.entry(5)
    older = stream, fields | {"incarnation": "0"}
    assert code(lambda: world.journal.append(0, [older], world.token)) == "journal_conflict"


def draining_twice_is_harmless(world: Any) -> None:
    world.open_channel(100)
    entries = [world.entry(10), world.entry(5)]
    world.journal.append(0, entries, world.token)
    assert code(lambda: world.journal.append(0, entries, world.token)) == ""


def a_key_is_charged_once_in_sql(world: Any) -> None:
    world.open_channel(100)
    first, (stream, fields) = world.entry(10), world.entry(5)
    twice = stream, fields | {"key": first[1]["key"]}
    assert code(lambda: world.journal.append(0, [first, twice], world.token)) == "journal_conflict"


def a_late_lower_ceiling_leaves_the_proof(world: Any) -> None:
    world.open_channel(100)
    world.charge(10, maximum=80)
    world.charge(10, maximum=20)
    assert world.journal.channel(world.identity()).proof_maximum == 80


def an_old_treasury_writes_nothing(world: Any) -> None:
    world.open_channel(100)
    entry, old = world.entry(10), world.token
    world.journal.acquire("next")
    code(lambda: world.journal.append(0, [entry], old))
    assert world.journal.receipts() == []


def what_is_not_committed_is_not_trimmed(world: Any, url: str) -> None:
    world.open_channel(1_000)
    identity, voucher, fields = world.identity(), world.voucher(100), world.entry(50)[1]
    old = world.token
    world.journal.acquire("next")

    async def scene() -> None:
        with on_valkey(url, lambda: world) as at:
            try:
                await at.store.begin_reconcile(old)
                await at.store.mirror(LedgerSnapshot(identity, 1_000, 0, False, 0, 1), old)
                await at.store.open_for_service(old)
                ask = HoldRequest(
                    Attempt(identity, "0x" + "11" * 32, "t", True, "0x" + "ab" * 32), 50, 100, voucher.signature
                )
                await at.store.hold(ask)
                assert (await at.store.charge(ask, 50, fields["body"], b"", 1_000)).outcome == "charged"
                try:
                    await drain(at.store, world.journal, old)
                except ChannelError as error:
                    assert error.code == "stale_token"
                assert await at.store.read_journal(keys.bucket(identity), "0-0", 9), "a charge that nobody has"
            finally:
                await at.store.close()

    asyncio.run(scene())


# Settler


def no_more_is_claimed_than_the_ledger_has(world: Any) -> None:
    config = world.open_channel(100)
    world.charge(40, 30)
    world.ledger.refund(config, 50, 0, world.sign_refund(50, 0))
    assert world.settler().settle(world.token).claimed == 40


def no_more_is_claimed_than_is_signed(world: Any) -> None:
    world.open_channel(100)
    world.charge(40, 30, maximum=50)
    assert world.settler().settle(world.token).claimed == 40


class Broken:
    """A ledger that dies when it is asked for one of its effects."""

    def __init__(self, ledger: Any, effect: str, after: bool) -> None:
        self._ledger, self._effect, self._after = ledger, effect, after

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._ledger, name)
        if name != self._effect:
            return real

        def die(*words: object) -> None:
            if self._after:
                real(*words)
            raise KeyboardInterrupt

        return die


def crash(world: Any, effect: str, after: bool) -> None:
    with pytest.raises(KeyboardInterrupt):
        world.settler(Broken(world.ledger, effect, after)).settle(world.token)


def an_old_treasury_claims_nothing(world: Any) -> None:
    world.open_channel(100)
    world.charge(40)
    crash(world, "claim", False)
    world.journal.acquire("next")
    code(lambda: world.settler().settle(world.token))
    assert world.ledger.channel(world.identity()).total_claimed == 0


def a_settlement_is_finished_by_whoever_comes_next(world: Any) -> None:
    world.open_channel(100)
    world.charge(40)
    crash(world, "claim", True)
    world.token = world.journal.acquire("next")
    assert world.settler().settle(world.token).claimed == 40


def a_withdrawal_makes_a_claim_due(world: Any) -> None:
    config = world.open_channel(100)
    world.charge(40)
    assert world.settler().due() is None
    signature = PAYER.sign(initiate_digest(world.chain_id, world.identity(), 60, 1))
    world.ledger.initiate_withdraw(config, 60, 1, signature)
    assert world.settler().due() == "withdrawal"


def much_exposure_makes_a_claim_due(world: Any) -> None:
    world.open_channel(100)
    world.charge(40)
    assert world.settler(exposure=40).due() == "exposure"


def an_old_charge_makes_a_claim_due(world: Any) -> None:
    world.open_channel(100)
    world.charge(40)
    world.clock.now_s += 3_600
    assert world.settler().due() == "interval"


# Deposits and refunds


def a_deposit_moves_once(world: Any) -> None:
    config = world.open_channel(100)
    world.ledger.fund(PAYER.address, 100)
    assert code(lambda: world.ledger.deposit(config, world.authorise(100))) == "", "a lost reply is asked again"
    assert world.ledger.channel(world.identity()).balance == 100


def no_balance_at_2_53(world: Any) -> None:
    config = world.open_channel(2**53 - 1)
    world.ledger.fund(PAYER.address, 1)
    assert code(lambda: world.ledger.deposit(config, world.authorise(1, once=1))) == "balance_limit"


def a_refund_under_way_stands_before_another(world: Any) -> None:
    world.open_channel(100)
    refunds, first = Refunds(world.journal), Intent(world.identity(), 50, 0)
    refunds.begin(first, world.token)
    assert code(lambda: refunds.begin(Intent(world.identity(), 70, 0), world.token)) == ""
    assert refunds.pending() == [first]


def transfers(world: Any, store: MemoryStore) -> ChannelTransfers:
    async def sql(step: Callable[[], Any]) -> Any:
        return step()

    return ChannelTransfers(store, world.ledger, world.journal, MESH, sql)


def refund_of(world: Any, amount: int) -> Payment:
    return Payment("refund", {}, world.config(), world.voucher(0), None, amount)


def a_refund_is_off_the_balance_before_the_ledger_moves(world: Any) -> None:
    config = world.open_channel(100)

    async def scene() -> None:
        with in_memory(lambda: world) as at:
            await at.store.open_for_service(1)
            await at.store.mirror(mirror_of(world.ledger.channel(world.identity())), world.token)
            attempt = Attempt(world.identity(), "k", "t", True, "d")
            await at.store.hold(HoldRequest(attempt, 50, 50, bytes(65)))
            with suppress(NotReady):
                await transfers(world, at.store).refund(refund_of(world, 80), world.token)
            assert world.ledger.channel(world.identity()).balance == 100, "what a call holds was given back"

    asyncio.run(scene())
    assert world.ledger.channel(world.identity()).config == config


def a_refund_that_was_made_is_not_made_again(world: Any) -> None:
    world.open_channel(100)

    async def scene() -> None:
        with in_memory(lambda: world) as at:
            await at.store.open_for_service(1)
            await at.store.mirror(mirror_of(world.ledger.channel(world.identity())), world.token)
            mirror, at.store.mirror = at.store.mirror, gone  # type: ignore[method-assign]
            with pytest.raises(NotReady):
                await transfers(world, at.store).refund(refund_of(world, 60), world.token)
            at.store.mirror = mirror  # type: ignore[method-assign]
            await transfers(world, at.store).resume(world.token)
            assert world.ledger.channel(world.identity()).balance == 40
            assert Refunds(world.journal).pending() == [], "it is never finished"

    async def gone(*words: object) -> None:
        raise NotReady("store_unavailable", "gone")

    asyncio.run(scene())


# The start


def starts(**settings: Any) -> bool:
    try:
        select_dapps(Settings(**settings))
        return True
    except StartError:
        return False


def a_cap_holds_two_of_the_dearest_calls(world: Any) -> None:
    dearest = max(dapp.price.of(dapp.price.maximum_items) for dapp in select_dapps(Settings()).values())
    assert starts(exposure_cap=2 * dearest)
    assert not starts(exposure_cap=2 * dearest - 1)


def a_withdrawal_is_longer_than_a_claim_takes(world: Any) -> None:
    assert starts(settle_interval_s=3_600, withdraw_delay_s=4_200)
    assert not starts(settle_interval_s=3_600, withdraw_delay_s=4_199)


@contextmanager
def keys_may_repeat(worlds: Any) -> Iterator[None]:
    """The table of receipts without its constraints."""
    whole = worlds.__post_init__

    def bare(world: Any) -> None:
        whole(world)
        with world.journal.database.write() as conn:
            conn.exec_driver_sql("ALTER TABLE journal_receipt RENAME TO constrained")
            conn.exec_driver_sql("CREATE TABLE journal_receipt AS SELECT * FROM constrained")
            conn.exec_driver_sql("ALTER TABLE journal_share RENAME TO shares_of_constrained")
            conn.exec_driver_sql("CREATE TABLE journal_share AS SELECT * FROM shares_of_constrained")

    worlds.__post_init__ = bare
    try:
        yield
    finally:
        worlds.__post_init__ = whole


FIRST = "await source.trim_journal(bucket, entries[-1][0])"

RULES: list[tuple[str, Callable[..., None], Any]] = [
    (
        "the journal has no gap",
        a_missing_charge_stops_the_journal,
        Swap(JournalBatch.add, "if receipt.seq != channel.seq + 1 or receipt.before != channel.charged:", OFF),
    ),
    (
        "no number is written over",
        a_number_is_never_written_over,
        Swap(JournalBatch.add, "if receipt.seq <= channel.seq or receipt.incarnation < channel.incarnation:", OFF),
    ),
    (
        "draining twice is harmless",
        draining_twice_is_harmless,
        Swap(JournalBatch.add, "if receipt.seq <= channel.seq and self._stored(receipt) == text:", OFF),
    ),
    ("a key is charged once in SQL", a_key_is_charged_once_in_sql, keys_may_repeat),
    (
        "the stored proof is never lowered",
        a_late_lower_ceiling_leaves_the_proof,
        Swap(_raised, "if proof[0] <= channel.proof_maximum:", OFF),
    ),
    (
        "the fencing token is asked inside the transaction",
        an_old_treasury_writes_nothing,
        Swap(Journal.write, "if _token(conn) != token:", OFF),
    ),
    (
        "what is trimmed is committed",
        what_is_not_committed_is_not_trimmed,
        Swap(drain, "fresh += await", f"{FIRST}; fresh += await"),
    ),
    (
        "a claim is within the ledger's balance",
        no_more_is_claimed_than_the_ledger_has,
        Swap(Settler._select_claim, "min(channel.proof_maximum, state.balance)", "channel.proof_maximum"),
    ),
    (
        "a claim is within the proof",
        no_more_is_claimed_than_is_signed,
        Swap(Settler._select_claim, "min(channel.proof_maximum, state.balance)", "state.balance"),
    ),
    (
        "the fencing token is asked before a claim",
        an_old_treasury_claims_nothing,
        Swap(Settler._finish, "self._journal.check(token)\n    try:", "try:"),
    ),
    (
        "a settlement that was begun is finished",
        a_settlement_is_finished_by_whoever_comes_next,
        Swap(Settler.settle, "if pending is not None:", OFF),
    ),
    (
        "a withdrawal makes a claim due",
        a_withdrawal_makes_a_claim_due,
        Swap(Settler.due, "if reason is None and self.epochs.owe([", "if False and self.epochs.owe(["),
    ),
    (
        "exposure makes a claim due",
        much_exposure_makes_a_claim_due,
        Swap(SettlePolicy.reason, "if totals.largest >= self.exposure:", OFF),
    ),
    (
        "age makes a claim due",
        an_old_charge_makes_a_claim_due,
        Swap(
            SettlePolicy.reason,
            "return None if -CLOCK_SLACK_S <= age_s",
            "return None if True or -CLOCK_SLACK_S <= age_s",
        ),
    ),
    ("a deposit moves once", a_deposit_moves_once, Swap(SqlLedger.deposit, "if done is not None:", OFF)),
    (
        "no balance reaches 2^53",
        no_balance_at_2_53,
        Swap(check_deposit, "if channel.balance + deposit.amount >= AMOUNT_LIMIT:", OFF),
    ),
    (
        "a refund under way stands before another",
        a_refund_under_way_stands_before_another,
        Swap(Refunds.begin, "if row is not None:", OFF),
    ),
    (
        "a refund is off the balance before the ledger moves",
        a_refund_is_off_the_balance_before_the_ledger_moves,
        Swap(
            ChannelTransfers.refund,
            'if await self._store.reserve_refund(name, intent.amount, intent.nonce, charged, token) != "ok":',
            OFF,
        ),
    ),
    (
        "a refund that was made is not made again",
        a_refund_that_was_made_is_not_made_again,
        Swap(ChannelTransfers._execute, "if channel.refund_nonce == intent.nonce:", "if True:"),
    ),
    (
        "the cap holds two of the dearest calls",
        a_cap_holds_two_of_the_dearest_calls,
        Swap(select_dapps, "if settings.exposure_cap < 2 * dearest:", OFF),
    ),
    (
        "a withdrawal takes longer than a claim",
        a_withdrawal_is_longer_than_a_claim_takes,
        Swap(select_dapps, "if settings.withdraw_delay_s < settings.settle_interval_s + CLAIM_NOTICE_S:", OFF),
    ),
]


@pytest.mark.parametrize(("scene", "change"), [pytest.param(*row[1:], id=row[0]) for row in RULES])
def test_a_rule_left_out_is_caught(
    scene: Callable[..., None], change: Any, store_url: str, make_world: Callable[[], Any]
) -> None:
    def played() -> None:
        world = make_world()
        try:
            scene(world, store_url) if scene is what_is_not_committed_is_not_trimmed else scene(world)
        finally:
            world.close()

    played()
    with change.applied() if isinstance(change, Swap) else change(make_world), pytest.raises(AssertionError):
        played()
