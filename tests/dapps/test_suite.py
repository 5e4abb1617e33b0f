"""Tests dapps/conformance/suite.py: it passes honest DApps, and names a broken rule and its line."""

import hashlib
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from dapps.api.dapp import DApp
from dapps.api.types import ClinicalFile, Finding, Inputs, IntakeRefused, Price, Report, Tensor
from dapps.conformance.suite import CheckFailed, Limits, check_dapp, examine
from dapps.packages.registry import load

NO_CARD = ("card",)
"""The classes below lie in no package; the card has tests of its own."""
LINES = Path(__file__).read_text().splitlines()


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
        if file.data != b"three items":
            raise IntakeRefused("unreadable", "this is no recording: send one")
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
        return super().intake(file) | {"Z": np.zeros((1, 1), np.float32)}


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


class Infinite(Honest):
    """Divides by nothing."""

    def answer(self, x: torch.Tensor) -> torch.Tensor:
        return super().answer(x) / 0


class NotADict(Honest):
    """Returns a bare tensor."""

    def forward(self, **tensors: torch.Tensor) -> Any:
        return tensors["X"].mean(1, keepdim=True)


class Unloadable(Honest):
    """Finds no weights."""

    def load(self, device: str) -> None:
        raise FileNotFoundError("weights.safetensors")


