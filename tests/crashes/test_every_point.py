"""SIGKILL at every point at which a process of the payment ring can die: nothing charged twice, no receipt lost.

A case is a scenario, the process that comes to the point, the point, and who dies there: that process, or the store
under it. Afterwards everything is started again on the same files, payers repeat what they do not know the outcome of,
and `World.close_books` compares all books.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import httpx
import pytest

from channels.errors import ChannelError
from channels.journal.refunds import Refunds
from tests.crashes.children import LONG, UNLUCKY
from tests.crashes.faults import SQL, STORE, Fault
from tests.crashes.world import REFUND, Payer, World, eventually

Scenario = Callable[[World, Payer], Awaitable[None]]


async def calls(world: World, payer: Payer) -> None:
    """Four calls at once, and four more."""
    world.arm()
    for turn in range(2):
        await asyncio.gather(*(payer.call(f"call-{turn}-{number}") for number in range(4)))


async def deposit(world: World, payer: Payer) -> None:
    """A second payer's first call."""
    world.arm()
    await world.payer().call("opening")


async def failure(world: World, payer: Payer) -> None:
    """A call whose model fails between two that do not."""
    world.arm()
    await asyncio.gather(payer.call("one"), payer.call("unlucky", UNLUCKY, status=500), payer.call("two"))


async def long_call(world: World, payer: Payer) -> None:
    """A call that runs longer than its hold would live unrenewed."""
    world.arm()
    call = asyncio.create_task(payer.call("long", LONG))
    await world.struck()
    world.plan.go.touch()
    await call


async def refund(world: World, payer: Payer) -> None:
    """Part of the money goes back, once, however often it has to be asked for."""
    world.arm()
    channel, before = payer.channel, payer.channel.deposited

    async def given_back() -> bool | None:
        # A payer who does not know the outcome looks first: the treasury finishes what it had begun by itself.
        state = world.ledger.channel(channel.id)
        if Refunds(world.journal).pending():
            return None
        if state is not None and state.refund_nonce:
            return True
        with suppress(ChannelError, httpx.TransportError):
            await payer.auth.refund(payer.http, "/infer", REFUND)
        return None

    await eventually(given_back, "the refund")
    channel.deposited = before - REFUND


async def refund_among_calls(world: World, payer: Payer) -> None:
    """Calls go on while no treasury runs that could finish the refund."""
    world.left_dead = True
    task = asyncio.create_task(refund(world, payer))
    await world.struck()
    await asyncio.gather(payer.call("meanwhile"), payer.call("too"))
    world.left_dead = False
    await task


async def settlement(world: World, payer: Payer) -> None:
    """What was charged is claimed and split."""
    await payer.call("before")
    world.arm()
    await world.ask("settle")


async def reconciliation(world: World, payer: Payer) -> None:
    """The store dies and comes back, and is reconciled while calls come in."""
    world.arm()
    world.kill_store()
    await asyncio.gather(*(payer.call(f"call-{number}") for number in range(4)))


async def takeover(world: World, payer: Payer) -> None:
    """The treasury dies, and a new one takes over."""
    world.arm()
    world.children["treasury"].kill()
    await payer.call("meanwhile")


def cases() -> list[object]:
    outcomes = []

    def add(scenario: Scenario, process: str, step: str, whens: tuple[str, ...], *victims: str, nth: int = 1) -> None:
        for when in whens:
            for victim in victims:
                point = f"{step}.{when}" if when else step
                fault = Fault(process, point, victim, nth)
                outcomes.append(pytest.param(scenario, fault, id=f"{scenario.__name__}-{step}-{when}-{victim}-dies"))

    both, here = ("replica", "store"), ("",)
    add(calls, "replica", "hold", STORE, *both, nth=2)
    add(calls, "replica", "work.begun", here, *both, nth=2)
    add(calls, "replica", "charge", STORE, *both, nth=2)
    add(failure, "replica", "release", STORE, *both)
    add(long_call, "replica", "renew", STORE, *both)
    add(deposit, "replica", "probe", STORE, *both)
    add(deposit, "replica", "deposit.asked", here, *both)
    add(deposit, "replica", "deposit.answered", here, *both)
    add(deposit, "treasury", "deposit.remember", SQL, "treasury")
    add(deposit, "treasury", "deposit.ledger", SQL, "treasury")
    add(deposit, "treasury", "mirror", STORE, "treasury", "store")
    add(refund, "replica", "refund.asked", here, "replica")
    add(refund, "replica", "refund.answered", here, "replica")
    add(refund, "treasury", "refund.intent", SQL, "treasury")
    add(refund, "treasury", "refund.mark", STORE, "treasury", "store")
    add(refund, "treasury", "refund.ledger", SQL, "treasury")
    add(refund, "treasury", "mirror", STORE, "treasury", "store")
    add(refund, "treasury", "refund.end", SQL, "treasury")
    add(refund_among_calls, "treasury", "refund.intent", SQL[1:], "treasury")
    add(refund_among_calls, "treasury", "refund.ledger", SQL[1:], "treasury")
    add(calls, "treasury", "drain.read", ("before_send", "after_reply"), "treasury", "store")
    add(calls, "treasury", "drain.append", SQL, "treasury")
    add(calls, "treasury", "drain.trim", STORE, "treasury", "store")
    add(settlement, "treasury", "settle.open", SQL, "treasury")
    add(settlement, "treasury", "settle.claim", SQL, "treasury")
    add(settlement, "treasury", "settle.split", SQL, "treasury")
    add(settlement, "treasury", "settle.close", SQL, "treasury")
    add(settlement, "treasury", "mirror", STORE[:1], "treasury", "store")
    add(takeover, "treasury", "takeover", SQL, "treasury")
    add(takeover, "treasury", "reconcile.check", STORE, "treasury", "store")
    add(takeover, "treasury", "mirror", STORE[:1], "treasury", "store")
    add(reconciliation, "treasury", "reconcile.token", SQL, "treasury")
    add(reconciliation, "treasury", "reconcile.check", STORE, "treasury", "store")
    add(reconciliation, "treasury", "reconcile.restore", STORE, "treasury", "store")
    add(reconciliation, "treasury", "mirror", STORE, "treasury", "store")
    add(reconciliation, "treasury", "reconcile.open", STORE, "treasury", "store")
    return outcomes


@pytest.mark.parametrize(("scenario", "fault"), cases())
def test_nothing_is_charged_twice_and_no_receipt_is_lost(scenario: Scenario, fault: Fault, world: World) -> None:
    async def whole() -> None:
        world.begin(fault)
        async with world.running():
            payer = world.payer()
            await payer.call("first")
            await scenario(world, payer)
            await world.struck()
            await world.close_books()

    asyncio.run(whole())
