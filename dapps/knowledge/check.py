"""Finds flaws across the parts of a guideline file: names, units, codes, sources, cycles.

`guideline.load` refuses a file with any of them. `lint.py` weighs the file to find what it may contain and should not:
a dead candidate, an unreachable task.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter

from dapps.knowledge import terms
from dapps.knowledge.document import Action, Cite, Datum, Decision, Enquiry, GuidelineDocument, walk
from dapps.knowledge.expression import Expression
from dapps.knowledge.source import Flaw, Path, Source

Conditions = Mapping[Path, Expression]
MAX_THRESHOLDS = 40
"""Of one datum: bounds the time of weighing both sides of each."""


def flaws(document: GuidelineDocument, text: Source) -> Iterator[Flaw]:
    """Flaws that need no condition."""
    for name, datum in document.data.items():
        for cause in _datum(datum):
            yield Flaw(text.line(("data", name)), f"{name}: {cause}")
    for name, fact in document.derived.items():
        if name in document.data:
            yield Flaw(text.line(("derived", name)), f"{name} is a datum already")
        if (fact.condition is None) == (fact.true_if is None or fact.false_if is None):
            yield Flaw(text.line(("derived", name)), f"{name}: write either `if`, or `true_if` and `false_if`")
    yield from _tasks(document, text)


def compiled_flaws(document: GuidelineDocument, conditions: Conditions, text: Source) -> Iterator[Flaw]:
    """Flaws of the conditions together."""
    try:
        derived_order(document, conditions)
    except CycleError as error:
        ring = list(error.args[1])
        yield Flaw(text.line(("derived", ring[0])), f"a cycle of derived facts: {' → '.join(ring)}")
    counts = Counter(threshold[0] for condition in conditions.values() for threshold in set(condition.thresholds))
    for name, count in counts.items():
        if count > MAX_THRESHOLDS:
            yield Flaw(text.line(("data", name)), f"{name} is compared with more than {MAX_THRESHOLDS} numbers")
    for path, condition in conditions.items():
        for name, value in condition.texts:
            allowed = _texts(document, name)
            if value not in allowed:
                yield Flaw(text.line(path), f"{name} is never '{value}': it is {' or '.join(allowed) or 'not a text'}")
        for decision in condition.decisions - _decisions(document).keys():
            yield Flaw(text.line(path), f"there is no decision named {decision}")
        if condition.asks_unknown and (condition.negates_unknown or path[0] != "tasks" or "arguments" not in path):
            yield Flaw(text.line(path), "unknown(…) stands in the condition of an argument alone, without `not`")
    yield from _monotone(document, conditions, text)


def derived_order(document: GuidelineDocument, conditions: Conditions) -> list[str]:
    """The derived facts, each after those that it reads.

    Raises:
        CycleError: they read one another in a ring.
    """
    graph: dict[str, set[str]] = {name: set() for name in document.derived}
    for path, condition in conditions.items():
        if path[0] == "derived":
            graph[str(path[1])] |= condition.names & document.derived.keys()
    return list(TopologicalSorter(graph).static_order())


def _datum(datum: Datum) -> Iterator[str]:
    if datum.type in ("number", "integer"):
        if datum.unit is None:
            yield "the unit is missing: write a UCUM unit, `1` or `{score}` if it has none"
        elif not terms.is_unit(datum.unit):
            yield f"{datum.unit} is not a UCUM unit"
        if datum.range is None or datum.range[0] >= datum.range[1]:
            yield "a number needs `range: [lowest, highest]` of what is possible"
    elif datum.unit is not None or datum.range is not None:
        yield "only numbers have a unit and a range"
    if (datum.type == "choice") != (datum.options is not None):
        yield "a choice has options, and nothing else does"
    if datum.code is not None and not terms.is_code(datum.code.system, datum.code.code):
        yield f"{datum.code.code} is not a {datum.code.system} code: its form or check digit is wrong"
    if not _fits(datum):
        yield "`example` is missing, or is not a value that the datum can have"


def _fits(datum: Datum) -> bool:
    if datum.type == "boolean":
        return isinstance(datum.example, bool)
    if datum.type == "choice":
        return datum.example in (datum.options or ())
    if isinstance(datum.example, bool | str) or datum.example is None or datum.range is None:
        return False
    whole = datum.type == "number" or datum.example == datum.example.to_integral_value()
    return whole and datum.range[0] <= datum.example <= datum.range[1]


def _tasks(document: GuidelineDocument, text: Source) -> Iterator[Flaw]:
    seen: dict[str, Path] = {}
    graph: dict[str, set[str]] = {}
    for path, task in walk(document.tasks):
        if task.name in seen:
            yield Flaw(text.line(path), f"two tasks are named {task.name}")
        seen[task.name], graph[task.name] = path, set(task.after)
        if isinstance(task, Enquiry):
            for name in [*task.requires, *task.asks]:
                if name not in document.data:
                    yield Flaw(text.line(path), f"there is no datum named {name}")
        if isinstance(task, Decision):
            yield from _decision(document, task, path, text)
        if isinstance(task, Action):
            yield from _cite(document, task.cite, text.line((*path, "cite")))
    for path, task in walk(document.tasks):
        beside = {other.name for where, other in walk(document.tasks) if where[:-1] == path[:-1]}
        for name in task.after:
            if name not in beside:
                yield Flaw(text.line(path), f"{task.name} is unreachable: no task beside it is named {name}")
    try:
        TopologicalSorter({name: after & graph.keys() for name, after in graph.items()}).prepare()
    except CycleError as error:
        ring = list(error.args[1])
        yield Flaw(text.line(seen[ring[0]]), f"a cycle of tasks: {' → '.join(reversed(ring))}")
    if not _decisions(document):
        yield Flaw(text.line(("tasks",)), "there is no decision")


def _decision(document: GuidelineDocument, decision: Decision, path: Path, text: Source) -> Iterator[Flaw]:
    names = [candidate.name for candidate in decision.candidates]
    for doubled in {name for name in names if names.count(name) > 1}:
        yield Flaw(text.line((*path, "candidates")), f"two candidates are named {doubled}")
    ids = [argument.id for argument in decision.arguments]
    for index, argument in enumerate(decision.arguments):
        line = text.line((*path, "arguments", index))
        if ids.index(argument.id) != index:
            yield Flaw(line, f"two arguments are named {argument.id}")
        for name in argument.supports.keys() - set(names):
            yield Flaw(line, f"{argument.id}: there is no candidate named {name}")
        yield from _cite(document, argument.cite, line)


def _cite(document: GuidelineDocument, cite: Cite, line: int) -> Iterator[Flaw]:
    if cite.source not in document.citations:
        yield Flaw(line, f"the source is missing: {cite.source} is not among the citations")
    if cite.confidence == "inferred" and cite.why is None:
        yield Flaw(line, "an inferred fact says `why:`")


def _monotone(document: GuidelineDocument, conditions: Conditions, text: Source) -> Iterator[Flaw]:
    """What is unknown may support asking a person and oppose anything else: it never supports a course of action."""
    for path, task in walk(document.tasks):
        if not isinstance(task, Decision):
            continue
        defers = {candidate.name for candidate in task.candidates if candidate.defers}
        for index, argument in enumerate(task.arguments):
            if not conditions[(*path, "arguments", index, "if")].asks_unknown:
                continue
            for name, support in argument.supports.items():
                if (name in defers) != support.startswith("+"):
                    yield Flaw(
                        text.line((*path, "arguments", index)),
                        f"{argument.id}: what is unknown may not speak {'against' if name in defers else 'for'} {name}",
                    )


def _decisions(document: GuidelineDocument) -> dict[str, Decision]:
    return {task.name: task for _, task in walk(document.tasks) if isinstance(task, Decision)}


def _texts(document: GuidelineDocument, name: str) -> list[str]:
    if name in document.data:
        return list(document.data[name].options or ())
    decision = _decisions(document).get(name.removeprefix("result(").removesuffix(")"))
    return [candidate.name for candidate in decision.candidates] if decision else []
