"""Shows what holds protect: their owners, one charge a call, late charges, and the millisecond at which they end."""

from __future__ import annotations

from channels.errors import NotReady
from channels.metering.store import Attempt
from channels.redis_store.store import RedisStore
from tests.channels.place import ANSWER_MS, BALANCE, CHANNEL, TTL_MS, Place


async def only_its_owner_releases(at: Place) -> None:
    await at.opened()
    await at.hold("k", 10, 40)
    await at.hold("k", 10, 40, by="t2")
    assert (await at.release("k", by="t2")).outcome == "not_owner"
    assert (await at.now()).held == 10


async def only_its_owner_renews(at: Place) -> None:
    await at.opened()
    await at.hold("k", 10, 40)
    await at.hold("k", 10, 40, by="t2")
    assert (await at.renew("k", 60_000, by="t2")).outcome == "not_owner"


async def a_renewal_leaves_the_hold_to_its_request(at: Place) -> None:
    await at.opened()
    await at.hold("k", 10, 40)
    await at.store.renew(Attempt(CHANNEL, "k", "t", False, "another request"), TTL_MS)
    assert (await at.charge("k", 10)).outcome == "charged"


async def a_second_attempt_takes_no_hold_away(at: Place) -> None:
    await at.opened()
    await at.hold("u", 10, 10, keyed=False)
    assert (await at.hold("u", 10, 20, by="t2", keyed=False)).outcome == "in_progress"
    await at.release("u")
    assert (await at.now()).held == 0


async def an_ended_hold_is_not_renewed(at: Place) -> None:
    await at.opened()
    await at.hold("k", 10, 40)
    at.wait(TTL_MS)
    assert (await at.renew("k", TTL_MS)).outcome == "not_owner"


async def a_renewed_hold_lives_on(at: Place) -> None:
    await at.opened()
    await at.hold("k", 10, 40)
    at.wait(TTL_MS - 1)
    await at.renew("k", TTL_MS)
    at.wait(TTL_MS - 1)
    assert (await at.now()).held == 10


async def only_its_owner_charges(at: Place) -> None:
    await at.opened()
    await at.hold("k", 10, 40)
    await at.hold("k", 10, 40, by="t2")
    assert (await at.charge("k", 10, by="t2")).outcome == "refused"
    assert (await at.now()).charged == 0


async def a_charge_is_made_once(at: Place) -> None:
    await at.opened()
    await at.hold("k", 10, 40)
    assert (await at.charge("k", 10)).outcome == "charged"
    again = await at.charge("k", 10)
    assert (again.outcome, again.charged, again.stored) == ("replayed", 10, b"k t")


async def a_late_owner_gets_no_strangers_answer(at: Place) -> None:
    await at.opened()
    await at.hold("k", 10, 40)
    at.wait(TTL_MS)
    await at.hold("k", 10, 40, by="t2", digest="else")
    await at.charge("k", 10, by="t2")
    late = await at.charge("k", 10)
    assert (late.outcome, late.stored) == ("other_request", None)


async def a_charge_is_within_its_hold(at: Place) -> None:
    await at.opened()
    await at.hold("k", 10, 40)
    result = await at.charge("k", 11)
    assert (result.outcome, result.charged, result.held) == ("refused", 0, 10)


async def an_unkeyed_call_is_charged_once_for_ever(at: Place) -> None:
    await at.opened()
    await at.hold("u", 10, 10, keyed=False)
    await at.charge("u", 3)
    at.wait(ANSWER_MS)
    assert (await at.charge("u", 3)).charged == 3


async def too_late_in_a_withdrawal(at: Place) -> None:
    await at.opened()
    await at.hold("k", 10, 40)
    at.wait(TTL_MS)
    await at.mirror(BALANCE, withdrawing=True)
    assert (await at.charge("k", 10)).outcome == "refused"


async def too_late_for_the_cover(at: Place) -> None:
    await at.opened()
    await at.hold("slow", 10, 10)
    at.wait(TTL_MS)
    await at.hold("quick", 10, 10)
    assert (await at.charge("slow", 10)).outcome == "refused"
    await at.charge("quick", 10)
    assert (await at.charge("slow", 10)).outcome == "refused"


async def too_late_for_the_balance(at: Place) -> None:
    await at.opened(balance=15)
    await at.hold("slow", 10, 40)
    at.wait(TTL_MS)
    await at.hold("quick", 10, 40)
    assert (await at.charge("slow", 10)).outcome == "refused"


async def too_late_for_the_cap(at: Place) -> None:
    await at.opened()
    await at.hold("slow", 30, 100)
    at.wait(TTL_MS)
    await at.hold("quick", 30, 100)
    assert (await at.charge("slow", 30)).outcome == "refused"


async def late_but_covered(at: Place) -> None:
    await at.opened()
    await at.hold("slow", 10, 10)
    at.wait(TTL_MS)
    assert (await at.charge("slow", 10)).outcome == "charged"


async def an_answer_is_kept_with_its_charge(at: Place) -> None:
    await at.opened()
    await at.hold("k", 10, 40)
    await at.charge("k", 10)
    assert (await at.charge("k", 10)).stored == b"k t"


async def a_lost_reply_is_asked_again(at: Place) -> None:
    await at.opened()
    await at.hold("k", 10, 40)
    assert isinstance(at.store, RedisStore)
    run, lost = at.store.pipeline.run, [NotReady("store_unavailable", "the reply is lost")]

    async def run_and_lose_one(*words: object) -> object:
        reply = await run(*words)  # type: ignore[arg-type]
        if lost:
            raise lost.pop()
        return reply

    at.store.pipeline.run = run_and_lose_one  # type: ignore[method-assign]
    assert await at.code(at.charge("k", 10)) == ""
    assert (await at.now()).charged == 10


async def a_hold_ends_at_its_millisecond(at: Place) -> None:
    await at.opened()
    await at.hold("k", 10, 40)
    at.wait(TTL_MS - 1)
    assert (await at.now()).held == 10, "ended early"
    at.wait(1)
    assert (await at.now()).held == 0, "ended late"


async def a_hold_ends_after_another(at: Place) -> None:
    await at.opened()
    await at.hold("first", 10, 50)
    at.wait(5)
    await at.hold("second", 10, 50)
    at.wait(TTL_MS - 5)
    assert (await at.now()).held == 10, "the first ended, the second is running"
    at.wait(5)
    assert (await at.now()).held == 0, "the second was forgotten"
