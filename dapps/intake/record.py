"""A clinical record in JSON -> known values in one unit each, or a refusal.

A measurement carries its UCUM unit: `{"systolic_pressure": {"value": 160, "unit": "mm[Hg]"}}`; a choice is a word, or
true and false where it is yes or no. A field that is absent or null is unknown, which is never "no". A field that is
not declared is refused, so that a misspelt one cannot pass for unknown. Each DApp declares its own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dapps.api import Coding, Finding, IntakeRefused

MAX_BYTES = 64 * 1024
MAX_BRACKETS = 256
"""A record has one level of objects; a parser that recurses must not be asked for thousands."""

Value = float | str
Values = dict[str, Value]


@dataclass(frozen=True, slots=True)
class Quantity:
    """A measurement: factors from each accepted UCUM unit to the first one, and the range of the possible in that."""

    name: str
    units: Mapping[str, float]
    low: float
    high: float
    coding: Coding | None = None

    @property
    def unit(self) -> str:
        """The UCUM unit in which the value is kept."""
        return next(iter(self.units))


@dataclass(frozen=True, slots=True)
class Choice:
    """One of a few words; with the words `no` and `yes`, also false and true."""

    name: str
    words: tuple[str, ...] = ("no", "yes")
    coding: Coding | None = field(default=None)


Field = Quantity | Choice


def read_record(data: bytes, fields: Sequence[Field]) -> Values:
    """The known values of a record: numbers in each field's first unit, words as declared.

    Raises:
        IntakeRefused: `too_large`, `unreadable`, `not_an_object`, `duplicate_field`, `unknown_field`, `missing_unit`,
            `wrong_unit`, `wrong_type`, `not_finite`, `out_of_range` or `unknown_word`.
    """
    if len(data) > MAX_BYTES or data.count(b"{") + data.count(b"[") > MAX_BRACKETS:
        raise IntakeRefused("too_large", f"the record is larger than {MAX_BYTES} bytes or {MAX_BRACKETS} brackets")
    try:
        found = json.loads(data.decode("utf-8"), object_pairs_hook=_once)
    except (ValueError, RecursionError):  # their texts quote the record
        raise IntakeRefused("unreadable", "the record is not JSON in UTF-8") from None
    if not isinstance(found, dict):
        raise IntakeRefused("not_an_object", "the record is a JSON object of fields")
    declared = {each.name: each for each in fields}
    if not set(found) <= set(declared):
        raise IntakeRefused("unknown_field", f"the record has a field that is not one of: {', '.join(declared)}")
    return {name: _value(declared[name], value) for name, value in found.items() if value is not None}


def carried(record: Values, fields: Sequence[Field]) -> list[Finding]:
    """What the record measured, as findings with code and unit: a report carries what it rests on."""
    measured = [each for each in fields if isinstance(each, Quantity) and each.name in record]
    return [
        Finding(
            each.name,
            each.name.replace("_", " "),
            None,
            unit=each.unit,
            coding=each.coding,
            value=float(record[each.name]),
        )
        for each in measured
    ]


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) != len(pairs):
        raise IntakeRefused("duplicate_field", "a field stands in the record twice")
    return dict(pairs)


def _value(declared: Field, value: Any) -> Value:
    return _measured(declared, value) if isinstance(declared, Quantity) else _chosen(declared, value)


def _measured(declared: Quantity, value: Any) -> float:
    name, units = declared.name, ", ".join(declared.units)
    if type(value) in (int, float):
        raise IntakeRefused("missing_unit", f'{name} is {{"value": number, "unit": UCUM}} with one of: {units}')
    if not isinstance(value, dict) or set(value) != {"value", "unit"} or type(value["value"]) not in (int, float):
        raise IntakeRefused("wrong_type", f'{name} is {{"value": number, "unit": UCUM}} with one of: {units}')
    factor = declared.units.get(value["unit"]) if isinstance(value["unit"], str) else None
    if factor is None:
        raise IntakeRefused("wrong_unit", f"{name} is not in one of the UCUM units: {units}")
    try:
        number = float(value["value"]) * factor
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise IntakeRefused("not_finite", f"{name} is not a finite number")
    if not declared.low <= number <= declared.high:
        raise IntakeRefused(
            "out_of_range", f"{name} is possible from {declared.low:g} to {declared.high:g} {declared.unit}"
        )
    return number


def _chosen(declared: Choice, value: Any) -> str:
    words = ", ".join(declared.words)
    if isinstance(value, bool) and {"no", "yes"} <= set(declared.words):
        return "yes" if value else "no"
    if not isinstance(value, str):
        raise IntakeRefused("wrong_type", f"{declared.name} is one of the words: {words}")
    if value not in declared.words:
        raise IntakeRefused("unknown_word", f"{declared.name} is one of the words: {words}")
    return value
