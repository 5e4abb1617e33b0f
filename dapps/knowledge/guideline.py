"""Loads a guideline file: checks it, compiles its conditions and digests it.

`source.py` reads the bytes, `document.py` defines the parts of a file, `check.py` finds flaws across them.
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
"""Part of every digest: raise it when the meaning of a field changes."""


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
        """The name under which `find` returns it."""
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
        names_read: set[str] = set()
        pending = list(names)
        while pending:
            name = pending.pop()
            if name in names_read:  # without this, facts that each read the next one twice would take 2^n steps
                continue
            names_read.add(name)
            if name in self.document.derived:
                for key in ("if", "true_if", "false_if"):
                    inner = self.conditions.get(("derived", name, key))
                    pending += inner.names if inner else ()
        return tuple(name for name in self.document.data if name in names_read)

    @cached_property
    def digest(self) -> str:
        """SHA-256 as hex over the meaning of the file: blanks, comments and the order of keys do not change it."""
        plain = self.document.model_dump(mode="python", by_alias=True, exclude_defaults=True)
        for path, condition in self.conditions.items():
            _put(plain, path, condition.canonical)
        raw = json.dumps({"format": FORMAT, "guideline": _canonical(plain)}, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(raw.encode()).hexdigest()


def load(raw: bytes) -> Guideline:
    """Reads and checks a guideline file.

    Raises:
        GuidelineError: with line and cause of every flaw.
    """
    text = source.read(raw)
    try:
        document = GuidelineDocument.model_validate(_kinds(text.data))
    except ValidationError as error:
        raise GuidelineError([_flaw(text, detail) for detail in error.errors()]) from None
    flaws = list(check.flaws(document, text))
    conditions: dict[Path, Expression] = {}
    types = {name: datum.kind for name, datum in document.data.items()} | dict.fromkeys(document.derived, BOOLEAN)
    for path, condition in written_conditions(document):
        try:
            conditions[path] = parse(condition, types)
        except ExpressionError as error:
            flaws.append(Flaw(text.line(path), str(error)))
    if not flaws:
        flaws += check.compiled_flaws(document, conditions, text)
    if flaws:
        raise GuidelineError(flaws)
    return Guideline(document, conditions, tuple(check.derived_order(document, conditions)), text)


def _kinds(data: Any) -> Any:
    """Rewrites `- enquiry: intake` to the form of the model: `{kind: enquiry, name: intake}`."""
    if isinstance(data, dict) and isinstance(data.get("tasks"), list):
        return {**data, "tasks": [_kind(task) for task in data["tasks"]]}
    return data


def _kind(task: Any) -> Any:
    if not isinstance(task, dict):
        return task
    kinds = [kind for kind in KINDS if kind in task]
    rest = {key: value for key, value in task.items() if key not in kinds}
    if len(kinds) != 1 or "kind" in task or "name" in task:
        return {**rest, "kind": None}
    return _kinds({**rest, "kind": kinds[0], "name": task[kinds[0]]})


def _flaw(text: source.Source, error: Any) -> Flaw:
    path: Path = tuple(part for part in error["loc"] if part not in KINDS)
    if path and path[-1] == "name" and "tasks" in path:
        path = path[:-1]
    last = f"{error['loc'][-1]}: " if error["loc"] else ""
    if error["type"].startswith("union_tag"):
        return Flaw(text.line(path), f"a task begins with one of: {', '.join(KINDS)}")
    if error["type"] == "missing" and last in ("cite: ", "from: ", "origin: "):
        return Flaw(text.line(path), f"the source is missing: write `{last}…`")
    return Flaw(text.line(path), last + error["msg"][:1].lower() + error["msg"][1:])


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
    """A value for JSON: whole numbers without a point."""
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return value
