"""Checks how far an optimization may move an answer, and what the runner does when its device fails, on the CPU."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from dapps import DApp, Price, Tensor
from serving.device.optimizations import NAMES, Forward
from serving.device.torch_runner import TorchRunner
from serving.errors import CallError


class Net(DApp):
    """A convolution and a sum; how far half precision moves it depends on `scale`."""

    version = "1.0.0"
    inputs = (Tensor("IMAGE", "UINT8", [3, 16, 16]),)
    outputs = (Tensor("SUM", "FP32", [1]), Tensor("CLASS", "INT64", [1]))
    price = Price(10)
    maximum_batch = 8
    precisions = ("bf16",)
    scale = 1e-8

    def load(self, device: str) -> None:
        generator = torch.Generator().manual_seed(7)
        self.convolution = torch.nn.Conv2d(3, 8, 3)
        with torch.no_grad():
            for parameter in self.convolution.parameters():
                parameter.copy_(torch.rand(parameter.shape, generator=generator))
        self.convolution.eval().to(device)
        self.seen: list[int] = []

    def forward(self, **tensors: Any) -> dict[str, Any]:
        self.seen.append(len(tensors["IMAGE"]))
        total = self.convolution(tensors["IMAGE"].float()).sum((1, 2, 3))[:, None] * self.scale
        return {"SUM": total, "CLASS": (total > 0).long()}

    def example(self) -> dict[str, Any]:
        return {"IMAGE": np.random.default_rng(3).integers(0, 255, (1, 3, 16, 16), dtype="u1")}


class Strict(Net):
    """The same sums in their natural size: bf16 moves them far beyond the tolerance."""

    scale = 1.0


class Silent(Net):
    """Names no half precision, although it could bear one."""

    precisions = ()


async def _started(dapp: DApp, optimizations: Sequence[str] | None) -> TorchRunner:
    runner = TorchRunner(dapp, "cpu", optimizations=optimizations)
    await runner.start()
    return runner


def _run(dapp: DApp, optimizations: Sequence[str] | None, rows: int = 5) -> tuple[TorchRunner, dict[str, Any]]:
    async def whole() -> tuple[TorchRunner, dict[str, Any]]:
        runner = await _started(dapp, optimizations)
        images = np.random.default_rng(5).integers(0, 255, (rows, 3, 16, 16), dtype="u1")
        try:
            return runner, await runner.run({"IMAGE": images})
        finally:
            runner.close()

    return asyncio.run(whole())


@pytest.mark.parametrize("optimization", ["channels_last", "bf16", "staged"])
def test_a_optimization_inside_the_tolerance_is_used(optimization: str) -> None:
    plain, expected = _run(Net(), ())
    runner, outputs = _run(Net(), [optimization])
    assert plain.optimizations == () and runner.optimizations == (optimization,)
    np.testing.assert_allclose(outputs["SUM"], expected["SUM"], atol=Net.tolerance)
    assert outputs["SUM"].dtype == np.float32


def test_a_optimization_that_moves_an_answer_is_refused_and_leaves_no_trace(caplog: pytest.LogCaptureFixture) -> None:
    _, expected = _run(Strict(), ())
    with caplog.at_level(logging.WARNING, "leben.optimizations"):
        runner, outputs = _run(Strict(), ["bf16", "channels_last"])
    assert "bf16" not in runner.optimizations
    assert [record.message for record in caplog.records if "optimization bf16 is off: it moves SUM" in record.message]
    np.testing.assert_allclose(outputs["SUM"], expected["SUM"], rtol=1e-5)


def test_layout_is_undone_with_the_optimization() -> None:
    dapp = Net()
    dapp.load("cpu")
    forward = Forward(dapp, "cpu")
    forward.use(("channels_last",), 4)
    assert dapp.convolution.weight.is_contiguous(memory_format=torch.channels_last)
    forward.use((), 4)
    assert dapp.convolution.weight.is_contiguous()


@pytest.mark.parametrize(
    ("dapp", "optimization", "reason"),
    [
        pytest.param(Silent(), "bf16", "does not name it", id="a precision the DApp does not allow"),
        pytest.param(Net(), "graph", "needs a CUDA device", id="of another device"),
        pytest.param(Net(), "turbo", "there is no such optimization", id="unknown"),
    ],
)
def test_what_cannot_be_used_is_said_and_the_model_answers(
    dapp: DApp, optimization: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "leben.optimizations"):
        runner, outputs = _run(dapp, [optimization])
    assert runner.optimizations == () and len(outputs["SUM"]) == 5
    assert any(reason in record.message for record in caplog.records)


def test_a_optimization_that_raises_is_off(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(forward: Any, **options: Any) -> Any:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", broken)
    with caplog.at_level(logging.WARNING, "leben.optimizations"):
        runner, _ = _run(Net(), ["compile", "channels_last"])
    assert runner.optimizations == ("channels_last",)
    assert any("optimization compile is off: RuntimeError" in record.message for record in caplog.records)


@pytest.mark.parametrize("optimizations", [(), ("staged",)])
@pytest.mark.parametrize("fits", [1, 2, 3, 5])
def test_out_of_memory_turns_into_smaller_batches(fits: int, optimizations: tuple[str, ...]) -> None:
    """Every row is answered, in order, however few fit at once."""

    class Small(Net):
        def forward(self, **tensors: Any) -> dict[str, Any]:
            if len(tensors["IMAGE"]) > fits:
                raise torch.OutOfMemoryError("out of memory")
            return super().forward(**tensors)

    _, expected = _run(Net(), (), rows=11)
    dapp = Small()
    runner, outputs = _run(dapp, optimizations, rows=11)
    assert runner.optimizations == optimizations
    np.testing.assert_allclose(outputs["SUM"], expected["SUM"], rtol=1e-5)
    assert runner.maximum_batch <= fits and max(dapp.seen) <= fits


@pytest.mark.parametrize("optimizations", [(), ("staged",)])
def test_a_device_that_failed_is_not_healthy_and_answers_no_more(optimizations: tuple[str, ...]) -> None:
    class Failing(Net):
        def forward(self, **tensors: Any) -> dict[str, Any]:
            if (tensors["IMAGE"] == 0).all():
                raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
            return super().forward(**tensors)

    async def whole() -> None:
        runner = await _started(Failing(), optimizations)
        try:
            runner.check()
            with pytest.raises(CallError, match="is replaced; the call costs nothing"):
                await runner.run({"IMAGE": np.zeros((1, 3, 16, 16), "u1")})
            with pytest.raises(RuntimeError, match="the device has failed"):
                runner.check()
            with pytest.raises(CallError, match="is replaced"):
                await runner.run(Net().example())
        finally:
            runner.close()

    asyncio.run(whole())


def test_a_call_that_fits_in_no_memory_has_a_code_of_its_own() -> None:
    class Tiny(Net):
        def forward(self, **tensors: Any) -> dict[str, Any]:
            if (tensors["IMAGE"] == 0).all():
                raise torch.OutOfMemoryError("out of memory")
            return super().forward(**tensors)

    async def whole() -> None:
        runner = await _started(Tiny(), ())
        try:
            with pytest.raises(CallError) as refused:
                await runner.run({"IMAGE": np.zeros((4, 3, 16, 16), "u1")})
            assert refused.value.code == "out_of_memory"
            runner.check()
            assert len((await runner.run(Net().example()))["SUM"]) == 1
        finally:
            runner.close()

    asyncio.run(whole())


def test_every_optimization_is_in_the_documentation() -> None:
    from pathlib import Path

    page = (Path(__file__).parents[2] / "docs" / "performance.md").read_text()
    assert [name for name in NAMES if f"`{name}`" not in page] == []
