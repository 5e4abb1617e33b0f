"""A record: what is known of one patient, each value typed, in range, and with where it comes from.

Null and absent are the same: unknown. Anything else that does not fit is refused with the field's name and never with
its value, because a refusal travels into logs.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from dapps.knowledge.document import Datum
from dapps.knowledge.expression import Value
from dapps.knowledge.guideline import Guideline
from dapps.knowledge.truth import Truth

MAX_BYTES = 65_536
FIELD = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,79}", re.ASCII)
Record = Mapping[str, "Observation"]
"""Readings by field; a field that is not in it is unknown."""


class RecordRefused(Exception):
    """A record that cannot be weighed. `field` names the field, or is empty for the record as a whole."""

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.field = field


@dataclass(frozen=True, slots=True)
class Observation:
    """One value and its origin: ``record``, ``user``, or ``model`` with a note that says which and how sure."""

    value: Value | None = field(repr=False)
    origin: str = "record"
    note: str = ""


def from_probability(probability: float, low: float, high: float, note: str, usable: bool = True) -> Observation:
    """A model's calibrated probability as a datum: False below `low`, True from `high` on, unknown between.

    Args:
        probability: 0 to 1; anything else, nan included, is unknown.
        low: below this it is absent.
        high: from this on it is present.
        note: which model, e.g. ``"strokedr 0.1.0"``.
        usable: False where the input's quality was too low: then the datum is unknown, whatever the number.

    Raises:
        ValueError: the cut-offs overlap or are no probabilities.
    """
    if not 0 <= low <= high <= 1:
        raise ValueError("overlapping cut-offs: 0 <= low <= high <= 1")
    present: Truth = None
    if usable and 0 <= probability <= 1:
        present = True if probability >= high else False if probability < low else None
    said = f"{note}, probability {probability:.3f}, cut-offs {low:.3f} and {high:.3f}"
    return Observation(present, "model", said if usable else f"{note}, input quality too low")


def parse(raw: bytes, guideline: Guideline) -> dict[str, Observation]:
    """Reads a record from JSON: an object of fields.

    Raises:
        RecordRefused: not JSON, or a field that is unknown, wrongly typed or impossible.
    """
    return read(_json(raw, Decimal), guideline)


def _json(raw: bytes, number: type[Decimal] | type[float]) -> Any:
    if len(raw) > MAX_BYTES:
        raise RecordRefused(f"a record is at most {MAX_BYTES} bytes")
    try:
        return json.loads(
            raw.decode("utf-8-sig"), parse_float=number, parse_int=number, parse_constant=float, object_pairs_hook=_once
        )
    except (ValueError, ArithmeticError, RecursionError):
        raise RecordRefused('the record is not JSON: write {"field": value, …}, null for what is unknown') from None


def divide(raw: bytes, guideline: Guideline, others: Collection[str]) -> tuple[dict[str, Any], bytes | None]:
    """Parts a record into this guideline's fields and those of another reader, as JSON again; None if there are none.

    What is no JSON object of fields is left whole to the other reader, who refuses it in its own words.

    Raises:
        RecordRefused: a field that neither knows.
    """
    try:
        data = _json(raw, float)
    except RecordRefused:
        return {}, raw
    if not isinstance(data, dict):
        return {}, raw
    unknown = [name for name in data if name not in guideline.document.data and name not in others]
    if unknown:
        raise RecordRefused(_unknown(unknown[0], guideline), unknown[0])
    mine = {name: value for name, value in data.items() if name in guideline.document.data}
    rest = {name: value for name, value in data.items() if name not in mine}
    return mine, json.dumps(rest).encode() if rest or not mine else None


def read(data: Any, guideline: Guideline, nulls: bool = False) -> dict[str, Observation]:
    """Checks a record that is plain data: values, or ``{"value": …, "unit": …}`` where the unit is to be checked.

    Args:
        data: the record.
        guideline: whose fields they are.
        nulls: keep a reading of None for each null, to make a known field unknown again.

    Raises:
        RecordRefused: with the field's name.
    """
    if not isinstance(data, dict):
        raise RecordRefused("a record is one JSON object of fields")
    found: dict[str, Observation] = {}
    for name, value in data.items():
        datum = guideline.document.data.get(name)
        if datum is None:
            raise RecordRefused(_unknown(str(name), guideline), str(name))
        reading = _reading(name, datum, value)
        if nulls or reading.value is not None:
            found[name] = reading
    return found


def check(record: Record, guideline: Guideline) -> None:
    """Checks readings that were made by a program, a model's among them.

    Raises:
        RecordRefused: a field is unknown, its value does not fit, or it may not come from there.
    """
    for name, reading in record.items():
        datum = guideline.document.data.get(name)
        if datum is None:
            raise RecordRefused(_unknown(name, guideline), name)
        if reading.origin not in datum.origin:
            raise RecordRefused(f"{name}: it comes from {' or '.join(datum.origin)}, not from a {reading.origin}", name)
        if reading.value is not None:
            _value(name, datum, reading.value)


def values(record: Record, guideline: Guideline) -> dict[str, Value | None]:
    """What conditions see: the values of data, then of derived facts. Two cut-offs that both hold leave it unknown."""
    found: dict[str, Value | None] = {name: reading.value for name, reading in record.items()}
    for name in guideline.order:
        whole = guideline.conditions.get(("derived", name, "if"))
        if whole is not None:
            found[name] = whole.truth(found)
            continue
        holds = guideline.conditions["derived", name, "true_if"].truth(found)
        fails = guideline.conditions["derived", name, "false_if"].truth(found)
        found[name] = True if holds and fails is False else False if fails and holds is False else None
    return found


def _reading(name: str, datum: Datum, value: Any) -> Observation:
    origin = datum.origin[0]
    if isinstance(value, dict):
        if not {"value"} <= value.keys() <= {"value", "unit", "origin"}:
            raise RecordRefused(f'{name}: write a value, or {{"value": …, "unit": …}}', name)
        if "unit" in value and value["unit"] != datum.unit:
            wanted = f"the unit is {datum.unit}" if datum.unit else "it has no unit"
            raise RecordRefused(f"{name}: {wanted}, and another one was given", name)
        origin = value.get("origin", origin)
        if origin not in datum.origin:
            raise RecordRefused(f"{name}: its origin is {' or '.join(datum.origin)}", name)
        value = value["value"]
    return Observation(None if value is None else _value(name, datum, value), origin)


def _value(name: str, datum: Datum, value: Any) -> Value:
    if datum.type == "boolean":
        if not isinstance(value, bool):
            raise RecordRefused(f"{name}: it is true, false or null", name)
        return value
    if datum.type == "choice":
        if not isinstance(value, str) or value not in (datum.options or ()):
            raise RecordRefused(f"{name}: it is one of {', '.join(datum.options or ())}, or null", name)
        return value
    if isinstance(value, bool) or not isinstance(value, Decimal | int | float) or not math.isfinite(value):
        raise RecordRefused(f"{name}: it is a number in {datum.unit}, or null", name)
    number = value if isinstance(value, Decimal) else Decimal(repr(value))
    low, high = datum.range or (number, number)
    if not low <= number <= high:
        raise RecordRefused(f"{name}: impossible; it lies between {low} and {high} {datum.unit}", name)
    if datum.type == "integer" and number != number.to_integral_value():
        raise RecordRefused(f"{name}: it is a whole number", name)
    return number


def _unknown(name: str, guideline: Guideline) -> str:
    # A key is not ours: it is shown only where it looks like one, and cut, so that no free text of a caller is echoed.
    shown = name if FIELD.fullmatch(name) else "(not a field's name)"
    close = difflib.get_close_matches(name[:80], guideline.document.data, n=1)
    hint = f"did you mean {close[0]}?" if close else f"see: leben guideline fields {guideline.id}"
    return f"{shown}: {guideline.id} has no such field; {hint}"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise RecordRefused(f"{name if FIELD.fullmatch(name) else 'a field'}: it is there twice", name)
        found[name] = value
    return found


def known(record: Record) -> Iterator[tuple[str, Value]]:
    """Fields with their values, those that are unknown left out."""
    for name, reading in record.items():
        if reading.value is not None:
            yield name, reading.value
