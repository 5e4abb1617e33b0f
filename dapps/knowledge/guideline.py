"""`Guideline`: one checked guideline file, its conditions and its digest.

`source.py` reads the bytes, `document.py` says what may stand in the file, `check.py` finds what is wrong with it as a
whole.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property
from typing import Any

from pydantic import ValidationError

from dapps.knowledge import check, source
from dapps.knowledge.document import KINDS, AnyTask, Decision, GuidelineDocument, walk, written_conditions
from dapps.knowledge.expression import Expression, Value, parse
from dapps.knowledge.grammar import BOOLEAN, ExpressionError
from dapps.knowledge.source import Flaw, GuidelineError, Path

FORMAT = 1
"""Enters every digest: a change of what the fields mean changes the digests too."""


@dataclass(frozen=True)
class Guideline:
    """A guideline that can be weighed. Build it with `load`.

    `conditions` holds every condition by its path in the file, `order` the derived facts so that each comes after
    those it reads.
    """

    document: GuidelineDocument
    conditions: dict[Path, Expression] = field(repr=False)
    order: tuple[str, ...] = field(repr=False)
    text: source.Source = field(repr=False, compare=False)

    @property
    def id(self) -> str:
        """The name it is found by."""
        return self.document.id

    @cached_property
    def tasks(self) -> dict[str, tuple[Path, AnyTask]]:
        """All tasks by name, those inside plans too, with their path."""
        return {task.name: (path, task) for path, task in walk(self.document.tasks)}

    @cached_property
    def decisions(self) -> dict[str, Decision]:
        """All decisions by name, in the file's order."""
        return {name: task for name, (_, task) in self.tasks.items() if isinstance(task, Decision)}

    @cached_property
    def decision(self) -> Decision:
        """The first decision: the one that an explanation is about."""
        return next(iter(self.decisions.values()))

    @cached_property
    def _argued(self) -> dict[tuple[str, str], Expression]:
        return {
            (task.name, argument.id): self.conditions[(*path, "arguments", index, "if")]
            for path, task in self.tasks.values()
            if isinstance(task, Decision)
            for index, argument in enumerate(task.arguments)
        }

    def condition(self, decision: str, argument: str) -> Expression:
        """The condition of an argument."""
        return self._argued[decision, argument]

    def leaves(self, names: frozenset[str]) -> tuple[str, ...]:
        """The data behind these names, through derived facts, in the file's order."""
        found: set[str] = set()
        left = list(names)
        while left:
            name = left.pop()
            if name in found:  # else a ladder of facts that read each other twice would take 2^n steps
                continue
            found.add(name)
            if name in self.document.derived:
                for key in ("if", "true_if", "false_if"):
                    inner = self.conditions.get(("derived", name, key))
                    left += inner.names if inner else ()
        return tuple(name for name in self.document.data if name in found)

    @cached_property
    def digest(self) -> str:
        """SHA-256 as hex over what the file means: blanks, comments, order of keys and notation do not change it."""
        plain = self.document.model_dump(mode="python", by_alias=True, exclude_defaults=True)
        for path, condition in self.conditions.items():
            _put(plain, path, condition.canonical)
        raw = json.dumps({"format": FORMAT, "guideline": _canonical(plain)}, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(raw.encode()).hexdigest()


def load(raw: bytes) -> Guideline:
    """Reads and checks a guideline file.

    Raises:
        GuidelineError: with line and cause of everything that is wrong.
    """
    text = source.read(raw)
    try:
        document = GuidelineDocument.model_validate(_kinds(text.data))
    except ValidationError as error:
        raise GuidelineError([_flaw(text, found) for found in error.errors()]) from None
    flaws = list(check.flaws(document, text))
    conditions: dict[Path, Expression] = {}
    types = {name: datum.kind for name, datum in document.data.items()} | dict.fromkeys(document.derived, BOOLEAN)
    for path, written in written_conditions(document):
        try:
            conditions[path] = parse(written, types)
        except ExpressionError as error:
            flaws.append(Flaw(text.line(path), str(error)))
    if not flaws:
        flaws += check.compiled_flaws(document, conditions, text)
    if flaws:
        raise GuidelineError(flaws)
    return Guideline(document, conditions, tuple(check.derived_order(document, conditions)), text)


def _kinds(data: Any) -> Any:
    """`- enquiry: intake` as the model wants it: `{kind: enquiry, name: intake}`."""
    if isinstance(data, dict) and isinstance(data.get("tasks"), list):
        return {**data, "tasks": [_kind(task) for task in data["tasks"]]}
    return data


def _kind(task: Any) -> Any:
    if not isinstance(task, dict):
        return task
    found = [kind for kind in KINDS if kind in task]
    rest = {key: value for key, value in task.items() if key not in found}
    if len(found) != 1 or "kind" in task or "name" in task:
        return {**rest, "kind": None}
    return _kinds({**rest, "kind": found[0], "name": task[found[0]]})


def _flaw(text: source.Source, found: Any) -> Flaw:
    path: Path = tuple(part for part in found["loc"] if part not in KINDS)
    if path and path[-1] == "name" and "tasks" in path:
        path = path[:-1]
    last = f"{found['loc'][-1]}: " if found["loc"] else ""
    if found["type"].startswith("union_tag"):
        return Flaw(text.line(path), f"a task begins with one of: {', '.join(KINDS)}")
    if found["type"] == "missing" and last in ("cite: ", "from: ", "origin: "):
        return Flaw(text.line(path), f"the source is missing: write `{last}…`")
    return Flaw(text.line(path), last + found["msg"][:1].lower() + found["msg"][1:])


def _put(plain: Any, path: Path, value: str) -> None:
    for part in path[:-1]:
        plain = plain[part]
    plain[path[-1]] = value


def _canonical(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _canonical(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_canonical(inner) for inner in value]
    return plain(value)


def plain(value: Value | None) -> bool | str | int | float | None:
    """A value as JSON has it: whole numbers without a point."""
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return value
