"""Defines `Execution`: one batch that ran, for statistics and metrics."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Execution:
    """One batch that ran.

    Attributes:
        rows: its size.
        calls: how many calls it answered.
        queued_ns: their time in the queue, added up.
        took_ns: how long it ran.
    """

    rows: int
    calls: int
    queued_ns: int
    took_ns: int
