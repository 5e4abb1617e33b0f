"""Tests serving/cluster/liveness.py: a frozen process is noticed in seconds, a slow one is waited for."""

from __future__ import annotations

import asyncio

import pytest

from serving.cluster.liveness import NotAlive, while_alive


async def never() -> None:
    await asyncio.Event().wait()


def test_a_process_that_answers_no_ping_is_given_up_and_the_operation_is_cancelled() -> None:
    async def run() -> bool:
        operation = asyncio.ensure_future(never())
        with pytest.raises(NotAlive):
            await while_alive(operation, never, patience_s=0.01)
        await asyncio.wait({operation})
        return operation.cancelled()

    assert asyncio.run(run())


def test_a_slow_operation_of_a_living_process_is_waited_for() -> None:
    async def run() -> tuple[str, int]:
        done, pings = asyncio.Event(), 0

        async def slow() -> str:
            await done.wait()
            return "settled"

        async def ping() -> None:
            nonlocal pings
            pings += 1
            if pings == 3:
                done.set()

        return await while_alive(slow(), ping, patience_s=0.01), pings

    assert asyncio.run(run()) == ("settled", 3)


def test_an_error_of_the_operation_passes_through() -> None:
    async def refused() -> None:
        raise ValueError("the ledger refuses")

    async def run() -> None:
        await while_alive(refused(), never)

    with pytest.raises(ValueError, match="the ledger refuses"):
        asyncio.run(run())
