"""A treasury that sleeps at a point while another takes over, and wakes when all is done: its step changes nothing.

A sleeping process cannot be told from a dead one; the fencing token is what makes the difference when it wakes.
"""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from tests.crashes.faults import Fault
from tests.crashes.test_every_point import Scenario, calls, deposit, refund, settlement
from tests.crashes.world import World, eventually

SLEEPS = [
    (calls, "drain.append.before"),
    (calls, "drain.append.after"),
    (calls, "drain.trim.before_send"),
    (deposit, "deposit.remember.before"),
    (deposit, "deposit.ledger.before"),
    (deposit, "mirror.before_send"),
    (refund, "refund.intent.before"),
    (refund, "refund.ledger.before"),
    (refund, "refund.end.before"),
    (settlement, "settle.open.before"),
    (settlement, "settle.claim.before"),
    (settlement, "settle.split.before"),
    (settlement, "settle.close.before"),
]


@pytest.mark.parametrize(
    ("scenario", "point"), [pytest.param(*case, id=f"{case[0].__name__}-{case[1]}") for case in SLEEPS]
)
def test_a_treasury_that_was_replaced_in_its_sleep_changes_nothing(
    scenario: Scenario, point: str, world: World
) -> None:
    async def whole() -> None:
        world.begin(Fault("treasury", point, "sleep"))
        async with world.running():
            payer = world.payer()
            await payer.call("first")
            work = asyncio.create_task(scenario(world, payer))
            await world.struck()
            sleeper = world.children["treasury"]
            world.spawn("treasury")
            await work
            await world.close_books()
            os.kill(sleeper.pid, signal.SIGCONT)

            async def noticed() -> bool | None:
                # By its token in SQL or by the store's refusal, whichever it meets first.
                log = world.log()
                return True if "newer treasury has taken over" in log or "stale_treasury" in log else None

            await eventually(noticed, "the sleeper's end")
            sleeper.kill()
            sleeper.join()
            sleeper.close()
            await world.close_books()

    asyncio.run(whole())