class Sleeper(Honest):
    """Never answers."""

    def answer(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(3600)
        return x


class Hungry(Honest):
    """Allocates without bound."""

    def load(self, device: str) -> None:
        torch.empty(1 << 60, dtype=torch.uint8)


class Talker(Honest):
    """Prints what it is asked."""

    def answer(self, x: torch.Tensor) -> torch.Tensor:
        print(x[0, 0])
        return super().answer(x)


class NoisyLoad(Honest):
    """Reports its progress while it loads."""

    def load(self, device: str) -> None:
        super().load(device)
        print("loading", file=sys.stderr)


class NaNIntake(Honest):
    """Reads a gap of the recording as not a number."""

    def intake(self, file: ClinicalFile) -> Inputs:
        return {"X": super().intake(file)["X"] * np.float32("nan")}


class TwoOptional(Honest):
    """Weighs a signal with up to two others."""

    inputs = (
        Tensor("X", "FP32", [-1]),
        Tensor("A", "FP32", [1], optional=True),
        Tensor("B", "FP32", [1], optional=True),
    )

    def example(self) -> Inputs:
        unit = np.ones((1, 1), np.float32)
        return super().example() | {"A": unit, "B": unit}

    def forward(self, **tensors: torch.Tensor) -> dict[str, torch.Tensor]:
        others = sum((tensors[name] for name in ("A", "B") if name in tensors), torch.zeros(1))
        return {"Y": super().forward(X=tensors["X"])["Y"] + others}

    def sample(self) -> ClinicalFile:
        raise IntakeRefused("no_sample", "tensors only")


class NeedsEither(TwoOptional):
    """Answers without A and without B, but not without both."""

    def forward(self, **tensors: torch.Tensor) -> dict[str, torch.Tensor]:
        if "A" not in tensors:
            tensors["A"] = tensors["B"]
        return super().forward(**tensors)


class Parent(Honest):
    """Starts a process of its own."""

    child: Any = None

    def answer(self, x: torch.Tensor) -> torch.Tensor:
        if self.child is None:
            self.child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        return super().answer(x)


class Believer(Honest):
    """Takes every file for a recording."""

    def intake(self, file: ClinicalFile) -> Inputs:
        return self.example()


class Stumbler(Honest):
    """Falls over a file that is none."""

    def intake(self, file: ClinicalFile) -> Inputs:
        return super().intake(file) if file.data == b"three items" else {"X": np.zeros(int(file.data))}


class Gossip(Honest):
    """Quotes the file that it refuses."""

    def intake(self, file: ClinicalFile) -> Inputs:
        if file.data != b"three items":
            raise IntakeRefused("unreadable", f"{file.name} is no recording")
        return super().intake(file)


@pytest.mark.parametrize("name", ["chdr", "strokedr"])
def test_the_built_in_dapps_pass(name: str) -> None:
    check_dapp(load(name))


@pytest.mark.parametrize("kind", [Honest, TensorsOnly, Whole, Free, TwoOptional])
def test_an_honest_dapp_passes(kind: type[DApp]) -> None:
    check_dapp(kind(), without=NO_CARD)


@pytest.mark.parametrize(
    ("kind", "rule", "line"),
    [
        pytest.param(Undescribed, "description", "class Undescribed", id="undescribed"),
        pytest.param(NameTwice, "tensors", 'outputs = (Tensor("X"', id="name-twice"),
        pytest.param(WrongExample, "dtype", "def example", id="example-dtype"),
        pytest.param(TwoExamples, "items", "def example", id="two-examples"),
        pytest.param(MissingInput, "tensors", "def example", id="missing-input"),
        pytest.param(WrongType, "dtype", "def forward", id="output-dtype"),
        pytest.param(WrongShape, "shape", "def forward", id="output-shape"),
        pytest.param(NotADict, "tensors", "def forward", id="no-dict"),
        pytest.param(LostRow, "items", "def forward", id="lost-row"),
        pytest.param(Infinite, "finite", "def forward", id="not-finite"),
        pytest.param(Leaky, "isolation", "def forward", id="rows-see-each-other"),
        pytest.param(Ranked, "isolation", "def forward", id="place-in-batch"),
        pytest.param(Moody, "determinism", "def forward", id="not-deterministic"),
        pytest.param(Greedy, "items", "price = Price(10, maximum_items=2)", id="more-items-than-priced"),
        pytest.param(WrongIntake, "tensors", "def intake", id="undeclared-intake"),
        pytest.param(Certain, "report", "def report", id="impossible-probability"),
        pytest.param(Speechless, "report", "def report", id="no-summary"),
        pytest.param(Unloadable, "raises", "raise FileNotFoundError", id="load-raises"),
        pytest.param(Hungry, "memory", "torch.empty(1 << 60", id="without-bound"),
        pytest.param(Talker, "quiet", "def forward", id="prints"),
        pytest.param(NoisyLoad, "quiet", "def load", id="load-prints"),
        pytest.param(NaNIntake, "finite", "def intake", id="intake-not-finite"),
        pytest.param(NeedsEither, "optional", 'tensors["A"] = tensors["B"]', id="needs-an-optional-input"),
        pytest.param(Parent, "processes", "def forward", id="forks"),
        pytest.param(Believer, "refusal", "def intake", id="takes-anything"),
        pytest.param(Stumbler, "refusal", "int(file.data)", id="intake-raises"),
        pytest.param(Gossip, "refusal", "def intake", id="quotes-the-file"),
    ],
)
def test_a_broken_dapp_fails_by_its_rule_and_names_the_line(kind: type[DApp], rule: str, line: str) -> None:
    dapp = kind()
    with pytest.raises(CheckFailed) as failed:
        check_dapp(dapp, without=NO_CARD)
    if isinstance(dapp, Parent):
        dapp.child.communicate(b"\n")
    assert failed.value.rule == rule
    file, _, number = failed.value.place.rpartition(":")
    assert Path(file) == Path(__file__) and line in LINES[int(number) - 1], failed.value


def test_who_never_answers_is_told_where_it_hangs() -> None:
    outcomes = list(examine(Sleeper(), without=NO_CARD, limits=Limits(step_s=2)))
    failure = outcomes[-1].failure
    assert failure is not None and failure.rule == "time"
    assert "time.sleep(3600)" in LINES[int(failure.place.rpartition(":")[2]) - 1]


def test_what_depends_on_a_failed_step_is_skipped_and_the_rest_is_told() -> None:
    outcomes = {outcome.step: outcome for outcome in examine(WrongExample(), without=NO_CARD)}
    assert outcomes["example"].failure and outcomes["card"].skipped == "left out"
    assert outcomes["batches"].skipped == "needs example" and outcomes["refusals"].failure is None
    assert outcomes["start-up"].peak_bytes > 10 << 20


def test_a_failed_check_is_an_assertion_that_says_what_was_seen_and_where() -> None:
    with pytest.raises(AssertionError, match=r"finite: forward: Y is not finite.*\(.*test_suite\.py:\d+\)"):
        check_dapp(Infinite(), without=NO_CARD)


CARD = """\
name: Weigher
version: 1.0.0
intended_use: research
purpose: weighs a signal
data: {name: made up, licence: CC0-1.0}
limits: [none is known]
"""


def _packaged(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, card: str | None) -> DApp:
    """The honest DApp as if it lay in a package of its own, with a card and weights."""
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text("")
    (folder / name / "w.safetensors").write_bytes(b"weights")
    if card is not None:
        (folder / name / "CARD.yaml").write_text(card)
    monkeypatch.syspath_prepend(str(folder))
    module = ModuleType(f"{name}.dapp")
    module.__package__ = name
    monkeypatch.setitem(sys.modules, f"{name}.dapp", module)
    kind: Any = type("Packaged", (Honest,), {"__module__": f"{name}.dapp", "__doc__": Honest.__doc__})
    dapp: DApp = kind()
    return dapp


def _card_failure(dapp: DApp) -> CheckFailed | None:
    return next(step.failure for step in examine(dapp, without=("start-up",)) if step.step == "card")


def test_a_complete_card_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = hashlib.sha256(b"weights").hexdigest()
    card = f"{CARD}weights: {{sha256: {digest}}}\n"
    assert _card_failure(_packaged(tmp_path, monkeypatch, "carded", card)) is None


@pytest.mark.parametrize(
    ("card", "rule", "says"),
    [
        pytest.param(None, "card", "there is no", id="none"),
        pytest.param("a: 1\nb: ]", "card", "line 2", id="no-yaml"),
        pytest.param("- a", "card", "no mapping", id="a-list"),
        pytest.param(CARD.replace("limits", "limit"), "card", "`limits` is missing", id="a-section-missing"),
        pytest.param(CARD.replace("1.0.0", "1.0.1"), "version", "its version is 1.0.1", id="another-version"),
        pytest.param(CARD.replace("weighs a signal", '""'), "card", "`purpose` is missing", id="an-empty-section"),
        pytest.param(f"{CARD}weights: {{sha256: 00}}\n", "card", "other weights", id="other-weights"),
        pytest.param(
            CARD.replace("CC0-1.0", "CC-BY-NC-4.0, non_commercial: true"),
            "licence",
            "price must be 0",
            id="not-for-sale",
        ),
    ],
)
def test_an_incomplete_card_is_refused_by_its_section(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, card: str | None, rule: str, says: str, request: Any
) -> None:
    name = "card_" + request.node.callspec.id.replace("-", "_")
    failure = _card_failure(_packaged(tmp_path, monkeypatch, name, card))
    assert failure is not None and failure.rule == rule and says in failure.message


def test_what_may_not_be_sold_may_be_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dapp = _packaged(tmp_path, monkeypatch, "given_away", f"{CARD}non_commercial: true\n")
    type(dapp).price = Price(0)
    assert _card_failure(dapp) is None


class Mixed(DApp):
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
        check_dapp(Mixed(), without=NO_CARD)
    assert failed.value.rule == "isolation"
