"""Reads tables of labels beside the data, or refuses them with the column to add.

For training and `leben dapp evaluate`, never for the service. Messages name files, columns and lines, never a value: a
table may hold patients' names.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable
from pathlib import Path

Row = dict[str, str]


class Unusable(ValueError):
    """A table that cannot be used; the message says why, for its author."""


def read(path: Path, needed: Iterable[str]) -> list[Row]:
    """The rows of a CSV table with a header, blanks around each value removed; a missing value is "".

    Args:
        path: the table; a byte-order mark is ignored.
        needed: names of the required columns.

    Raises:
        FileNotFoundError: if there is no such file.
        Unusable: if it is no CSV table, lacks a column or has no row.
    """
    shown = f"{path.parent.name}/{path.name}"
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
            reader = csv.DictReader(file, restkey="", restval="")
            lacking = [name for name in needed if name not in (reader.fieldnames or ())]
            if lacking:
                raise Unusable(f"{shown} lacks the columns {', '.join(lacking)}")
            rows = [{name: value.strip() for name, value in row.items() if name} for row in reader]
    except csv.Error:
        raise Unusable(f"{shown} is not a CSV table") from None
    if not rows:
        raise Unusable(f"{shown} has a header and no row")
    return rows


def number(row: Row, column: str, line: int, path: Path) -> float | None:
    """The finite number in a column; None in an empty one.

    Raises:
        Unusable: if it is something else; `line` counts rows from 1.
    """
    text = row.get(column, "")
    try:
        value = float(text) if text else None
    except ValueError:
        value = math.nan
    if value is not None and not math.isfinite(value):
        raise Unusable(f"{path.parent.name}/{path.name}, row {line}: {column} is not a number")
    return value
