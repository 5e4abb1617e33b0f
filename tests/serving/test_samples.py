"""Checks the samples: anyone may try them, and no one can have a model work for free by asking often."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from dapps import Case, ClinicalFile, Tensor
from serving.errors import CallError
from serving.replica.samples import FAILED_S, Samples, example_json
from serving.telemetry import LocalCounters, Statistics
from tests.serving.conftest import Bench, Doubler, replica


def test_a_sample_is_computed_once_and_costs_nothing(on_replica: Callable[..., None]) -> None:
    async def scenario(bench: Bench) -> None:
        before = len(bench.dapp.batches)
        replies = await asyncio.gather(*(bench.door.samples.answer("sample", "markdown") for _ in range(20)))
        assert {reply.status for reply in replies} == {200} and b"doubled" in replies[0].body
        assert len(bench.dapp.batches) == before + 1
        assert bench.charged() == bench.held() == 0

    on_replica(scenario)


@pytest.mark.parametrize(("sample", "view"), [("nothing", "json"), ("sample", "html"), ("example", "json"), ("", "")])
def test_only_what_is_offered_is_answered(on_replica: Callable[..., None], sample: str, view: str) -> None:
    async def scenario(bench: Bench) -> None:
        before = len(bench.dapp.batches)
        with pytest.raises(CallError, match="no such sample"):
            await bench.door.samples.answer(sample, view)
        assert len(bench.dapp.batches) == before

    on_replica(scenario)


class Failing(Doubler):
    """Its samples are what its model fails on, and what its intake refuses."""

    def samples(self) -> dict[str, Case]:
        return {"unlucky": Case((ClinicalFile(b"13"),)), "refused": Case((ClinicalFile(b"x"),))}


def test_a_sample_that_fails_is_not_tried_at_the_pace_of_who_asks() -> None:
    async def run() -> None:
        now = 0.0
        async with replica(Failing()) as bench:
            trial = Samples(bench.live, bench.door.inference, Statistics(LocalCounters()), lambda: now)
            before = len(bench.dapp.batches)
            for _ in range(5):
                reply = await trial.answer("unlucky", "json")
                assert reply.status == 500 and b"13" not in reply.body
            ran = len(bench.dapp.batches) - before
            assert ran == 1
            now = FAILED_S
            await trial.answer("unlucky", "json")
            assert len(bench.dapp.batches) - before == 2
            refused = await trial.answer("refused", "json")
            assert refused.status == 422 and json.loads(refused.body)["code"] == "unreadable"

    asyncio.run(run())


class Words(Doubler):
    """Takes tensors only, and among them text."""

    inputs = (Tensor("X", "FP32", [2]), Tensor("T", "BYTES", [1], optional=True), Tensor("U", "UINT8", [1], "", True))
    intake, prepare = Doubler.__mro__[1].intake, Doubler.__mro__[1].prepare  # type: ignore[attr-defined,assignment]

    def example(self) -> dict[str, Any]:
        return super().example() | {"T": np.array([["é".encode()]], object)}


def test_a_dapp_of_tensors_answers_its_example() -> None:
    body = example_json(Words())
    assert body["inputs"][1] == {"name": "T", "datatype": "BYTES", "shape": [1, 1], "data": ["é"]}
    assert [row["name"] for row in body["inputs"]] == ["X", "T"]

    async def run() -> None:
        async with replica(Words()) as bench:
            reply = await bench.door.samples.answer("example", "json")
            assert json.loads(reply.body)["outputs"][0]["data"] == [2.0, 4.0]

    asyncio.run(run())
