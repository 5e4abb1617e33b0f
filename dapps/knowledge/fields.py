"""Reads a clinical record from JSON: each field typed, in one unit and within the possible range, or refused.

Guidelines and the intake of DApps share this language. A measurement is `{"value": 160, "unit": "mm[Hg]"}`; a choice
is one of a few words; null and absent are the same: unknown, which is never "no". An undeclared field is refused, so a
misspelt one cannot pass for unknown. A refusal travels into logs, so it names the field and never the value.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from dapps.knowledge.expression import Value

MAX_BYTES = 65_536
MAX_BRACKETS = 256
"""A record has one level of objects; thousands would exhaust a parser that recurses."""
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,79}", re.ASCII)


class RecordRefused(Exception):
    """A record that cannot be read.

    Args:
        message: for people; it begins with the field's name.
        field: its name; empty for the record as a whole.
        code: one stable word: `too_large`, `unreadable`, `not_an_object`, `duplicate_field`, `unknown_field`,
            `missing_unit`, `wrong_unit`, `wrong_type`, `not_finite`, `out_of_range`, `unknown_word` or `wrong_origin`.
    """

    def __init__(self, message: str, field: str = "", code: str = "wrong_type") -> None:
        super().__init__(message)
        self.field = field
        self.code = code


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    origins: tuple[str, ...] = field(default=(), kw_only=True)
    """Where a value may come from, the usual one first: then it may be written `{"value": …, "origin": …}`."""


@dataclass(frozen=True, slots=True)
class Quantity(_Field):
    """A measurement.

    Args:
        units: the factor from each accepted UCUM unit to the first, in which the value is read.
        low: the lowest possible value, in the first unit.
        high: the highest possible value, in the first unit.
        whole: whether it is a whole number.
        bare: whether a number without a unit is accepted, as one in the first unit.
    """

    units: Mapping[str, float]
    low: float | Decimal
    high: float | Decimal
    whole: bool = field(default=False, kw_only=True)
    bare: bool = field(default=False, kw_only=True)

    @property
    def unit(self) -> str:
        """The UCUM unit in which the value is read."""
        return next(iter(self.units))


@dataclass(frozen=True, slots=True)
class Choice(_Field):
    """One of a few words; with the words `no` and `yes`, false and true are accepted too."""

    words: tuple[str, ...] = ("no", "yes")


@dataclass(frozen=True, slots=True)
class Flag(_Field):
    """True or false."""


Field = Quantity | Choice | Flag


def parse(raw: bytes, number: type[Decimal] | type[float] = Decimal) -> dict[str, Any]:
    """A JSON object of fields as plain data, its numbers as Decimals or floats.

    Raises:
        RecordRefused: `too_large`, `unreadable`, `not_an_object` or `duplicate_field`.
    """
    if len(raw) > MAX_BYTES or raw.count(b"{") + raw.count(b"[") > MAX_BRACKETS:
        raise RecordRefused(f"a record is at most {MAX_BYTES} bytes and {MAX_BRACKETS} brackets", code="too_large")
    try:
        data = json.loads(
            raw.decode("utf-8-sig"), parse_float=number, parse_int=number, parse_constant=float, object_pairs_hook=_once
        )
    except (ValueError, ArithmeticError, RecursionError):  # their texts quote the record
        message = 'the record is not JSON: write {"field": value, …}, null for what is unknown'
        raise RecordRefused(message, code="unreadable") from None
    if not isinstance(data, dict):
        raise RecordRefused("a record is one JSON object of fields", code="not_an_object")
    return data


def read(declared: Field, value: Any) -> tuple[Value | None, str]:
    """The value of a field, None if it is unknown, and its origin, empty if the field declares none.

    Args:
        declared: the field.
        value: plain data as `parse` gives it; numbers may also be ints.

    Raises:
        RecordRefused: with the field's name.
    """
    origin = declared.origins[0] if declared.origins else ""
    if isinstance(value, dict):
        _refuse_keys(declared, value)
        origin = value.get("origin", origin)
        if "origin" in value and origin not in declared.origins:
            raise _refused(declared, f"its origin is {' or '.join(declared.origins)}", "wrong_origin")
    elif isinstance(declared, Quantity) and not declared.bare and type(value) in (int, float, Decimal):
        form = f'write {{"value": number, "unit": UCUM}} with one of the units {", ".join(declared.units)}'
        raise _refused(declared, form, "missing_unit")
    inner = value["value"] if isinstance(value, dict) else value
    if isinstance(declared, Quantity):
        unit = value.get("unit", declared.unit) if isinstance(value, dict) else declared.unit
        factor = _factor(declared, unit)
        return None if inner is None else _measured(declared, inner, factor), origin
    if inner is None:
        return None, origin
    return (_chosen(declared, inner) if isinstance(declared, Choice) else _flag(declared, inner)), origin


def shown(name: str) -> str:
    """A field's name as a message may show it: a caller's key is not ours, and free text of a caller is not echoed."""
    return name if NAME.fullmatch(name) else "(not a field's name)"


def _refuse_keys(declared: Field, value: dict[str, Any]) -> None:
    allowed = {"value", "origin"} if declared.origins else {"value"}
    if isinstance(declared, Quantity):
        needed = {"value"} if declared.bare else {"value", "unit"}
        number = '{"value": number, "unit": UCUM}'
        if not needed <= value.keys() <= allowed | {"unit"}:
            raise _refused(
                declared, f"write a value, or {number}" if declared.bare else f"write {number}", "wrong_type"
            )
    elif not declared.origins:
        raise _refused(declared, _words(declared), "wrong_type")
    elif "unit" in value:
        raise _refused(declared, "it has no unit, and one was given", "wrong_unit")
    elif not {"value"} <= value.keys() <= allowed:
        raise _refused(declared, "write a value", "wrong_type")


def _words(declared: Choice | Flag) -> str:
    if isinstance(declared, Choice):
        return f"it is one of {', '.join(declared.words)}, or null"
    return "it is true, false or null"


def _factor(declared: Quantity, unit: Any) -> float:
    factor = declared.units.get(unit) if isinstance(unit, str) else None
    if factor is None:
        units = f"the unit is {' or '.join(declared.units)}, and another one was given"
        raise _refused(declared, units, "wrong_unit")
    return factor


def _measured(declared: Quantity, value: Any, factor: float) -> Decimal:
    if type(value) not in (int, float, Decimal):
        raise _refused(declared, f"it is a number in {declared.unit}, or null", "wrong_type")
    number = _converted(value, factor)
    if number is None:
        raise _refused(declared, f"it is a number in {declared.unit}, or null, and finite", "not_finite")
    if not declared.low <= number <= declared.high:
        range_ = f"impossible; it lies between {declared.low:g} and {declared.high:g} {declared.unit}"
        raise _refused(declared, range_, "out_of_range")
    if declared.whole and number != number.to_integral_value():
        raise _refused(declared, "it is a whole number", "wrong_type")
    return number


def _converted(value: float | Decimal, factor: float) -> Decimal | None:
    """The value in the first unit, to the last digit where nothing is converted; None if it is not finite."""
    try:
        product = float(value) * factor
    except OverflowError:
        return None
    if not math.isfinite(product):
        return None
    if factor == 1 and isinstance(value, Decimal):
        return value
    return Decimal(repr(value if factor == 1 else product))


def _chosen(declared: Choice, value: Any) -> str:
    if isinstance(value, bool) and {"no", "yes"} <= set(declared.words):
        return "yes" if value else "no"
    if not isinstance(value, str):
        raise _refused(declared, _words(declared), "wrong_type")
    if value not in declared.words:
        raise _refused(declared, _words(declared), "unknown_word")
    return value


def _flag(declared: Flag, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _refused(declared, _words(declared), "wrong_type")
    return value


def _refused(declared: Field, cause: str, code: str) -> RecordRefused:
    return RecordRefused(f"{declared.name}: {cause}", declared.name, code)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            cause = f"{name if NAME.fullmatch(name) else 'a field'}: it is there twice"
            raise RecordRefused(cause, name, "duplicate_field")
        fields[name] = value
    return fields
