"""A report that crosses from an isolated DApp: rebuilt from JSON field by field, whatever was sent.

Next: `dapps/types.py`, whose `Report` it is.
"""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from dapps.types import Report

_REPORT = TypeAdapter(Report)
OWN = ("notice", "intended_use", "provenance")
"""What the mesh says itself: no DApp may leave out that its answer is for research."""


def read_report(told: Any) -> Report:
    """The report.

    Raises:
        ValueError: it is none; the text may quote it.
    """
    if not isinstance(told, dict):
        raise ValueError("not a report")
    return _REPORT.validate_python({name: value for name, value in told.items() if name not in OWN})
