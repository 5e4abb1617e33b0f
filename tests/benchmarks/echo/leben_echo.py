"""DApps that give back what they are given: with this folder on `PYTHONPATH` a mesh serves them to a benchmark."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from dapps import DApp, Price, Tensor


class Small(DApp):
    """Seven bytes in and out, for nothing."""

    version = "1"
    inputs = (Tensor("X", "UINT8", [7]),)
    outputs = (Tensor("Y", "UINT8", [7]),)
    price = Price(0)
    maximum_batch = 32

    def load(self, device: str) -> None:
        """Nothing to load."""

    def forward(self, **tensors: Any) -> dict[str, Any]:
        """What came."""
        return {"Y": tensors["X"]}

    def example(self) -> dict[str, Any]:
        """Ones."""
        return {"X": np.ones((1, *self.inputs[0].shape), self.inputs[0].dtype)}


class Image(Small):
    """An image of 602 KB in and out."""

    inputs = (Tensor("X", "FP32", [3, 224, 224]),)
    outputs = (Tensor("Y", "FP32", [3, 224, 224]),)


class Glance(Image):
    """An image of 602 KB in, four bytes out."""

    outputs = (Tensor("Y", "FP32", [1]),)

    def forward(self, **tensors: Any) -> dict[str, Any]:
        """The first value."""
        return {"Y": tensors["X"].reshape(len(tensors["X"]), -1)[:, :1]}


class Paid(Small):
    """Seven bytes in and out, for money."""

    price = Price(100, maximum_items=1)


class Slow(Paid):
    """A device that takes 40 ms over a batch of up to eight: 200 calls a second and no more."""

    maximum_batch = 8

    def forward(self, **tensors: Any) -> dict[str, Any]:
        """What came, later."""
        time.sleep(0.04)
        return {"Y": tensors["X"]}
