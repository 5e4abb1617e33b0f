"""A clock that differs from the store's stops a start, never a running mesh."""

from __future__ import annotations

import asyncio
import logging

import pytest

from channels.errors import NotReady
from channels.metering.clock_skew import ClockSkew, ClockSkewMonitor


class Store:
    """A store's clock, as far ahead of ours as the test says; none: it does not answer."""

    ahead: float | None = 0.0

    async def ahead_s(self) -> float:
        if self.ahead is None:
            raise NotReady("store_unavailable", "gone")
        return self.ahead


def test_a_start_is_refused_until_the_clock_is_good_once() -> None:
    async def run() -> None:
        store = Store()
        clocks = ClockSkewMonitor(store)
        store.ahead = -2.5
        for begin in (clocks.check_once, clocks.check_at_start):
            with pytest.raises(ClockSkew, match=r"2\.5 s ahead of the store's"):
                await begin()
        store.ahead = None
        with pytest.raises(NotReady):
            await clocks.check_once()
        await clocks.check_at_start()  # a replica without a store answers 503
        store.ahead = 1.0
        await clocks.check_once()
        store.ahead = 9.0
        await clocks.check_once()

    asyncio.run(run())


def test_a_drifting_clock_raises_one_alarm_and_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> list[float]:
        store, skews = Store(), []
        clocks = ClockSkewMonitor(store)
        for store.ahead in (0.5, 3.0, 4.0, -1.0, -6.0):
            skews.append(await clocks.skew_s())
        return skews

    with caplog.at_level(logging.ERROR, "leben.clocks"):
        assert asyncio.run(run()) == [0.5, 3.0, 4.0, 1.0, 6.0]
    assert ["3.0 s" in line or "6.0 s" in line for line in caplog.messages] == [True, True]
