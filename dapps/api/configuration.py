"""Changes a DApp's price, largest batch and thresholds while it runs.

An omitted value stays as the author declared it. A threshold changes answers, so it changes the digest in receipts and
reports. Knows no network. `serving/replica/deployment.py` applies a configuration between two calls.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

from dapps.api.types import Price

if TYPE_CHECKING:
    from dapps.api.dapp import DApp

PRICE = ("per_item", "maximum_items", "guideline", "per_gpu_second", "maximum")
CACHED = ("manifest", "provenance")
"""What a DApp caches and its thresholds change."""


@dataclass(frozen=True, slots=True)
class Declared:
    """The values in force: those that a DApp declares, or those after a `Configuration`."""

    price: Price
    maximum_batch: int
    thresholds: Mapping[str, float]

    @classmethod
    def of(cls, dapp: DApp, maximum_batch: int = 0) -> Self:
        """The values of an instance that nothing has configured; `maximum_batch` 0 is the instance's own."""
        return cls(dapp.price, maximum_batch or dapp.maximum_batch, dict(dapp.thresholds))


@dataclass(frozen=True, slots=True)
class Configuration:
    """The operator's values by name; an empty one or None leaves the declared value.

    Args:
        price: fields of `Price`, in atomic units.
        maximum_batch: most items of one `forward`; at most the declared number, which start-up has tested.
        thresholds: some of the DApp's `thresholds`.

    Raises:
        ValueError: a value is impossible; the message names it.
    """

    price: Mapping[str, int] = field(default_factory=dict)
    maximum_batch: int | None = None
    thresholds: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if unknown := set(self.price) - set(PRICE):
            raise ValueError(f"price: there is no {sorted(unknown)[0]}; there are {', '.join(PRICE)}")
        if any(type(value) is not int for value in self.price.values()):
            raise ValueError("price: whole numbers of atomic units")
        if self.maximum_batch is not None and (type(self.maximum_batch) is not int or self.maximum_batch < 1):
            raise ValueError("maximum_batch: a whole number of at least 1")
        for name, value in self.thresholds.items():
            if type(value) not in (int, float) or not math.isfinite(value):
                raise ValueError(f"thresholds: {name} is a finite number")

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Self:
        """Reads a mapping of the fields' names.

        Raises:
            ValueError: as the class, or a field is unknown or no mapping.
        """
        if unknown := set(raw) - {"price", "maximum_batch", "thresholds"}:
            raise ValueError(f"there is no {sorted(map(str, unknown))[0]} to configure")
        parts = {name: raw.get(name) or {} for name in ("price", "thresholds")}
        if not all(isinstance(part, Mapping) for part in parts.values()):
            raise ValueError("price and thresholds are values by name")
        return cls(parts["price"], raw.get("maximum_batch"), parts["thresholds"])

    def to_json(self) -> dict[str, Any]:
        """The mapping, without omitted values."""
        whole = {"price": dict(self.price), "maximum_batch": self.maximum_batch, "thresholds": dict(self.thresholds)}
        return {name: value for name, value in whole.items() if value}

    def applied(self, declared: Declared) -> Declared:
        """The values in force under this configuration.

        Raises:
            ValueError: it does not fit the declared values.
        """
        if unknown := set(self.thresholds) - set(declared.thresholds):
            names = ", ".join(declared.thresholds) or "none"
            raise ValueError(f"thresholds: there is no {sorted(unknown)[0]}; there are {names}")
        if (self.maximum_batch or 0) > declared.maximum_batch:
            raise ValueError(
                f"maximum_batch: at most {declared.maximum_batch}, which the author declared and the mesh tested"
            )
        thresholds = dict(declared.thresholds) | {name: float(value) for name, value in self.thresholds.items()}
        batch = self.maximum_batch or declared.maximum_batch
        return Declared(replace(declared.price, **self.price), batch, thresholds)


def put(dapp: DApp, force: Declared) -> None:
    """Applies the values to an instance, no call of which may be running."""
    own = vars(dapp)
    changed = dict(dapp.thresholds) != dict(force.thresholds)
    own["price"], own["thresholds"] = force.price, force.thresholds
    if changed:
        for name in CACHED:
            own.pop(name, None)
