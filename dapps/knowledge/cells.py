"""Lists test values: for every field one on each side of every threshold, so that no cell is missed.

Used by the truth table, the linter and `changes.py`.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from decimal import Decimal

from dapps.knowledge.expression import Value
from dapps.knowledge.guideline import Guideline
from dapps.knowledge.record import Observation

MAX_CASES, MIN_CASES, WORK = 10_000, 100, 10_000_000
SEED = 7
Case = dict[str, Observation]


def cells(guideline: Guideline, name: str) -> list[Value]:
    """Representative values of a field: its options, or both sides of each threshold and its example."""
    datum = guideline.document.data[name]
    if datum.type == "boolean":
        return [False, True]
    if datum.type == "choice":
        return list(datum.options or ())
    low, high = datum.range or (Decimal(0), Decimal(0))
    numbers: set[Decimal] = {datum.example} if isinstance(datum.example, Decimal) else set()
    for condition in guideline.conditions.values():
        for threshold, sign, number in condition.thresholds:
            if threshold == name:
                numbers |= {number}
                numbers |= {number - datum.step} if sign in (">=", "<", "==", "!=") else set()
                numbers |= {number + datum.step} if sign in (">", "<=", "==", "!=") else set()
    return [value for value in sorted(numbers) if low <= value <= high]


def base(guideline: Guideline) -> Case:
    """Every field at its example: an unremarkable patient."""
    return {name: Observation(datum.example) for name, datum in guideline.document.data.items()}


def product(guideline: Guideline, names: Sequence[str], around: Case, unknown: bool = False) -> Iterator[Case]:
    """Every combination of representative values of these fields, the others as in `around`."""
    choices = [[*cells(guideline, name), *([None] if unknown else [])] for name in names]
    for combination in itertools.product(*choices):
        changed = {name: Observation(value) for name, value in zip(names, combination, strict=True)}
        yield {**around, **changed}


def max_cases(guideline: Guideline) -> int:
    """Most cases to weigh: fewer where conditions are long, so that no file takes minutes."""
    length = sum(len(condition.canonical) for condition in guideline.conditions.values())
    return min(MAX_CASES, max(MIN_CASES, WORK // max(length, 1)))


def size(guideline: Guideline, names: Sequence[str], unknown: bool = False) -> int:
    """How many combinations `product` has."""
    total = 1
    for name in names:
        total *= len(cells(guideline, name)) + unknown
    return total


def cases(guideline: Guideline, names: Sequence[str]) -> tuple[Iterator[Case], bool]:
    """Cases over these fields, and whether they are complete.

    If there are more than `max_cases`: one field and two fields changed from the example, then a fixed draw.
    """
    if size(guideline, names) <= max_cases(guideline):
        return product(guideline, names, base(guideline)), True
    return itertools.islice(_drawn(guideline, names), max_cases(guideline)), False


def _drawn(guideline: Guideline, names: Sequence[str]) -> Iterator[Case]:
    around = base(guideline)
    values = {name: cells(guideline, name) for name in names}
    yield around
    for name in names:
        for value in values[name]:
            yield {**around, name: Observation(value)}
    for pair in itertools.islice(itertools.combinations(names, 2), 500):
        yield from product(guideline, pair, around)
    draw = random.Random(SEED)
    for _ in range(1000):
        yield {name: Observation(draw.choice(values[name])) for name in names}
