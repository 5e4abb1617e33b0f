"""Money set aside for a call: kept while the call runs, given back when its replica is gone, owned by one attempt."""

from __future__ import annotations

import asyncio
import os
import signal

import httpx
import redis

from channels.payer import receipt
from channels.redis_store import keys
from tests.crashes.children import HOLD_TTL_MS, LONG, MOST_ITEMS, PRICE
from tests.crashes.faults import kill
from tests.crashes.world import World, channel_fields, eventually, infer

QUOTE = PRICE * MOST_ITEMS
JSON = {"Content-Type": "application/json"}


async def held(world: World, name: str, amount: int) -> None:
    """Waits until the store's record says that `amount` is held."""

    async def there() -> bool | None:
        return True if int(channel_fields(world, name).get("held", 0)) == amount else None

    await eventually(there, f"{amount} held")


def ends_ms(world: World, name: str) -> float:
    """When the channel's one hold ends, by the store's clock."""
    with redis.Redis.from_url(world.plan.store_url) as client:
        (hold,) = client.hvals(keys.holds(name))
    return float(hold.rpartition(b"|")[2])


def test_a_hold_is_renewed_for_as_long_as_its_call_runs(world: World) -> None:
    async def whole() -> None:
        world.begin(None)
        async with world.running():
            payer = world.payer()
            await payer.call("first")
            name = payer.channel.id
            call = asyncio.create_task(payer.call("long", LONG))
            await held(world, name, QUOTE)
            first = ends_ms(world, name)

            async def outlived() -> bool | None:
                return True if ends_ms(world, name) > first + 3 * HOLD_TTL_MS else None

            await eventually(outlived, "renewals beyond three lives of a hold")
            await held(world, name, QUOTE)
            world.plan.go.touch()
            assert receipt(await call).receipt.amount == PRICE
            await world.close_books()

    asyncio.run(whole())


def test_what_a_dead_replica_held_buys_another_call(world: World) -> None:
    async def whole() -> None:
        world.begin(None)
        async with world.running():
            payer, deposit = world.payer(), 1_000
            payer.wallet.budget.deposit = deposit
            for number in range((deposit - QUOTE) // PRICE):  # what is left covers one quote and no more
                await payer.call(f"call-{number}")
            name, world.left_dead = payer.channel.id, True
            lost = asyncio.create_task(
                payer.http.post("/infer", content=infer(LONG), headers=JSON | {"Idempotency-Key": "lost"})
            )
            await held(world, name, QUOTE)
            kill(world.children["replica"].pid)
            assert isinstance((await asyncio.gather(lost, return_exceptions=True))[0], httpx.TransportError)
            assert int(channel_fields(world, name)["held"]) == QUOTE, "nobody gave it back: its time must end"
            world.left_dead = False
            assert await world.in_store(name) == (deposit - QUOTE, 0), "its time has ended"
            # Its payer gives the lost call up, and has money for one call: the one that the dead replica held.
            del payer.channel.outstanding["lost"]
            answer = await payer.call("instead")
            assert receipt(answer).receipt.after == deposit - QUOTE + PRICE
            assert payer.channel.deposited == deposit

    asyncio.run(whole())


def test_a_replica_that_slept_through_its_hold_charges_nothing_more(world: World) -> None:
    """Another replica ran the call meanwhile: what the sleeper brings late is not charged, and is not the answer."""

    async def whole() -> None:
        world.begin(None)
        world.spawn("replica2")
        async with world.running():
            payer = world.payer()
            await payer.call("first")
            name = payer.channel.id
            sleeper = asyncio.create_task(
                payer.http.post("/infer", content=infer(LONG), headers=JSON | {"Idempotency-Key": "same"})
            )
            await held(world, name, QUOTE)
            os.kill(world.children["replica"].pid, signal.SIGSTOP)
            world.plan.go.touch()
            async with httpx.AsyncClient(
                transport=world.transport("replica2"), base_url="http://mesh", auth=payer.auth, timeout=30
            ) as elsewhere:

                async def once() -> httpx.Response | None:
                    try:
                        answer = await elsewhere.post(
                            "/infer", content=infer(LONG), headers=JSON | {"Idempotency-Key": "same"}
                        )
                    except httpx.TransportError:
                        return None
                    return answer if answer.status_code == 200 else None

                answer = await eventually(once, "the answer of the other replica")
            os.kill(world.children["replica"].pid, signal.SIGCONT)
            late = await sleeper
            assert late.status_code == 200 and receipt(late) == receipt(answer) and late.content == answer.content
            payer.answers["same"], payer.bodies["same"] = answer, infer(LONG)
            await world.close_books()
        second = world.children.pop("replica2")
        second.kill()
        second.join()
        second.close()

    asyncio.run(whole())
