"""Without a store, or with one that no treasury has reconciled, nothing is served: 503, no work, no charge."""

from __future__ import annotations

import asyncio

import httpx

from tests.crashes import faults
from tests.crashes.faults import Fault, kill
from tests.crashes.world import World, infer


def test_nothing_is_served_without_the_store_or_before_a_treasury_has_reconciled_it(world: World) -> None:
    async def whole() -> None:
        world.begin(None)
        async with world.running():
            payer = world.payer()
            await payer.call("before")

            async def refused(what: str) -> None:
                """Keyed, stock and unpaid calls, and the very call that is paid already."""
                async with httpx.AsyncClient(transport=world.transport(), base_url="http://mesh", timeout=30) as bare:
                    for key in (f"{what}-1", None):
                        headers = {"Content-Type": "application/json"} | ({"Idempotency-Key": key} if key else {})
                        answer = await payer.http.post("/infer", content=infer(3), headers=headers)
                        assert (answer.status_code, answer.json()["code"]) == (503, what), answer.text
                        assert "outputs" not in answer.text and answer.headers["retry-after"] == "1"
                    unpaid = await bare.post("/infer", content=infer(3))
                    assert unpaid.status_code == 402, "a quote needs no store"
                again = await payer.again("before")
                assert (again.status_code, again.json()["code"]) == (503, what), "not even an answer that is paid"

            # Any work from here on would end the replica.
            world.left_dead = True
            faults.arm(world.folder, Fault("replica", "work.begun", "replica"))
            replica = world.children["replica"]
            kill(world.children["treasury"].pid)
            world.kill_store()
            world.valkey.process.wait()
            await refused("store_unavailable")
            world.start_store()
            await refused("not_ready")
            assert replica.exitcode is None and not (world.folder / faults.STRUCK).exists(), "nothing was run"
            faults.disarm(world.folder)
            world.left_dead = False
            await payer.call("after")
            await world.close_books()

    asyncio.run(whole())
