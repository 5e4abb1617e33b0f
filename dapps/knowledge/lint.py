"""Weighs a guideline file to find dead candidates, unreachable tasks and overlaps.

Flaws that `guideline.load` refuses come first. Then every cell of the data is weighed, or a fixed draw if there are too
many; the flaw states which.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from dapps.knowledge import cells
from dapps.knowledge.document import Decision
from dapps.knowledge.guideline import Guideline, load
from dapps.knowledge.record import Observation, values
from dapps.knowledge.source import Flaw, GuidelineError, Path
from dapps.knowledge.truth import Truth
from dapps.knowledge.weigh import Option, weigh


def lint(raw: bytes) -> list[Flaw]:
    """All flaws of a file, by line; an empty list for a sound one."""
    try:
        guideline = load(raw)
    except GuidelineError as error:
        return error.flaws
    return sorted(
        {*_arguments(guideline), *_decisions(guideline), *_tasks(guideline), *_cutoffs(guideline), *_unused(guideline)}
    )


def _arguments(guideline: Guideline) -> Iterator[Flaw]:
    for decision in guideline.decisions.values():
        path = guideline.tasks[decision.name][0]
        for index, argument in enumerate(decision.arguments):
            where: Path = (*path, "arguments", index, "if")
            if True not in _possible(guideline, where):
                yield Flaw(guideline.text.line(where), f"{argument.id}: this condition never holds")
    for name in guideline.document.derived:
        if ("derived", name, "if") in guideline.conditions and True not in _possible(
            guideline, ("derived", name, "if")
        ):
            yield Flaw(guideline.text.line(("derived", name)), f"{name}: this condition never holds")


def _decisions(guideline: Guideline) -> Iterator[Flaw]:
    for decision in guideline.decisions.values():
        path = guideline.tasks[decision.name][0]
        names = frozenset().union(
            *(guideline.condition(decision.name, argument.id).names for argument in decision.arguments)
        )
        cases, whole = cells.cases(guideline, guideline.leaves(names))
        reached: set[str] = set()
        overlap: dict[tuple[str, str], str] = {}
        for case in cases:
            weighed = weigh(guideline, case, decision)
            reached |= {option.candidate.name for option in weighed.options if option.rule}
            for pair in _equals(weighed.options):
                overlap.setdefault(
                    pair, ", ".join(f"{name}={_shown(case[name])}" for name in _named(guideline, decision, pair))
                )
        for index, candidate in enumerate(decision.candidates):
            line = guideline.text.line((*path, "candidates", index))
            argued = any(argument.supports.get(candidate.name, "-").startswith("+") for argument in decision.arguments)
            if not argued:
                yield Flaw(line, f"dead candidate: nothing speaks for {candidate.name}")
            elif candidate.name not in reached and not candidate.defers:
                how = "in any case" if whole else "in any of the cases weighed"
                yield Flaw(line, f"dead candidate: {candidate.name} is not recommended {how}")
        for (first, second), where in overlap.items():
            line = guideline.text.line((*path, "candidates"))
            yield Flaw(line, f"overlapping thresholds: {first} and {second} are both confirmed at {where}")


def _equals(options: tuple[Option, ...]) -> Iterator[tuple[str, str]]:
    sure = [option.candidate.name for option in options if option.confirmed and not option.excluded]
    yield from itertools.combinations(sure, 2)


def _named(guideline: Guideline, decision: Decision, pair: tuple[str, str]) -> tuple[str, ...]:
    """The fields that confirm these two."""
    names = frozenset().union(
        *(
            guideline.condition(decision.name, argument.id).names
            for argument in decision.arguments
            if any(argument.supports.get(name) == "++" for name in pair)
        )
    )
    return guideline.leaves(names)[:4]


def _cutoffs(guideline: Guideline) -> Iterator[Flaw]:
    for name, fact in guideline.document.derived.items():
        if fact.true_if is None:
            continue
        holds, fails = (guideline.conditions["derived", name, key] for key in ("true_if", "false_if"))
        leaves = guideline.leaves(holds.names | fails.names)
        for case in cells.cases(guideline, leaves)[0]:
            case_values = values(case, guideline)
            if holds.truth(case_values) and fails.truth(case_values):
                where = ", ".join(f"{leaf}={_shown(case[leaf])}" for leaf in leaves)
                yield Flaw(
                    guideline.text.line(("derived", name)),
                    f"overlapping thresholds: {name} is true and false at {where}",
                )
                break


def _tasks(guideline: Guideline) -> Iterator[Flaw]:
    dead: set[str] = set()
    for name, (path, task) in guideline.tasks.items():
        parents = [
            other for other, (where, _) in guideline.tasks.items() if where == path[: len(where)] and where != path
        ]
        before = bool(task.after) and all(other in dead for other in task.after)
        never = task.when is not None and True not in _possible(guideline, (*path, "when"))
        if never or before or any(parent in dead for parent in parents):
            dead.add(name)
            cause = "its condition never holds" if never else "what it comes after is unreachable"
            yield Flaw(guideline.text.line(path), f"{name} is unreachable: {cause}")


def _possible(guideline: Guideline, path: Path) -> set[Truth]:
    """The truths that a condition can have, over unknown values and every result of a decision too."""
    condition = guideline.conditions[path]
    leaves = guideline.leaves(condition.names)
    cases = cells.product(guideline, leaves, {}, unknown=True)
    if cells.size(guideline, leaves, unknown=True) > cells.max_cases(guideline):
        around = cells.base(guideline)
        missing = ({**around, name: Observation(None)} for name in leaves)
        cases = itertools.chain(missing, cells.cases(guideline, leaves)[0])
    decisions = sorted(condition.decisions)
    results = [[candidate.name for candidate in guideline.decisions[name].candidates] for name in decisions]
    truths: set[Truth] = set()
    for case in cases:
        case_values = values(case, guideline)
        for committed in itertools.product(*results):
            truths.add(condition.truth(case_values, dict(zip(decisions, committed, strict=True))))
    return truths


def _unused(guideline: Guideline) -> Iterator[Flaw]:
    used = frozenset().union(*(condition.names for condition in guideline.conditions.values()))
    for name in guideline.document.data:
        if name not in guideline.leaves(used):
            yield Flaw(guideline.text.line(("data", name)), f"{name} is asked for and never used", "warning")
    for name in guideline.document.derived.keys() - used:
        yield Flaw(guideline.text.line(("derived", name)), f"{name} is never used", "warning")


def _shown(observation: Observation) -> str:
    return "unknown" if observation.value is None else str(observation.value).lower()
