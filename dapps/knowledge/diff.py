"""Compares two guidelines: their parts, and the records on which they recommend differently."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dapps.knowledge import cells
from dapps.knowledge.guideline import Guideline, plain
from dapps.knowledge.record import Observation
from dapps.knowledge.table import fields
from dapps.knowledge.weigh import weigh

MAX_SHOWN = 12
Difference = dict[str, Any]


def differences(old: Guideline, new: Guideline) -> Difference:
    """Digests, changed parts, and records on which the two recommend differently, as JSON."""
    parts = [*_data(old, new), *_arguments(old, new), *_tasks(old, new)]
    disagreements = list(_cases(old, new))
    return {
        "old": {"name": old.id, "version": old.document.version, "digest": old.digest},
        "new": {"name": new.id, "version": new.document.version, "digest": new.digest},
        "same": old.digest == new.digest,
        "parts": parts,
        "disagreements": len(disagreements),
        "examples": disagreements[:MAX_SHOWN],
    }


def _data(old: Guideline, new: Guideline) -> Iterator[Difference]:
    for name in dict.fromkeys([*old.document.data, *new.document.data]):
        before, after = old.document.data.get(name), new.document.data.get(name)
        yield from _changed(
            "datum", name, _facts(before, ("type", "unit", "range")), _facts(after, ("type", "unit", "range"))
        )
    for name in dict.fromkeys([*old.document.derived, *new.document.derived]):
        yield from _changed("derived", name, _fact(old, name), _fact(new, name))


def _arguments(old: Guideline, new: Guideline) -> Iterator[Difference]:
    before, after = _arguments_of(old), _arguments_of(new)
    for name in dict.fromkeys([*before, *after]):
        yield from _changed("argument", name, before.get(name), after.get(name))


def _tasks(old: Guideline, new: Guideline) -> Iterator[Difference]:
    for name in dict.fromkeys([*old.tasks, *new.tasks]):
        before, after = (guideline.tasks.get(name) for guideline in (old, new))
        yield from _changed("task", name, before and {"kind": before[1].kind}, after and {"kind": after[1].kind})


def _changed(kind: str, name: str, old: Difference | None, new: Difference | None) -> Iterator[Difference]:
    if old != new:
        change = "added" if old is None else "removed" if new is None else "changed"
        yield {"part": kind, "name": name, "change": change, "old": old, "new": new}


def _facts(part: Any, names: tuple[str, ...]) -> Difference | None:
    if part is None:
        return None
    facts = {name: getattr(part, name) for name in names}
    return {
        name: [plain(item) for item in value] if isinstance(value, list) else value for name, value in facts.items()
    }


def _fact(guideline: Guideline, name: str) -> Difference | None:
    conditions = {
        key: guideline.conditions[path].canonical
        for key in ("if", "true_if", "false_if")
        if (path := ("derived", name, key)) in guideline.conditions
    }
    return conditions or None


def _arguments_of(guideline: Guideline) -> dict[str, Difference]:
    return {
        argument.id: {
            "if": guideline.condition(decision.name, argument.id).canonical,
            "supports": dict(sorted(argument.supports.items())),
            "weight": plain(argument.weight),
            "when_unknown": argument.when_unknown,
        }
        for decision in guideline.decisions.values()
        for argument in decision.arguments
    }


def _cases(old: Guideline, new: Guideline) -> Iterator[Difference]:
    """Cases of both files over the fields that both require, all other fields at their examples."""
    shared = [
        name
        for name in old.document.data
        if _facts(old.document.data[name], ("type", "unit", "options"))
        == _facts(new.document.data.get(name), ("type", "unit", "options"))
    ]
    over = [name for name in dict.fromkeys([*fields(old), *fields(new)]) if name in shared]
    around = {**cells.base(new), **cells.base(old)}
    seen: set[tuple[object, ...]] = set()
    for guideline in (old, new):
        cases, _ = cells.cases(guideline, over)
        for case in cases:
            key = tuple(case[name].value for name in over)
            if key in seen:
                continue
            seen.add(key)
            results = [_recommended(guideline, {**around, **case}) for guideline in (old, new)]
            if results[0] != results[1]:
                yield {"record": {name: plain(case[name].value) for name in over}, "old": results[0], "new": results[1]}


def _recommended(guideline: Guideline, case: dict[str, Observation]) -> str | None:
    weighed = weigh(guideline, {name: value for name, value in case.items() if name in guideline.document.data})
    return weighed.recommended.name if weighed.recommended else None
