"""Checks the ring of host memory, by the steps that a CPU takes too: no batch gets another's rows."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dapps import DApp, Price, Tensor
from dapps.api.types import DTYPES
from serving.device.pinned_memory import SLOTS, StagingRing
from serving.device.torch_runner import TorchRunner
from serving.execution.batcher import Batcher
from serving.execution.executor import Completion, Submission
from tests.examples import examples


class Adder(DApp):
    """Adds one; fails on 13."""

    version = "1.0.0"
    inputs = (Tensor("X", "INT64", [-1]),)
    outputs = (Tensor("Y", "INT64", [-1]),)
    price = Price(1)
    maximum_batch = 4

    def load(self, device: str) -> None: ...

    def forward(self, **tensors: Any) -> dict[str, Any]:
        if (tensors["X"] == 13).any():
            raise ValueError("13")
        return {"Y": tensors["X"] + 1}

    def example(self) -> dict[str, Any]:
        return {"X": np.zeros((1, 3), "i8")}


@settings(max_examples=examples(30))
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 4), st.integers(0, 40)), min_size=1, max_size=25))
def test_calls_of_any_size_get_their_own_rows_back_from_two_batches_at_once(calls: list[tuple[int, int, int]]) -> None:
    async def whole() -> None:
        runner = TorchRunner(Adder(), "cpu", optimizations=["staged"])
        await runner.start()
        assert runner.optimizations == ("staged",) and runner.depth == SLOTS
        batcher = Batcher(runner, 4, depth=runner.depth)
        try:
            sent = [np.full((rows, wide), value, "i8") for rows, wide, value in calls]
            tasks = [batcher.submit(Submission({"X": array}, str(number % 3))) for number, array in enumerate(sent)]
            for array, result in zip(sent, await asyncio.gather(*tasks, return_exceptions=True), strict=True):
                if (array == 13).any():
                    assert isinstance(result, ValueError)
                else:
                    assert isinstance(result, Completion), result
                    np.testing.assert_array_equal(result.outputs["Y"], array + 1)
        finally:
            runner.close()

    asyncio.run(whole())


def test_two_batches_are_with_the_device_and_the_third_waits() -> None:
    async def whole() -> None:
        running, most, gate = 0, 0, asyncio.Event()

        class Device:
            async def run(self, inputs: Any) -> Any:
                nonlocal running, most
                running += 1
                most = max(most, running)
                await gate.wait()
                running -= 1
                return {"Y": inputs["X"]}

        batcher = Batcher(Device(), 1, depth=2)
        tasks = [asyncio.create_task(batcher.submit(Submission({"X": np.ones((1, 1))}))) for _ in range(5)]
        await asyncio.sleep(0.01)
        assert running == 2
        gate.set()
        await asyncio.gather(*tasks)
        assert (most, running) == (2, 0)
        await asyncio.wait_for(
            batcher.submit(Submission({"X": np.ones((1, 1))})), 60
        )  # and one that comes later finds a worker

    asyncio.run(whole())


@pytest.mark.parametrize("name", sorted(set(DTYPES) - {"BYTES"}))
def test_every_datatype_goes_through_the_ring_bit_by_bit(name: str) -> None:
    size = DTYPES[name].itemsize
    bits = np.random.default_rng(1).integers(0, 2 if name == "BOOL" else 256, 6 * size, dtype="u1")
    array = bits.view(DTYPES[name]).reshape(3, 2)
    answer = StagingRing("cpu").launch(lambda tensors: {"Y": tensors["X"]}, {"X": array})()
    assert answer["Y"].tobytes() == array.tobytes() and answer["Y"].shape == (3, 2)


def test_bytes_stay_an_array() -> None:
    array = np.array([[b"a"], [b"long"]], dtype=object)
    assert (
        StagingRing("cpu").launch(lambda tensors: {"Y": tensors["X"]}, {"X": array})()["Y"].tolist() == array.tolist()
    )


def test_a_slot_is_its_batchs_until_the_answer_is_taken_and_a_failure_gives_it_back() -> None:
    staging = StagingRing("cpu")

    def broken(tensors: dict[str, Any]) -> dict[str, Any]:
        raise ValueError("no")

    for _ in range(2 * SLOTS):
        with pytest.raises(ValueError, match="no"):
            staging.launch(broken, {"X": np.zeros((1, 1), "f4")})
    batches = [np.full((2, 2), number, "f4") for number in range(SLOTS + 1)]
    taken = [staging.launch(lambda tensors: {"Y": tensors["X"] * 2}, {"X": batch}) for batch in batches[:SLOTS]]
    late: list[Any] = []
    more = threading.Thread(
        target=lambda: late.append(staging.launch(lambda tensors: {"Y": tensors["X"] * 2}, {"X": batches[-1]})())
    )
    more.start()
    for answer, batch in zip(taken, batches, strict=False):
        np.testing.assert_array_equal(answer()["Y"], batch * 2)
    more.join(10)
    np.testing.assert_array_equal(late[0]["Y"], batches[-1] * 2)
