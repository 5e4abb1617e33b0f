"""The models that Triton's example clients call, as DApps, and some that show what those leave out.

A package as a stranger would install it: with this folder on `PYTHONPATH` its entry points are found. Free of charge,
but for `simple_paid`, `simple_busy`, and `simple_asking`, which asks the first.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from dapps import ChildFailed, DApp, IntakeRefused, Price, Tensor
from dapps.api.types import DTYPES


class Simple(DApp):
    """Adds and subtracts sixteen integers."""

    version = "1"
    inputs = (Tensor("INPUT0", "INT32", [16]), Tensor("INPUT1", "INT32", [16]))
    outputs = (Tensor("OUTPUT0", "INT32", [16]), Tensor("OUTPUT1", "INT32", [16]))
    price = Price(0)
    maximum_batch = 8

    def load(self, device: str) -> None:
        pass

    def forward(self, **tensors: Any) -> dict[str, Any]:
        first, second = tensors["INPUT0"], tensors["INPUT1"]
        return {"OUTPUT0": first + second, "OUTPUT1": first - second}

    def example(self) -> dict[str, Any]:
        return {tensor.name: np.ones((1, 16), tensor.dtype) for tensor in self.inputs}


class SimpleInt8(Simple):
    """Adds and subtracts sixteen small integers."""

    inputs = (Tensor("INPUT0", "INT8", [16]), Tensor("INPUT1", "INT8", [16]))
    outputs = (Tensor("OUTPUT0", "INT8", [16]), Tensor("OUTPUT1", "INT8", [16]))


class SimpleString(Simple):
    """Adds and subtracts sixteen integers written as text."""

    inputs = (Tensor("INPUT0", "BYTES", [16]), Tensor("INPUT1", "BYTES", [16]))
    outputs = (Tensor("OUTPUT0", "BYTES", [16]), Tensor("OUTPUT1", "BYTES", [16]))

    def forward(self, **tensors: Any) -> dict[str, Any]:
        try:
            first, second = tensors["INPUT0"].astype(int), tensors["INPUT1"].astype(int)
        except (ValueError, OverflowError) as error:
            raise IntakeRefused("unreadable", "these are not whole numbers") from error
        return {"OUTPUT0": _texts(first + second), "OUTPUT1": _texts(first - second)}

    def example(self) -> dict[str, Any]:
        return {tensor.name: np.full((1, 16), b"1", object) for tensor in self.inputs}


class SimpleIdentity(Simple):
    """Gives texts back as they came."""

    inputs = (Tensor("INPUT0", "BYTES", [-1]),)
    outputs = (Tensor("OUTPUT0", "BYTES", [-1]),)

    def forward(self, **tensors: Any) -> dict[str, Any]:
        return {"OUTPUT0": tensors["INPUT0"]}

    def example(self) -> dict[str, Any]:
        return {"INPUT0": np.full((1, 16), b"x", object)}


class SimpleKinds(DApp):
    """Gives back the inputs that are there, of any size, and zeros of one element for those that are not."""

    version = "1"
    inputs = tuple(Tensor(f"IN_{kind}", kind, [-1], optional=True) for kind in DTYPES if kind != "BYTES")
    outputs = tuple(Tensor(f"OUT_{kind}", kind, [-1]) for kind in DTYPES if kind != "BYTES")
    price = Price(0)

    def load(self, device: str) -> None:
        pass

    def forward(self, **tensors: Any) -> dict[str, Any]:
        import torch

        items = len(next(iter(tensors.values())))
        nothing = torch.zeros((items, 1), dtype=torch.uint8)
        return {tensor.name: tensors.get(f"IN_{tensor.datatype}", nothing) for tensor in self.outputs}

    def example(self) -> dict[str, Any]:
        return {"IN_FP16": np.ones((1, 3), "f2"), "IN_BF16": np.ones((1, 2), DTYPES["BF16"])}


class SimplePaid(DApp):
    """Adds up the bytes of a vector of any size, for money; thirteen of 255 break the device, as a CUDA error would."""

    version = "1"
    thresholds = {"more": 0.0}  # noqa: RUF012 - as authors write it
    inputs = (Tensor("INPUT0", "UINT8", [-1]),)
    outputs = (Tensor("OUTPUT0", "INT64", [1]),)
    price = Price(100, maximum_items=4)
    maximum_batch = 4

    def load(self, device: str) -> None:
        pass

    def forward(self, **tensors: Any) -> dict[str, Any]:
        import torch

        if tensors["INPUT0"].shape[1] == 13 and (tensors["INPUT0"] == 255).all():
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        return {"OUTPUT0": tensors["INPUT0"].long().sum(dim=1, keepdim=True) + int(self.thresholds["more"])}

    def example(self) -> dict[str, Any]:
        return {"INPUT0": np.ones((1, 4), "u1")}


class SimplePaidOld(SimplePaid):
    """Adds up the bytes of a vector as it did before: one too many, and cheaper."""

    version = "0.9"
    price = Price(40, maximum_items=4)

    def forward(self, **tensors: Any) -> dict[str, Any]:
        return {"OUTPUT0": super().forward(**tensors)["OUTPUT0"] + 1}


class SimpleAsking(SimplePaid):
    """Asks another to add up, and doubles what it says; says -1 where it does not answer."""

    price = Price(250, maximum_items=4)
    calls = ("simple_paid",)

    def forward(self, **tensors: Any) -> dict[str, Any]:
        first = tensors["INPUT0"]
        try:
            return {
                "OUTPUT0": 2 * self.call("simple_paid", INPUT0=first if first.max() < 99 else first.int())["OUTPUT0"]
            }
        except ChildFailed:
            return {"OUTPUT0": np.full((len(first), 1), -1, "i8")}


class SimpleSlow(Simple):
    """Takes as many milliseconds as its input says."""

    inputs = (Tensor("INPUT0", "INT32", [1]),)
    outputs = (Tensor("OUTPUT0", "INT32", [1]),)
    maximum_batch = 1

    def forward(self, **tensors: Any) -> dict[str, Any]:
        time.sleep(int(tensors["INPUT0"].max()) / 1000)
        return {"OUTPUT0": tensors["INPUT0"]}

    def example(self) -> dict[str, Any]:
        return {"INPUT0": np.ones((1, 1), "i4")}


class SimpleBusy(SimpleSlow):
    """Takes as many milliseconds as its input says, for money."""

    price = Price(10)


def _texts(numbers: np.ndarray) -> np.ndarray:
    return np.array([str(number).encode() for number in numbers.ravel().tolist()], object).reshape(numbers.shape)
