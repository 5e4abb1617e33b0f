"""The explanation of a recommendation, as one JSON tree: every argument, its truth, the values it used, its source.

All other renderings are made from this tree (`render.py`, `terminal.py`), so no two of them can disagree. It says what
is unknown, what would change the recommendation, which facts are uncertain, and that no clinician has reviewed the
file while that is so.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from dapps.knowledge import cells
from dapps.knowledge.document import Action, Argument, Cite, Decision
from dapps.knowledge.expression import Expression, Value
from dapps.knowledge.guideline import Guideline, plain
from dapps.knowledge.record import Observation, Record, known
from dapps.knowledge.truth import word
from dapps.knowledge.weigh import Option, Weighed, weigh

Tree = dict[str, Any]
RESEARCH_USE = "Research use only. Not a medical device; not for diagnosis or treatment."
NOT_REVIEWED = "Not reviewed by a clinician."


def explain(guideline: Guideline, record: Record, decision: Decision | None = None) -> Tree:
    """Why a decision, the guideline's first if none is named, comes out as it does on this record."""
    decision = decision or guideline.decision
    found = weigh(guideline, record, decision)
    unknown, needed = _unknown(guideline, found)
    return {
        "guideline": identity(guideline),
        "decision": decision.name,
        "recommended": found.recommended.name if found.recommended else None,
        "reason": _reason(found, needed),
        "provisional": found.provisional,
        "open": list(found.open),
        "unknown": unknown,
        "needed": needed,
        "options": [_option(guideline, found, record, option) for option in found.options],
        "would_change": list(would_change(guideline, record, found)),
        "actions": list(_actions(guideline, found)),
        "uncertain": [
            {"argument": each.id, "confidence": each.cite.confidence, "why": each.cite.why}
            for each in decision.arguments
            if each.cite.confidence != "read" and found.truths[each.id] is not False
        ],
        "notices": list(_notices(guideline, found)),
    }


def identity(guideline: Guideline) -> Tree:
    """Which guideline this is: name, version, digest, sources, and who has reviewed it."""
    document = guideline.document
    return {
        "name": document.id,
        "version": document.version,
        "digest": guideline.digest,
        "title": document.title,
        "status": document.status,
        "population": document.population,
        "reviewed_by": document.reviewed_by,
        "citations": {
            name: {"title": cited.title, "year": plain(cited.year), "url": cited.url, "read": cited.read}
            for name, cited in document.citations.items()
        },
    }


def what_if(guideline: Guideline, record: Record, changes: Record) -> Tree:
    """What would be recommended if these fields had these values; a reading of None makes one unknown."""
    before, after = weigh(guideline, record), weigh(guideline, {**record, **changes})
    names = [found.recommended.name if found.recommended else None for found in (before, after)]
    return {
        "if": {name: plain(reading.value) for name, reading in changes.items()},
        "recommended": names[1],
        "provisional": after.provisional,
        "changes": names[0] != names[1],
    }


def would_change(guideline: Guideline, record: Record, found: Weighed) -> Iterator[Tree]:
    """The smallest change of each single field that would recommend something else."""
    used = guideline.leaves(
        frozenset().union(
            *(guideline.condition(found.decision.name, each.id).names for each in found.decision.arguments)
        )
    )
    now = dict(known(record))
    seen: set[tuple[str, str | None]] = set()
    tried = ((name, value) for name in used for value in _nearest(guideline, name, now.get(name)))
    for name, value in itertools.islice(tried, cells.max_cases(guideline)):
        other = weigh(guideline, {**record, name: Observation(value)}, found.decision).recommended
        result = other.name if other else None
        if other != found.recommended and (name, result) not in seen:
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


def _option(guideline: Guideline, found: Weighed, record: Record, option: Option) -> Tree:
    name = option.candidate.name
    arguments = [each for each in found.decision.arguments if name in each.supports]
    return {
        "name": name,
        "text": option.candidate.text,
        "patient": option.candidate.patient,
        "support": option.symbol,
        "net": plain(option.net),
        "meets_rule": word(option.rule),
        "conflict": option.conflict,
        "arguments": [_argument(guideline, found, record, each, name) for each in arguments],
    }


