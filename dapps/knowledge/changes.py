"""Finds what would change a recommendation: fields set otherwise, and the smallest change of each single field."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from dapps.knowledge import cells
from dapps.knowledge.expression import Value
from dapps.knowledge.guideline import Guideline, plain
from dapps.knowledge.record import Observation, Record, known_values
from dapps.knowledge.weigh import Weighed, weigh

Change = dict[str, Any]


def what_if(guideline: Guideline, record: Record, changes: Record) -> Change:
    """The recommendation if these fields had these values; an observation of None makes a field unknown."""
    before, after = weigh(guideline, record), weigh(guideline, {**record, **changes})
    names = [weighed.recommended.name if weighed.recommended else None for weighed in (before, after)]
    return {
        "if": {name: plain(reading.value) for name, reading in changes.items()},
        "recommended": names[1],
        "provisional": after.provisional,
        "changes": names[0] != names[1],
    }


def would_change(guideline: Guideline, record: Record, weighed: Weighed) -> Iterator[Change]:
    """The smallest changes of each single field that would recommend something else."""
    used = guideline.leaves(
        frozenset().union(
            *(guideline.condition(weighed.decision.name, argument.id).names for argument in weighed.decision.arguments)
        )
    )
    current = dict(known_values(record))
    seen: set[tuple[str, str | None]] = set()
    candidates = ((name, value) for name in used for value in _nearest(guideline, name, current.get(name)))
    for name, value in itertools.islice(candidates, cells.max_cases(guideline)):
        other = weigh(guideline, {**record, name: Observation(value)}, weighed.decision).recommended
        result = other.name if other else None
        if other != weighed.recommended and (name, result) not in seen:
            seen.add((name, result))
            yield {"field": name, "value": plain(value), "recommended": result}


def _nearest(guideline: Guideline, name: str, current: Value | None) -> list[Value]:
    """The other values worth trying, the nearest first."""
    values = [value for value in cells.cells(guideline, name) if value != current]
    return sorted(values, key=lambda value: _distance(value, current))


def _distance(value: Value, current: Value | None) -> float:
    if isinstance(value, bool | str) or isinstance(current, bool | str) or current is None:
        return 0.0
    return abs(float(value - current))
