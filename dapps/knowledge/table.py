"""Computes the truth table of a decision: every combination of the values that matter, and the recommendation.

Unknown is a value of its own, so k true-or-false fields have 3^k rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from dapps.knowledge import cells
from dapps.knowledge.document import Enquiry
from dapps.knowledge.expression import Value
from dapps.knowledge.fields import RecordRefused
from dapps.knowledge.guideline import Guideline
from dapps.knowledge.record import Record
from dapps.knowledge.weigh import weigh

MAX_FIELDS, MAX_ROWS = 8, 10_000


@dataclass(frozen=True, slots=True)
class Row:
    """One combination and its recommendation; `provisional` as in `Weighed`."""

    values: Mapping[str, Value | None]
    recommended: str | None
    provisional: bool


def fields(guideline: Guideline) -> tuple[str, ...]:
    """The fields of a table unless others are named: those that an enquiry requires."""
    required = [
        name for _, task in guideline.tasks.values() if isinstance(task, Enquiry) for name in task.requires
    ]  # fmt: skip
    used = used_by_decision(guideline)
    return tuple(name for name in dict.fromkeys(required) if name in used)[:MAX_FIELDS] or used[:MAX_FIELDS]


def used_by_decision(guideline: Guideline) -> tuple[str, ...]:
    """The data that the first decision's arguments read, in the file's order."""
    decision = guideline.decision
    names = frozenset().union(
        *(guideline.condition(decision.name, argument.id).names for argument in decision.arguments)
    )
    return guideline.leaves(names)


def rows(guideline: Guideline, over: Sequence[str], around: Record | None = None) -> Iterator[Row]:
    """The table over these fields; the others as in `around`, or at their examples.

    Raises:
        RecordRefused: a field is unknown, or the table would be too long.
    """
    for name in over:
        if name not in guideline.document.data:
            raise RecordRefused(f"{name}: {guideline.id} has no such field", name)
    total = cells.size(guideline, over, unknown=True)
    if len(over) > MAX_FIELDS or total > MAX_ROWS:
        raise RecordRefused(f"the table would have {total} rows: name fewer fields, at most {MAX_FIELDS}")
    start = dict(cells.base(guideline) if around is None else around)
    for case in cells.product(guideline, over, start, unknown=True):
        weighed = weigh(guideline, case)
        recommended = weighed.recommended.name if weighed.recommended else None
        yield Row({name: case[name].value for name in over}, recommended, weighed.provisional)
