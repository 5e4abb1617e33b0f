"""Mirror of dapps/testing.py: the suite passes honest DApps and names the rule that a broken one breaks."""

from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from dapps.api import DApp
from dapps.registry import load
from dapps.testing import CheckFailed, check_dapp
from dapps.types import ClinicalFile, Finding, Inputs, IntakeRefused, Price, Report, Tensor


class Honest(DApp):
    """Weighs a signal. Research use only."""

    version = "1.0.0"
    inputs = (Tensor("X", "FP32", [-1]),)
    outputs = (Tensor("Y", "FP32", [1]),)
    price = Price(10, maximum_items=4)

    def load(self, device: str) -> None:
        self.calls = 0

    def forward(self, **tensors: torch.Tensor) -> dict[str, torch.Tensor]:
        self.calls += 1
        x = tensors["X"]
        return {"Y": self.answer(x * torch.arange(1, x.shape[1] + 1))}

    def answer(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(x.mean(1, keepdim=True))

    def example(self) -> Inputs:
        return {"X": np.linspace(-1, 1, 50, dtype=np.float32)[None]}

    def sample(self) -> ClinicalFile:
        return ClinicalFile(b"three items")

    def intake(self, file: ClinicalFile) -> Inputs:
        return {"X": np.repeat(self.example()["X"], 3, axis=0)}

    def report(self, outputs: Inputs) -> Report:
        return Report("weighed", (Finding("weight", "weight", None, float(outputs["Y"].mean())),))


class Undescribed(Honest):
    pass


Undescribed.__doc__ = ""


class Free(Honest):
    """Costs nothing."""

    price = Price(0)


class NameTwice(Honest):
    """Has one name for two tensors."""

    outputs = (Tensor("X", "FP32", [1]),)


class WrongExample(Honest):
    """Gives its example as float64."""

    def example(self) -> Inputs:
        return {"X": np.zeros((1, 50))}


class TwoExamples(Honest):
    """Gives two items as its example."""

    def example(self) -> Inputs:
        return {"X": np.zeros((2, 50), np.float32)}


class MissingInput(Honest):
    """Leaves its input out of the example."""

    def example(self) -> Inputs:
        return {}


class WrongType(Honest):
    """Answers in float64."""

    def answer(self, x: torch.Tensor) -> torch.Tensor:
        return super().answer(x).double()


class WrongShape(Honest):
    """Answers two values an item."""

    def answer(self, x: torch.Tensor) -> torch.Tensor:
        return super().answer(x).repeat(1, 2)


class LostRow(Honest):
    """Answers all rows but the last of a batch."""

    def answer(self, x: torch.Tensor) -> torch.Tensor:
        answer = super().answer(x)
        return answer[:-1] if len(x) > 1 else answer


class Leaky(Honest):
    """Normalises over the batch: another payer's row changes the answer."""

    def answer(self, x: torch.Tensor) -> torch.Tensor:
        return super().answer(x - x.mean(0, keepdim=True))


class Ranked(Honest):
    """Adds the row's place in the batch."""

    def answer(self, x: torch.Tensor) -> torch.Tensor:
        return super().answer(x) + 0.01 * torch.arange(len(x))[:, None]


class Moody(Honest):
    """Answers otherwise at every call."""

    def answer(self, x: torch.Tensor) -> torch.Tensor:
        return super().answer(x) + 0.01 * self.calls


class Greedy(Honest):
    """Makes more items of a file than its price allows."""

    price = Price(10, maximum_items=2)


class WrongIntake(Honest):
    """Reads a file into another tensor than it declares."""

    def intake(self, file: ClinicalFile) -> Inputs:
        return {"X": np.zeros((1, 50), np.float32), "Z": np.zeros((1, 1), np.float32)}


class Certain(Honest):
    """Is surer than sure."""

    def report(self, outputs: Inputs) -> Report:
        return Report("sure", (Finding("weight", "weight", True, 1.2),))


class Speechless(Honest):
    """Says nothing."""

    def report(self, outputs: Inputs) -> Report:
        return Report("", ())


class TensorsOnly(Honest):
    """Takes no files, which is allowed."""

    def sample(self) -> ClinicalFile:
        raise IntakeRefused("no_sample", "tensors only")


class Whole(Honest):
    """Answers with whole numbers, which is allowed."""

    outputs: ClassVar[Any] = (Tensor("Y", "INT64", [1]),)

    def answer(self, x: torch.Tensor) -> torch.Tensor:
        return (super().answer(x) > 0.5).long()


@pytest.mark.parametrize("name", ["chdr", "strokedr"])
def test_the_built_in_dapps_pass(name: str) -> None:
    check_dapp(load(name))


@pytest.mark.parametrize("kind", [Honest, TensorsOnly, Whole])
def test_an_honest_dapp_passes(kind: type[DApp]) -> None:
    check_dapp(kind())


@pytest.mark.parametrize(
    ("kind", "rule"),
    [
        pytest.param(Undescribed, "description", id="undescribed"),
        pytest.param(Free, "price", id="free"),
        pytest.param(NameTwice, "tensors", id="name-twice"),
        pytest.param(WrongExample, "dtype", id="example-dtype"),
        pytest.param(TwoExamples, "items", id="two-examples"),
        pytest.param(MissingInput, "tensors", id="missing-input"),
        pytest.param(WrongType, "dtype", id="output-dtype"),
        pytest.param(WrongShape, "shape", id="output-shape"),
        pytest.param(LostRow, "items", id="lost-row"),
        pytest.param(Leaky, "isolation", id="rows-see-each-other"),
        pytest.param(Ranked, "isolation", id="place-in-batch"),
        pytest.param(Moody, "determinism", id="not-deterministic"),
        pytest.param(Greedy, "items", id="more-items-than-priced"),
        pytest.param(WrongIntake, "tensors", id="undeclared-intake"),
        pytest.param(Certain, "report", id="impossible-probability"),
        pytest.param(Speechless, "report", id="no-summary"),
    ],
)
def test_a_broken_dapp_fails_by_its_rule(kind: type[DApp], rule: str) -> None:
    with pytest.raises(CheckFailed) as failed:
        check_dapp(kind())
    assert failed.value.rule == rule


def test_a_failed_check_is_an_assertion_that_says_what_was_seen() -> None:
    with pytest.raises(AssertionError, match="price: an item or a GPU second must cost something"):
        check_dapp(Free())


class Leaky(DApp):
    """Gives every row the mean of its whole batch."""

    version = "1.0.0"
    inputs = (Tensor("IMAGE", "UINT8", [4, 4]),)
    outputs = (Tensor("MEAN", "FP32", [1]),)
    price = Price(1)

    def load(self, device: str) -> None:
        """Nothing to load."""

    def forward(self, **tensors: Any) -> dict[str, Any]:
        image = tensors["IMAGE"]
        return {"MEAN": image.float().mean().reshape(1, 1).expand(len(image), 1)}

    def example(self) -> dict[str, Any]:
        return {"IMAGE": np.zeros((1, 4, 4), "uint8")}


def test_a_leak_of_the_batchs_mean_is_found_even_from_an_example_of_zeros() -> None:
    with pytest.raises(CheckFailed) as failed:
        check_dapp(Leaky())
    assert failed.value.rule == "isolation"