def _argument(guideline: Guideline, found: Weighed, record: Record, argument: Argument, candidate: str) -> Tree:
    condition = guideline.condition(found.decision.name, argument.id)
    return {
        "id": argument.id,
        "support": argument.supports[candidate],
        "weight": plain(argument.weight),
        "truth": word(found.truths[argument.id]),
        "when_unknown": argument.when_unknown,
        "text": argument.text,
        "patient": argument.patient,
        "if": condition.canonical,
        "values": [_used(guideline, record, name) for name in guideline.leaves(condition.names)],
        "derived": _derived(guideline, found, condition),
        "cite": _cite(argument.cite),
    }


def _used(guideline: Guideline, record: Record, name: str) -> Tree:
    datum, reading = guideline.document.data[name], record.get(name, Observation(None))
    return {
        "field": name,
        "value": plain(reading.value),
        "unit": datum.unit,
        "source": (reading.origin if not reading.note else f"{reading.origin}: {reading.note}")
        if reading.value is not None or reading.note
        else None,
        "code": f"{datum.code.system}:{datum.code.code}" if datum.code else None,
    }


def _derived(guideline: Guideline, found: Weighed, condition: Expression) -> Tree:
    facts = [name for name in guideline.document.derived if name in condition.names]
    return {name: word(truth if isinstance(truth := found.values.get(name), bool) else None) for name in facts}


def _cite(cite: Cite) -> Tree:
    return {
        "from": cite.source,
        "place": cite.place,
        "class": cite.grade,
        "level": cite.level,
        "confidence": cite.confidence,
        "why": cite.why,
    }


def _unknown(guideline: Guideline, found: Weighed) -> tuple[list[str], list[str]]:
    """The fields without a value that any argument reads; and those among them that stand in the way."""
    unknown: dict[str, None] = {}
    needed: dict[str, None] = {}
    for argument in found.decision.arguments:
        condition = guideline.condition(found.decision.name, argument.id)
        missing = [name for name in guideline.leaves(condition.names) if found.values.get(name) is None]
        unknown |= dict.fromkeys(missing)
        truth = found.truths[argument.id]
        if (truth is None and argument.when_unknown == "blocks") or (truth and condition.asks_unknown):
            needed |= dict.fromkeys(missing)
    settled = found.recommended is not None and not found.recommended.defers
    order = guideline.document.data
    return [name for name in order if name in unknown], [name for name in order if name in needed and not settled]


def _reason(found: Weighed, needed: list[str]) -> str:
    if found.recommended is None:
        return f"Nothing can be recommended while this is unknown: {', '.join(needed) or 'more than one thing'}."
    name = found.recommended.name
    reasons = [
        each.text
        for each in found.decision.arguments
        if found.truths[each.id] and each.supports.get(name, "-").startswith("+") and each.weight > 0
    ]
    said = f"{name}: {'; '.join(reasons)}."
    if found.provisional:
        said += f" Provisional: {len(found.open)} conditions that would speak against it are not known."
    return said


def _actions(guideline: Guideline, found: Weighed) -> Iterator[Tree]:
    """What would be done if the recommendation were committed to. Dormant while the condition is unknown."""
    results: dict[str, Value | None] = {found.decision.name: found.recommended.name if found.recommended else None}
    for path, task in guideline.tasks.values():
        if not isinstance(task, Action):
            continue
        when = guideline.conditions.get((*path, "when"))
        abort = guideline.conditions.get((*path, "abort_if"))
        if when is None or when.truth(found.values, results):
            yield {
                "name": task.name,
                "text": task.text,
                "patient": task.patient,
                "dose": task.dose,
                "abort_if": abort.canonical if abort else None,
                "aborted": word(abort.truth(found.values, results)) if abort else "false",
                "cite": _cite(task.cite),
            }


def _notices(guideline: Guideline, found: Weighed) -> Iterator[str]:
    yield RESEARCH_USE
    document = guideline.document
    yield NOT_REVIEWED if document.reviewed_by is None else f"Reviewed by {document.reviewed_by}."
    if document.status == "superseded":
        yield f"Superseded by {document.superseded_by}: for comparing versions only."
    for option in found.options:
        if option.conflict:
            yield f"Conflict: {option.candidate.name} is both confirmed and excluded; the exclusion stands."
    uncertain = [each.id for each in found.decision.arguments if _unsure(each, found)]
    if uncertain:
        yield f"Uncertain facts, not read in the source itself: {', '.join(uncertain)}."
    if found.provisional:
        yield "Provisional: ask what is listed as open before committing."
    yield "This is a recommendation; a named person decides."


def _unsure(argument: Argument, found: Weighed) -> bool:
    return argument.cite.confidence != "read" and found.truths[argument.id] is not False
