"""Shows what admission protects: one run of a key, exact ceilings, and stock clients after a loss."""

from __future__ import annotations

from channels.metering.channel import ABANDONED_WINDOW_MS, AMOUNT_LIMIT
from channels.metering.store import ChannelSnapshot
from tests.channels.place import ANSWER_MS, BALANCE, CHANNEL, Place
from tests.channels.twins import ABANDONED


async def a_key_runs_once(at: Place) -> None:
    await at.opened()
    await at.hold("k", 10, 40)
    await at.charge("k", 10)
    again = await at.hold("k", 10, 40, by="t2")
    assert (again.outcome, again.stored, again.charged, again.held) == ("replayed", b"k t", 10, 0)


async def a_running_key_is_waited_for(at: Place) -> None:
    await at.opened()
    await at.hold("k", 10, 40)
    assert (await at.hold("k", 10, 40, by="t2")).outcome == "in_progress"


async def a_charged_key_is_one_request(at: Place) -> None:
    await at.opened()
    await at.hold("k", 10, 40)
    await at.charge("k", 10)
    other = await at.hold("k", 10, 40, by="t2", digest="else")
    assert (other.outcome, other.stored) == ("other_request", None)


async def a_running_key_is_one_request(at: Place) -> None:
    await at.opened()
    await at.hold("k", 10, 40)
    assert (await at.hold("k", 10, 40, digest="else")).outcome == "other_request"


async def a_key_outlives_its_answer(at: Place) -> None:
    await at.opened()
    await at.hold("k", 10, 40)
    await at.charge("k", 10)
    at.wait(ANSWER_MS)
    again = await at.hold("k", 10, 40, by="t2")
    assert (again.outcome, again.record, again.stored) == ("replayed", None, None)


async def a_key_outlives_the_store(at: Place) -> None:
    await at.opened()
    await at.store.restore(ChannelSnapshot(CHANNEL, 30, 3, 40, b"\1" * 65, {"k": "d"}), 1)
    assert (await at.hold("k", 10, 40)).outcome == "replayed"
    assert (await at.hold("k", 10, 40, digest="else")).outcome == "other_request"


async def a_stock_ceiling_is_exact(at: Place) -> None:
    await at.opened()
    assert (await at.hold("u", 10, 11, keyed=False)).outcome == "mismatch"
    assert (await at.hold("u", 10, 10, keyed=False)).outcome == "accepted"


async def a_stock_ceiling_is_in_the_balance(at: Place) -> None:
    await at.lossy(balance=100)
    assert (await at.hold("u", 10, 101, keyed=False)).outcome == "exceeds_balance"


async def a_ceiling_covers_its_price(at: Place) -> None:
    await at.opened()
    assert (await at.hold("k", 10, 9)).outcome == "mismatch"


async def a_ceiling_covers_calls_that_arrive_late(at: Place) -> None:
    await at.opened()
    assert (await at.hold("second", 10, 20)).outcome == "accepted"
    assert (await at.hold("first", 10, 10)).outcome == "accepted"


async def a_ceiling_covers_what_runs(at: Place) -> None:
    await at.opened()
    await at.hold("k1", 10, 10)
    assert (await at.hold("k2", 10, 10)).outcome == "mismatch"


async def a_lower_ceiling_takes_nothing_back(at: Place) -> None:
    await at.opened()
    await at.hold("k1", 10, 40)
    await at.hold("k2", 10, 20)
    third = await at.hold("k3", 10, 5)
    assert (third.outcome, third.proof_maximum, third.proof_signature) == ("accepted", 40, (40).to_bytes(65, "big"))


async def a_price_is_in_the_balance(at: Place) -> None:
    await at.opened(balance=15)
    assert (await at.hold("k", 20, 20)).outcome == "exceeds_balance"


async def exposure_is_capped(at: Place) -> None:
    await at.opened()
    assert (await at.hold("k", 51, 51)).outcome == "exposure"
    assert (await at.hold("k", 50, 50)).outcome == "accepted"


async def a_withdrawal_ends_service(at: Place) -> None:
    await at.opened()
    await at.mirror(BALANCE, withdrawing=True)
    assert (await at.hold("k", 10, 10)).outcome == "withdrawing"


async def free_work_is_bounded(at: Place) -> None:
    await at.opened()
    for number in range(ABANDONED):
        assert (await at.hold(f"u{number}", 10, 10, keyed=False)).outcome == "accepted"
        await at.release(f"u{number}", gone=True)
    assert (await at.hold("next", 10, 10, keyed=False)).outcome == "abandoned"
    assert (await at.hold("k", 10, 10)).outcome == "accepted", "a call with a key is finished and charged"
    await at.release("k")
    at.wait(ABANDONED_WINDOW_MS)
    assert (await at.hold("next", 10, 10, keyed=False)).outcome == "accepted"


async def a_stranger_makes_no_state(at: Place) -> None:
    await at.store.begin_reconcile(1)
    await at.store.open_for_service(1)
    assert (await at.hold("k", 0, 0)).outcome == "unknown_channel"


async def nothing_is_counted_at_2_53(at: Place) -> None:
    await at.opened()
    result = await at.hold("k", 10, AMOUNT_LIMIT + 1)
    assert (result.outcome, result.held, result.proof_maximum) == ("exceeds_balance", 0, 0)


async def a_correction_counts_what_runs(at: Place) -> None:
    await at.opened()
    await at.hold("k1", 10, 10)
    refused = await at.hold("k2", 10, 10)
    assert (refused.charged, refused.held) == (0, 10)


async def a_lost_answer_is_given_again(at: Place) -> None:
    await at.opened()
    await at.hold("u1", 10, 10, keyed=False)
    await at.charge("u1", 7)
    again = await at.hold("u2", 10, 10, by="t2", keyed=False)
    assert (again.outcome, again.stored) == ("replayed", b"u1 t")


async def a_lost_answer_is_not_paid_again_where_it_happens_to_fit(at: Place) -> None:
    await at.lossy(charged=80)
    await at.hold("u1", 10, 100, keyed=False)
    await at.charge("u1", 10)
    assert (await at.hold("u2", 10, 100, by="t2", keyed=False)).outcome == "replayed"


async def a_stock_client_is_ahead_after_a_loss(at: Place) -> None:
    await at.lossy(charged=80)
    assert (await at.hold("u", 10, 100, keyed=False)).outcome == "accepted"


async def what_a_loss_may_cost_is_capped(at: Place) -> None:
    await at.lossy(charged=80)
    assert (await at.hold("u", 10, 80 + 10 + 51, keyed=False)).outcome == "mismatch"


async def a_ceiling_ahead_pays_once(at: Place) -> None:
    await at.lossy(charged=80)
    await at.hold("u1", 10, 100, keyed=False)
    await at.charge("u1", 5)
    await at.hold("u2", 10, 95, keyed=False)
    await at.release("u2")
    assert (await at.hold("u3", 10, 100, keyed=False, digest="else")).outcome == "mismatch"


async def ceilings_ahead_pay_one_at_a_time(at: Place) -> None:
    await at.lossy(charged=80)
    await at.hold("u1", 5, 100, keyed=False)
    assert (await at.hold("u2", 5, 100, keyed=False, digest="else")).outcome == "mismatch"
