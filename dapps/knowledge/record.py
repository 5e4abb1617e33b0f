"""Defines a guideline's record: the observations of one patient, each with its origin.

`fields.py` reads the values; this module knows which fields a guideline has, and derives its facts.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from dapps.knowledge import fields
from dapps.knowledge.document import Datum
from dapps.knowledge.expression import Value
from dapps.knowledge.fields import RecordRefused
from dapps.knowledge.guideline import Guideline
from dapps.knowledge.truth import Truth

Record = Mapping[str, "Observation"]
"""Observations by field; an absent field is unknown."""


@dataclass(frozen=True, slots=True)
class Observation:
    """One value and its origin: ``record``, ``user``, or ``model`` with a note that says which and how sure."""

    value: Value | None = field(repr=False)
    origin: str = "record"
    note: str = ""


def from_probability(probability: float, low: float, high: float, note: str, usable: bool = True) -> Observation:
    """A model's calibrated probability as an observation: False below `low`, True from `high` on, unknown between.

    Args:
        probability: 0 to 1; anything else, nan included, is unknown.
        low: below this it is absent.
        high: from this on it is present.
        note: which model, e.g. ``"strokedr 0.1.0"``.
        usable: False where the input's quality was too low: then it is unknown, whatever the number.

    Raises:
        ValueError: the cut-offs overlap or are no probabilities.
    """
    if not 0 <= low <= high <= 1:
        raise ValueError("overlapping cut-offs: 0 <= low <= high <= 1")
    present: Truth = None
    if usable and 0 <= probability <= 1:
        present = True if probability >= high else False if probability < low else None
    numbers = f"{note}, probability {probability:.3f}, cut-offs {low:.3f} and {high:.3f}"
    return Observation(present, "model", numbers if usable else f"{note}, input quality too low")


def parse(raw: bytes, guideline: Guideline) -> dict[str, Observation]:
    """Reads a record from JSON: an object of fields.

    Raises:
        RecordRefused: not JSON, or a field that is unknown, wrongly typed or impossible.
    """
    return read(fields.parse(raw), guideline)


def read(data: Any, guideline: Guideline, nulls: bool = False) -> dict[str, Observation]:
    """Checks a record that is plain data: values, or ``{"value": …, "unit": …}`` where the unit is to be checked.

    Args:
        data: the record.
        guideline: whose fields they are.
        nulls: keep an observation of None for each null, to make a field unknown again.

    Raises:
        RecordRefused: with the field's name.
    """
    if not isinstance(data, dict):
        raise RecordRefused("a record is one JSON object of fields", code="not_an_object")
    observations = {}
    for name, value in data.items():
        observation = Observation(*fields.read(declared(str(name), guideline), value))
        if nulls or observation.value is not None:
            observations[str(name)] = observation
    return observations


def check(record: Record, guideline: Guideline) -> None:
    """Checks observations that a program made, a model's among them.

    Raises:
        RecordRefused: a field is unknown, its value does not fit, or it may not come from there.
    """
    for name, observation in record.items():
        datum = declared(name, guideline)
        if observation.origin not in datum.origins:
            cause = f"{name}: it comes from {' or '.join(datum.origins)}, not from a {observation.origin}"
            raise RecordRefused(cause, name, "wrong_origin")
        fields.read(datum, observation.value)


def declared(name: str, guideline: Guideline) -> fields.Field:
    """The field of a guideline.

    Raises:
        RecordRefused: `unknown_field`; the message suggests a close name.
    """
    datum = guideline.document.data.get(name)
    if datum is not None:
        return _field(name, datum)
    close = difflib.get_close_matches(name[:80], guideline.document.data, n=1)
    hint = f"did you mean {close[0]}?" if close else f"see: leben guideline fields {guideline.id}"
    cause = f"{fields.shown(name)}: {guideline.id} has no such field; {hint}"
    raise RecordRefused(cause, name, "unknown_field")


def _field(name: str, datum: Datum) -> fields.Field:
    origins = tuple(datum.origin)
    if datum.type == "boolean":
        return fields.Flag(name, origins=origins)
    if datum.type == "choice":
        return fields.Choice(name, tuple(datum.options or ()), origins=origins)
    low, high = datum.range or (-Decimal("Infinity"), Decimal("Infinity"))
    whole = datum.type == "integer"
    return fields.Quantity(name, {datum.unit or "1": 1}, low, high, whole=whole, bare=True, origins=origins)


def values(record: Record, guideline: Guideline) -> dict[str, Value | None]:
    """What conditions read: the values of data, then of derived facts. Two cut-offs that both hold leave it unknown."""
    results: dict[str, Value | None] = {name: observation.value for name, observation in record.items()}
    for name in guideline.order:
        whole = guideline.conditions.get(("derived", name, "if"))
        if whole is not None:
            results[name] = whole.truth(results)
            continue
        holds = guideline.conditions["derived", name, "true_if"].truth(results)
        fails = guideline.conditions["derived", name, "false_if"].truth(results)
        results[name] = True if holds and fails is False else False if fails and holds is False else None
    return results


def known_values(record: Record) -> Iterator[tuple[str, Value]]:
    """Fields with their values, without those that are unknown."""
    for name, observation in record.items():
        if observation.value is not None:
            yield name, observation.value
