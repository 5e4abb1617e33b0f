"""Checks the batcher with any mixture of calls: rows reach their own caller, a bad item fails alone, nobody starves."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dapps.api.types import Inputs
from serving.errors import CallError
from serving.execution.batcher import Batcher
from serving.execution.executor import CHECK_PAYER, START_PAYER, Completion, Submission
from serving.telemetry import Execution
from tests.examples import examples


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


OWN = st.sampled_from(["a", "b", CHECK_PAYER, START_PAYER])


@settings(max_examples=examples(100))
@given(calls=st.lists(st.tuples(st.integers(1, 5), OWN), min_size=1, max_size=12), maximum=st.integers(1, 8))
def test_work_that_no_caller_asked_for_is_in_nobodys_statistics(calls: list[tuple[int, str]], maximum: int) -> None:
    """A check that shares a batch with callers leaves their rows and calls as they are."""
    executions: list[Execution] = []

    async def run() -> None:
        batcher = Batcher(Device(), maximum, observe=executions.append)
        await asyncio.gather(
            *(batcher.submit(Submission({"X": np.zeros((rows, 1), "f4")}, payer)) for rows, payer in calls)
        )

    asyncio.run(run())
    callers = [rows for rows, payer in calls if payer in ("a", "b")]
    assert sum(execution.rows for execution in executions) == sum(callers)
    assert sum(execution.calls for execution in executions) == len(callers)
    assert all(execution.calls for execution in executions)


CALL = st.tuples(
    st.lists(st.integers(0, 20), min_size=1, max_size=5), st.sampled_from(["f4", "i4"]), st.sampled_from("abc")
)


@settings(max_examples=examples(200))
@given(calls=st.lists(CALL, max_size=20), maximum=st.integers(1, 8), gone=st.sets(st.integers(0, 19)))
def test_every_caller_gets_its_own_rows_or_its_own_error(
    calls: list[tuple[list[int], str, str]], maximum: int, gone: set[int]
) -> None:
    async def run() -> None:
        device = Device()
        batcher = Batcher(device, maximum)

        async def call(values: list[int], kind: str, payer: str) -> Completion:
            return await batcher.submit(Submission({"X": np.array(values, dtype=kind).reshape(-1, 1)}, payer))

        tasks = [asyncio.create_task(call(*arguments)) for arguments in calls]
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
                assert isinstance(result, Completion), result
                outputs = result.outputs["Y"]
                assert outputs.dtype == np.dtype(kind) and outputs.ravel().tolist() == [-v for v in values]
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
        first = asyncio.create_task(batcher.submit(Submission({"X": np.zeros((1, 1), "f4")})))
        await asyncio.sleep(0)
        calls = [
            asyncio.create_task(batcher.submit(Submission({"X": np.full((1, 1), rows["flood"], "f4")}, "flood")))
            for _ in range(9)
        ]
        calls.append(
            asyncio.create_task(batcher.submit(Submission({"X": np.full((1, 1), rows["quiet"], "f4")}, "quiet")))
        )
        await asyncio.sleep(0)
        pause.set()
        await asyncio.gather(first, *calls)
        assert [len(batch) for batch in device.batches] == [1, 4, 4, 2]
        assert rows["quiet"] in device.batches[1], "a flood by one payer does not keep another waiting"

    asyncio.run(run())


def rows(value: float, count: int = 1, width: int = 1) -> Inputs:
    return {"X": np.full((count, width), value, "f4")}


async def busy(
    queue_limit: int = 256, maximum: int = 1
) -> tuple[Batcher, Device, asyncio.Event, asyncio.Task[Completion]]:
    """A batcher whose device is running a batch of one until the event is set."""
    pause = asyncio.Event()
    device = Device(pause)
    batcher = Batcher(device, maximum, queue_limit)
    running = asyncio.create_task(batcher.submit(Submission(rows(0), "first")))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return batcher, device, pause, running


def test_the_queue_is_bounded() -> None:
    async def run() -> None:
        batcher, _, pause, running = await busy(queue_limit=2)
        waiting = [asyncio.create_task(batcher.submit(Submission(rows(6)))) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(CallError, match="full") as refused:
            await batcher.submit(Submission(rows(0)))
        assert refused.value.code == "queue_full"
        pause.set()
        await asyncio.gather(running, *waiting)

    asyncio.run(run())


def test_a_late_call_is_told_while_the_device_is_busy_never_runs_and_frees_its_place() -> None:
    async def run() -> None:
        batcher, device, pause, running = await busy(queue_limit=1)
        with pytest.raises(CallError) as refused:
            await batcher.submit(Submission(rows(5), timeout_s=0.01))
        assert refused.value.code == "deadline" and not running.done()
        next_one = asyncio.create_task(batcher.submit(Submission(rows(6))))
        await asyncio.sleep(0)
        pause.set()
        await asyncio.gather(running, next_one)
        assert not any(5.0 in batch for batch in device.batches)

    asyncio.run(run())


def test_a_call_that_has_begun_is_answered_whatever_its_deadline() -> None:
    async def run() -> None:
        pause = asyncio.Event()
        batcher = Batcher(Device(pause), 1)
        began = asyncio.create_task(batcher.submit(Submission(rows(7), timeout_s=0.01)))
        await asyncio.sleep(0.05)
        pause.set()
        assert (await began).outputs["Y"].tolist() == [[-7.0]]

    asyncio.run(run())


def test_a_flood_by_one_payer_gives_way_to_another_one() -> None:
    async def run() -> None:
        batcher, device, pause, running = await busy(queue_limit=8, maximum=4)
        flood = [asyncio.create_task(batcher.submit(Submission(rows(1), "flood"))) for _ in range(8)]
        await asyncio.sleep(0)
        quiet = [asyncio.create_task(batcher.submit(Submission(rows(2), "quiet"))) for _ in range(3)]
        await asyncio.sleep(0)
        pause.set()
        done = await asyncio.gather(*flood, return_exceptions=True)
        assert all(isinstance(answer, Completion) for answer in await asyncio.gather(running, *quiet))
        refused = [answer for answer in done if isinstance(answer, CallError)]
        assert len(refused) == 3 and {error.code for error in refused} == {"queue_full"}
        assert (device.batches[1] == 2).sum() == 2, "payers take turns within a batch"

    asyncio.run(run())


def test_a_full_queue_admits_whom_it_would_make_room_for_and_nobody_else() -> None:
    async def run() -> None:
        batcher, _, pause, running = await busy(queue_limit=4)
        batcher.admit("flood")
        flood = [asyncio.create_task(batcher.submit(Submission(rows(1), "flood"))) for _ in range(4)]
        await asyncio.sleep(0)
        with pytest.raises(CallError, match="full"):
            batcher.admit("flood")
        batcher.admit("quiet")
        flood[0].cancel()
        await asyncio.sleep(0)
        batcher.admit("flood")
        pause.set()
        await asyncio.gather(running, *flood, return_exceptions=True)

    asyncio.run(run())


def test_priority_orders_ones_own_calls_and_never_overtakes_another_payer() -> None:
    async def run() -> None:
        batcher, device, pause, running = await busy()
        tasks = []
        for value, payer, priority in ((1, "a", 0), (2, "b", 0), (3, "a", 2), (4, "a", 1)):
            tasks.append(asyncio.create_task(batcher.submit(Submission(rows(value), payer, priority=priority))))
            await asyncio.sleep(0)
        pause.set()
        await asyncio.gather(running, *tasks)
        assert [int(batch[0, 0]) for batch in device.batches[1:]] == [4, 2, 3, 1]

    asyncio.run(run())


def test_one_bad_call_among_32_is_found_by_halving() -> None:
    async def run() -> None:
        batcher, device, pause, running = await busy(maximum=32)
        tasks = [asyncio.create_task(batcher.submit(Submission(rows(13 if i == 20 else i)))) for i in range(14, 46)]
        await asyncio.sleep(0)
        pause.set()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        await running
        assert [i for i, answer in enumerate(done) if isinstance(answer, ValueError)] == [6]
        assert len(device.batches) == 1 + 1 + 2 * 5

    asyncio.run(run())


WAITING = st.tuples(
    st.sampled_from("abc"), st.integers(1, 4), st.integers(1, 3), st.sampled_from(["stays", "stays", "late", "gone"])
)


@settings(max_examples=examples(150))
@given(calls=st.lists(WAITING, max_size=16), maximum=st.integers(1, 6), limit=st.integers(1, 24))
def test_what_waits_is_bounded_fair_and_runs_once_or_never(
    calls: list[tuple[str, int, int, str]], maximum: int, limit: int
) -> None:
    """Each call carries its own number as value, so that every row that ran tells whose it was."""

    async def run() -> None:
        batcher, device, pause, running = await busy(limit, maximum)
        tasks = []
        for number, (payer, count, width, fate) in enumerate(calls, start=100):
            timeout_s = 0 if fate == "late" else 60.0
            tasks.append(asyncio.create_task(batcher.submit(Submission(rows(number, count, width), payer, timeout_s))))
            await asyncio.sleep(0)
            assert batcher.waiting <= max(limit, max(count for _, count, _, _ in calls))
        for task, (*_, fate) in zip(tasks, calls, strict=True):
            if fate == "gone":
                task.cancel()
        await asyncio.sleep(0.001)
        pause.set()
        await running
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        ran = [int(row) for batch in device.batches[1:] for row in batch[:, 0]]
        for number, ((_, count, width, fate), answer) in enumerate(zip(calls, answers, strict=True), start=100):
            if isinstance(answer, Completion):
                assert fate == "stays" and answer.outputs["Y"].tolist() == [[-float(number)] * width] * count
                assert ran.count(number) == count
            else:
                assert ran.count(number) == 0
                assert fate != "stays" or (isinstance(answer, CallError) and answer.code == "queue_full")
        for batch in device.batches:
            values = batch[:, 0].tolist()
            assert len(batch) <= max(maximum, values.count(values[0]))
        assert batcher.waiting == 0

    asyncio.run(run())


KINDS = st.fixed_dictionaries({"X": st.sampled_from(["f4", "f8"])}, optional={"Z": st.sampled_from(["i4", "i8"])})


@settings(max_examples=examples(100))
@given(calls=st.lists(st.tuples(KINDS, st.integers(1, 2)), min_size=1, max_size=12))
def test_only_calls_with_the_same_inputs_dtypes_and_shapes_share_a_batch(
    calls: list[tuple[dict[str, str], int]],
) -> None:
    class Strict:
        def __init__(self) -> None:
            self.pause = asyncio.Event()
            self.calls = 0

        async def run(self, inputs: Inputs) -> Inputs:
            await self.pause.wait()
            self.calls += 1
            return {"Y": inputs["X"] + inputs.get("Z", 0), "HAS_Z": np.full(len(inputs["X"]), "Z" in inputs)}

    async def run() -> None:
        device = Strict()
        batcher = Batcher(device, 32)
        held = asyncio.create_task(batcher.submit(Submission({"X": np.zeros((1, 9))})))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        tasks = []
        for number, (kinds, width) in enumerate(calls):
            inputs = {name: np.full((1, width), number, kind) for name, kind in kinds.items()}
            tasks.append(asyncio.create_task(batcher.submit(Submission(inputs))))
        await asyncio.sleep(0)
        device.pause.set()
        await held
        for number, ((kinds, width), answer) in enumerate(zip(calls, await asyncio.gather(*tasks), strict=True)):
            assert answer.outputs["HAS_Z"].tolist() == ["Z" in kinds]
            expected = np.full((1, width), number, kinds["X"]) + (
                np.full((1, width), number, kinds["Z"]) if "Z" in kinds else 0
            )
            assert answer.outputs["Y"].dtype == expected.dtype and (answer.outputs["Y"] == expected).all()
        buckets = {(tuple(sorted(kinds.items())), width) for kinds, width in calls}
        assert device.calls == 1 + len(buckets), "what may share a batch does"

    asyncio.run(run())


def test_a_model_that_returns_another_number_of_rows_fails_instead_of_mixing_callers() -> None:
    class Short(Device):
        async def run(self, inputs: Inputs) -> Inputs:
            return {"Y": inputs["X"][:1]}

    async def run() -> None:
        batcher = Batcher(Short(), 8)
        calls = [asyncio.create_task(batcher.submit(Submission({"X": np.full((2, 1), float(i))}))) for i in range(3)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(result, RuntimeError) for result in results)

    asyncio.run(run())


@settings(max_examples=examples(100))
@given(calls=st.lists(st.tuples(st.integers(1, 5), st.booleans()), min_size=1, max_size=12), maximum=st.integers(1, 8))
def test_the_devices_time_is_divided_among_calls_and_never_more_than_it_was(
    calls: list[tuple[int, bool]], maximum: int
) -> None:
    async def run() -> None:
        ran: list[Execution] = []
        batcher = Batcher(Device(), maximum, observe=ran.append)

        async def call(rows: int, bad: bool) -> Completion:
            return await batcher.submit(Submission({"X": np.full((rows, 1), 13 if bad else 1, "f4")}, "a"))

        results = await asyncio.gather(*(call(rows, bad) for rows, bad in calls), return_exceptions=True)
        assert [isinstance(result, ValueError) for result in results] == [bad for _, bad in calls]
        used_ns = sum(result.device_ns for result in results if isinstance(result, Completion))
        took_ns = sum(execution.took_ns for execution in ran)
        assert took_ns - len(calls) <= used_ns <= took_ns

    asyncio.run(run())
