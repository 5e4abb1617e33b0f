"""`Configuration`: what an operator sets of a DApp while it runs: its price, its largest batch, its thresholds.

Whatever is left out is as the author declared it. A threshold changes what is answered, so it changes the digest that
stands in receipts and reports. Knows no network. Used by `serving/replica/deployment.py`, between two calls.
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
    """What a DApp declares, before anything of it is set otherwise."""

    price: Price
    maximum_batch: int
    thresholds: Mapping[str, float]

    @classmethod
    def of(cls, dapp: DApp, maximum_batch: int = 0) -> Self:
        """Of an instance to which nothing has been applied; `maximum_batch` 0: its own."""
        return cls(dapp.price, maximum_batch or dapp.maximum_batch, dict(dapp.thresholds))


@dataclass(frozen=True, slots=True)
class Configuration:
    """Values by name; what is empty or None stays as declared.

    Args:
        price: fields of `Price`, in atomic units.
        maximum_batch: most items that one `forward` is given; at most what was declared, for that is what was tried.
        thresholds: some of the DApp's `thresholds`.

    Raises:
        ValueError: a value cannot be; the message names it.
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
        """The mapping, without what is left out."""
        whole = {"price": dict(self.price), "maximum_batch": self.maximum_batch, "thresholds": dict(self.thresholds)}
        return {name: value for name, value in whole.items() if value}

    def applied(self, declared: Declared) -> Declared:
        """What is in force with this.

        Raises:
            ValueError: it does not fit what is declared.
        """
        if unknown := set(self.thresholds) - set(declared.thresholds):
            known = ", ".join(declared.thresholds) or "none"
            raise ValueError(f"thresholds: there is no {sorted(unknown)[0]}; there are {known}")
        if (self.maximum_batch or 0) > declared.maximum_batch:
            raise ValueError(f"maximum_batch: at most {declared.maximum_batch}, which the author declared and we tried")
        thresholds = dict(declared.thresholds) | {name: float(value) for name, value in self.thresholds.items()}
        most = self.maximum_batch or declared.maximum_batch
        return Declared(replace(declared.price, **self.price), most, thresholds)


def put(dapp: DApp, force: Declared) -> None:
    """Makes an instance answer by this; nothing of it may be running."""
    own = vars(dapp)
    changed = dict(dapp.thresholds) != dict(force.thresholds)
    own["price"], own["thresholds"] = force.price, force.thresholds
    if changed:
        for name in CACHED:
            own.pop(name, None)
