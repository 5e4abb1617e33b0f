"""Reads the clinical record of a call: the fields that a DApp declares, beside those of a guideline.

`dapps/knowledge/fields.py` is the language; here a field may carry a coding for the report, numbers become floats for
a network, and a refusal becomes an `IntakeRefused` of the same code.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from dapps.api import Coding, Finding, IntakeRefused
from dapps.knowledge import Guideline, RecordRefused, fields
from dapps.knowledge.fields import Choice
from dapps.knowledge.record import declared, read

Values = dict[str, float | str]
"""Values by field, those that are known: numbers in each field's first unit, words as declared."""


@dataclass(frozen=True, slots=True)
class Quantity(fields.Quantity):
    """A measurement, with its concept in a terminology."""

    coding: Coding | None = None


Field = Quantity | Choice


def read_record(data: bytes, own: Sequence[Field]) -> Values:
    """The values of a record.

    Raises:
        IntakeRefused: with a code of `RecordRefused`.
    """
    with _refusing():
        return _values(fields.parse(data, float), own)


def divide(data: bytes, own: Sequence[Field], guideline: Guideline) -> tuple[Values | None, dict[str, Any]]:
    """Reads a record that may hold a guideline's fields beside the DApp's own.

    Returns:
        The values of the DApp's own fields, None if the record holds fields of the guideline alone; and the
        guideline's fields as plain data, which `check_guideline_fields` checks.

    Raises:
        IntakeRefused: with a code of `RecordRefused`; `unknown_field` names a field that neither declares.
    """
    with _refusing():
        record = fields.parse(data, float)
        rest = {name: value for name, value in record.items() if name not in guideline.document.data}
        for name in rest.keys() - {declared_field.name for declared_field in own}:
            declared(name, guideline)  # raises, with a close name of the guideline
        guideline_fields = {name: value for name, value in record.items() if name not in rest}
        return (_values(rest, own) if rest or not guideline_fields else None), guideline_fields


def check_guideline_fields(record: Mapping[str, Any], guideline: Guideline) -> None:
    """Checks a guideline's fields before any model runs.

    Raises:
        IntakeRefused: `guideline_field`, with the field's name.
    """
    try:
        read(dict(record), guideline)
    except RecordRefused as refused:
        raise IntakeRefused("guideline_field", str(refused)) from None


def carried(record: Values, own: Sequence[Field]) -> list[Finding]:
    """The record's measurements as findings with code and unit, so that a report carries what it rests on."""
    return [
        Finding(
            quantity.name,
            quantity.name.replace("_", " "),
            None,
            unit=quantity.unit,
            coding=quantity.coding,
            value=float(record[quantity.name]),
        )
        for quantity in own
        if isinstance(quantity, Quantity) and quantity.name in record
    ]


def _values(record: Mapping[str, Any], own: Sequence[Field]) -> Values:
    by_name = {declared_field.name: declared_field for declared_field in own}
    results: Values = {}
    for name, raw in record.items():
        if name not in by_name:
            raise RecordRefused(f"the record has a field that is not one of: {', '.join(by_name)}", "", "unknown_field")
        value, _ = fields.read(by_name[name], raw)
        if value is not None:
            results[name] = value if isinstance(value, str) else float(value)
    return results


@contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except RecordRefused as refused:
        raise IntakeRefused(refused.code, str(refused)) from None
