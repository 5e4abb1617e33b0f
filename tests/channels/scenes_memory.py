"""Shows what the store's memory protects: refunds under way, the journal, recovery, and refusals of old treasuries."""

from __future__ import annotations

from channels.metering.store import ChannelSnapshot, LedgerSnapshot
from channels.redis_store.keys import BUCKETS, bucket
from tests.channels.place import BALANCE, CHANNEL, Place


async def a_refund_is_off_the_balance(at: Place) -> None:
    await at.opened()
    assert await at.reserve_refund(960) == "ok"
    assert (await at.hold("k", 41, 41)).outcome == "exceeds_balance"


async def a_time_out_gives_no_refund_back(at: Place) -> None:
    await at.opened()
    await at.reserve_refund(960)
    await at.mirror(BALANCE)
    assert (await at.now()).usable == 40


async def a_refund_is_taken_off_once(at: Place) -> None:
    await at.opened()
    await at.reserve_refund(960)
    await at.mirror(40, nonce=1)
    assert (await at.now()).usable == 40


async def one_refund_at_a_time(at: Place) -> None:
    await at.opened()
    assert await at.reserve_refund(60) == await at.reserve_refund(60) == "ok"
    assert await at.reserve_refund(10) == await at.reserve_refund(60, nonce=1) == "in_progress"


async def no_refund_of_what_is_held(at: Place) -> None:
    await at.opened()
    await at.hold("k", 10, 40)
    assert await at.reserve_refund(995) == "in_progress"


async def a_refund_knows_what_is_charged(at: Place) -> None:
    await at.opened()
    await at.hold("k", 10, 40)
    await at.charge("k", 10)
    assert await at.reserve_refund(5, charged=0) == "mismatch"


async def no_refund_of_what_is_charged(at: Place) -> None:
    await at.opened()
    await at.hold("k", 10, 40)
    await at.charge("k", 10)
    assert await at.reserve_refund(991, charged=10) == "exceeds_balance"


async def no_refund_in_a_withdrawal(at: Place) -> None:
    await at.opened()
    await at.mirror(BALANCE, withdrawing=True)
    assert await at.reserve_refund(5) == "withdrawing"


async def a_drained_channel_begins_anew(at: Place) -> None:
    await at.opened()
    await at.hold("k", 10, 500)
    await at.charge("k", 10)
    assert await at.reserve_refund(990, charged=10) == "ok"
    await at.mirror(10, nonce=1)
    await at.mirror(BALANCE, nonce=1, version=3)
    refused = await at.hold("k2", 10, 19)
    assert refused.outcome == "mismatch", "an old ceiling buys nothing"
    assert (refused.proof_maximum, refused.proof_signature) == (500, (500 % 251).to_bytes(65, "big"))


async def a_charge_is_journaled(at: Place) -> None:
    await at.opened()
    await at.hold("k", 10, 40)
    await at.charge("k", 7)
    entries = await at.store.read_journal(bucket(CHANNEL), "0-0", 9)
    assert [(fields["amount"], fields["seq"], fields["key"]) for _, fields in entries] == [("7", "1", "k")]


async def charges_are_numbered(at: Place) -> None:
    await at.opened()
    for number in (1, 2):
        await at.hold(f"k{number}", 10, 40)
        result = await at.charge(f"k{number}", 10)
        assert result.record is not None and result.record.seq == number


async def numbers_go_on_after_a_loss(at: Place) -> None:
    await at.opened()
    await at.store.restore(ChannelSnapshot(CHANNEL, 30, 3, 40, b"\1" * 65), 2)
    await at.hold("k", 10, 40)
    result = await at.charge("k", 10)
    assert result.record is not None and (result.record.seq, result.record.incarnation) == (4, 2)


async def only_reconciled_memory_serves(at: Place) -> None:
    await at.opened()
    at.restart()
    assert await at.code(at.hold("k", 10, 10)) == "not_ready"


async def memory_lost_again_is_not_opened(at: Place) -> None:
    await at.opened()
    at.restart()
    await at.store.begin_reconcile(2)
    at.restart()
    assert await at.code(at.store.open_for_service(2)) == "not_ready"


async def a_journal_goes_on_behind_what_is_drained(at: Place) -> None:
    await at.store.begin_reconcile(1)
    await at.store.mirror(LedgerSnapshot(CHANNEL, BALANCE, 0, False, 0, 1), 1)
    far = f"{2**50}-7"
    await at.store.open_for_service(1, [far] * BUCKETS)
    await at.hold("k", 10, 40)
    await at.charge("k", 10)
    assert len(await at.store.read_journal(bucket(CHANNEL), far, 9)) == 1


async def restoring_raises(at: Place) -> None:
    await at.opened()
    await at.store.restore(ChannelSnapshot(CHANNEL, 30, 3, 40, b"\1" * 65), 1)
    result = await at.hold("k", 10, 5)
    assert result.charged == 30
    assert (result.proof_maximum, result.proof_signature) == (40, b"\1" * 65)
    assert result.outcome == "accepted", "covered by the ceiling that was restored"


async def restoring_never_lowers(at: Place) -> None:
    await at.opened()
    await at.hold("k", 10, 40)
    await at.charge("k", 10)
    await at.store.restore(ChannelSnapshot(CHANNEL, 0, 0, 5, b"\1" * 65), 1)
    result = await at.hold("k2", 10, 5)
    assert (result.outcome, result.charged, result.proof_maximum) == ("accepted", 10, 40)
    charged = await at.charge("k2", 1)
    assert charged.record is not None and charged.record.seq == 2


async def restoring_ends_holds(at: Place) -> None:
    await at.opened()
    await at.hold("k", 10, 40)
    await at.store.restore(ChannelSnapshot(CHANNEL, 0, 0, 0, b""), 1)
    assert (await at.release("k")).outcome == "not_owner"
    assert (await at.now()).held == 0


async def a_mirror_goes_forward(at: Place) -> None:
    await at.opened()
    await at.mirror(500, version=3)
    await at.mirror(BALANCE, version=2)
    assert (await at.now()).usable == 500


async def an_old_treasury_mirrors_nothing(at: Place) -> None:
    await at.opened()
    await at.store.begin_reconcile(2)
    assert await at.code(at.mirror(9_999, version=9, token=1)) == "stale_treasury"
    assert (await at.now()).usable == BALANCE


async def an_old_treasury_restores_nothing(at: Place) -> None:
    await at.opened()
    await at.store.begin_reconcile(2)
    assert await at.code(at.store.restore(ChannelSnapshot(CHANNEL, 30, 3, 40, b"\1" * 65), 1)) == "stale_treasury"
    assert (await at.now()).charged == 0


async def an_old_treasury_refunds_nothing(at: Place) -> None:
    await at.opened()
    await at.store.begin_reconcile(2)
    assert await at.reserve_refund(10, token=1) == "stale"


async def an_old_treasury_opens_nothing(at: Place) -> None:
    await at.opened()
    await at.store.begin_reconcile(2)
    assert await at.code(at.store.begin_reconcile(1)) == "stale_treasury"
    assert await at.code(at.store.open_for_service(1)) == "stale_treasury"
