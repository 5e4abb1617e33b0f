"""The batcher's promises, for any mixture of calls: own rows to own caller, one bad item alone, nobody starves."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dapps.types import Inputs
from serving.batcher import Batcher
from serving.errors import CallError


class Device:
    """Negates its rows; fails on any batch with a 13; remembers what it was given."""

    def __init__(self, pause: asyncio.Event | None = None) -> None:
        self.batches: list[np.ndarray] = []
        self.busy = False
        self.pause = pause

    async def run(self, inputs: Inputs) -> Inputs:
        assert not self.busy, "a device runs one batch at a time"
        self.busy = True
        await (self.pause.wait() if self.pause else asyncio.sleep(0))
        self.busy = False
        x = inputs["X"]
        self.batches.append(x)
        if (x == 13).any():
            raise ValueError("13")
        return {"Y": -x}


CALL = st.tuples(
    st.lists(st.integers(0, 20), min_size=1, max_size=5), st.sampled_from(["f4", "i4"]), st.sampled_from("abc")
)


@settings(max_examples=200, deadline=None)
@given(calls=st.lists(CALL, max_size=20), maximum=st.integers(1, 8), gone=st.sets(st.integers(0, 19)))
def test_every_caller_gets_its_own_rows_or_its_own_error(
    calls: list[tuple[list[int], str, str]], maximum: int, gone: set[int]
) -> None:
    async def run() -> None:
        device = Device()
        batcher = Batcher(device, maximum)

        async def one(values: list[int], kind: str, payer: str) -> Inputs:
            return await batcher.submit({"X": np.array(values, dtype=kind).reshape(-1, 1)}, payer)

        tasks = [asyncio.create_task(one(*call)) for call in calls]
        await asyncio.sleep(0)
        for number in gone & set(range(len(tasks))):
            tasks[number].cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for number, ((values, kind, _), result) in enumerate(zip(calls, results, strict=True)):
            if isinstance(result, asyncio.CancelledError):
                assert number in gone
            elif 13 in values:
                assert isinstance(result, ValueError)
            else:
                assert isinstance(result, dict), result
                assert result["Y"].dtype == np.dtype(kind) and result["Y"].ravel().tolist() == [-v for v in values]
        for batch in device.batches:
            longest = max(len(values) for values, _, _ in calls)
            assert len(batch) <= max(maximum, longest)

    asyncio.run(run())


def test_a_busy_device_gets_one_full_batch_and_payers_take_turns() -> None:
    async def run() -> None:
        pause = asyncio.Event()
        device = Device(pause)
        batcher = Batcher(device, 4)
        rows = {"flood": 1.0, "quiet": 2.0}
        first = asyncio.create_task(batcher.submit({"X": np.zeros((1, 1), "f4")}))
        await asyncio.sleep(0)
        calls = [
            asyncio.create_task(batcher.submit({"X": np.full((1, 1), rows["flood"], "f4")}, "flood")) for _ in range(9)
        ]
        calls.append(asyncio.create_task(batcher.submit({"X": np.full((1, 1), rows["quiet"], "f4")}, "quiet")))
        await asyncio.sleep(0)
        pause.set()
        await asyncio.gather(first, *calls)
        assert [len(batch) for batch in device.batches] == [1, 4, 4, 2]
        assert rows["quiet"] in device.batches[1], "a flood by one payer does not keep another waiting"

    asyncio.run(run())


def test_the_queue_is_bounded_and_late_items_never_run() -> None:
    async def run() -> None:
        pause = asyncio.Event()
        device = Device(pause)
        batcher = Batcher(device, 1, queue_limit=2)
        running = asyncio.create_task(batcher.submit({"X": np.zeros((1, 1))}))
        await asyncio.sleep(0)
        late = asyncio.create_task(batcher.submit({"X": np.full((1, 1), 5.0)}, timeout_s=-1))
        await asyncio.sleep(0)
        waiting = asyncio.create_task(batcher.submit({"X": np.full((1, 1), 6.0)}))
        await asyncio.sleep(0)
        with pytest.raises(CallError, match="full"):
            await batcher.submit({"X": np.zeros((1, 1))})
        pause.set()
        await asyncio.gather(running, waiting)
        with pytest.raises(CallError) as refused:
            await late
        assert refused.value.code == "deadline"
        assert not any(5.0 in batch for batch in device.batches)

    asyncio.run(run())


def test_a_model_that_returns_another_number_of_rows_fails_instead_of_mixing_callers() -> None:
    class Short(Device):
        async def run(self, inputs: Inputs) -> Inputs:
            return {"Y": inputs["X"][:1]}

    async def run() -> None:
        batcher = Batcher(Short(), 8)
        calls = [asyncio.create_task(batcher.submit({"X": np.full((2, 1), float(i))})) for i in range(3)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(result, RuntimeError) for result in results)

    asyncio.run(run())
