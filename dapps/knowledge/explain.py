"""Explains a recommendation as one JSON tree: every argument, its truth, the values it used, its source.

All other renderings are made from this tree (`render.py`, `terminal.py`), so no two of them can disagree. It says what
is unknown, what would change the recommendation, which facts are uncertain, and that no clinician has reviewed the
file while that is so.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dapps.knowledge.changes import would_change
from dapps.knowledge.document import Action, Argument, Cite, Decision
from dapps.knowledge.expression import Expression, Value
from dapps.knowledge.guideline import Guideline, plain
from dapps.knowledge.record import Observation, Record
from dapps.knowledge.truth import word
from dapps.knowledge.weigh import Option, Weighed, weigh
from dapps.knowledge.wording import notices, reason, uncertain

Tree = dict[str, Any]


def explain(guideline: Guideline, record: Record, decision: Decision | None = None) -> Tree:
    """Why a decision, the guideline's first if none is named, comes out as it does on this record."""
    decision = decision or guideline.decision
    weighed = weigh(guideline, record, decision)
    unknown, needed = _unknown(guideline, weighed)
    return {
        "guideline": identity(guideline),
        "decision": decision.name,
        "recommended": weighed.recommended.name if weighed.recommended else None,
        "reason": reason(weighed, needed),
        "provisional": weighed.provisional,
        "open": list(weighed.open),
        "unknown": unknown,
        "needed": needed,
        "options": [_option(guideline, weighed, record, option) for option in weighed.options],
        "would_change": list(would_change(guideline, record, weighed)),
        "actions": list(_actions(guideline, weighed)),
        "uncertain": [
            {"argument": argument.id, "confidence": argument.cite.confidence, "why": argument.cite.why}
            for argument in uncertain(weighed)
        ],
        "notices": list(notices(guideline, weighed)),
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


def _option(guideline: Guideline, weighed: Weighed, record: Record, option: Option) -> Tree:
    name = option.candidate.name
    arguments = [argument for argument in weighed.decision.arguments if name in argument.supports]
    return {
        "name": name,
        "text": option.candidate.text,
        "patient": option.candidate.patient,
        "support": option.symbol,
        "net": plain(option.net),
        "meets_rule": word(option.rule),
        "conflict": option.conflict,
        "arguments": [_argument(guideline, weighed, record, argument, name) for argument in arguments],
    }


def _argument(guideline: Guideline, weighed: Weighed, record: Record, argument: Argument, candidate: str) -> Tree:
    condition = guideline.condition(weighed.decision.name, argument.id)
    return {
        "id": argument.id,
        "support": argument.supports[candidate],
        "weight": plain(argument.weight),
        "truth": word(weighed.truths[argument.id]),
        "when_unknown": argument.when_unknown,
        "text": argument.text,
        "patient": argument.patient,
        "if": condition.canonical,
        "values": [_used(guideline, record, name) for name in guideline.leaves(condition.names)],
        "derived": _derived(guideline, weighed, condition),
        "cite": _cite(argument.cite),
    }


def _used(guideline: Guideline, record: Record, name: str) -> Tree:
    datum, used = guideline.document.data[name], record.get(name, Observation(None))
    return {
        "field": name,
        "value": plain(used.value),
        "unit": datum.unit,
        "source": _source(used),
        "code": f"{datum.code.system}:{datum.code.code}" if datum.code else None,
    }


def _source(used: Observation) -> str | None:
    if used.note:
        return f"{used.origin}: {used.note}"
    return None if used.value is None else used.origin


def _derived(guideline: Guideline, weighed: Weighed, condition: Expression) -> Tree:
    facts = [name for name in guideline.document.derived if name in condition.names]
    return {name: word(truth if isinstance(truth := weighed.values.get(name), bool) else None) for name in facts}


def _cite(cite: Cite) -> Tree:
    return {
        "from": cite.source,
        "place": cite.place,
        "class": cite.grade,
        "level": cite.level,
        "confidence": cite.confidence,
        "why": cite.why,
    }


def _unknown(guideline: Guideline, weighed: Weighed) -> tuple[list[str], list[str]]:
    """The fields without a value that any argument reads; and those among them that stand in the way."""
    unknown: dict[str, None] = {}
    needed: dict[str, None] = {}
    for argument in weighed.decision.arguments:
        condition = guideline.condition(weighed.decision.name, argument.id)
        missing = [name for name in guideline.leaves(condition.names) if weighed.values.get(name) is None]
        unknown |= dict.fromkeys(missing)
        truth = weighed.truths[argument.id]
        if (truth is None and argument.when_unknown == "blocks") or (truth and condition.asks_unknown):
            needed |= dict.fromkeys(missing)
    settled = weighed.recommended is not None and not weighed.recommended.defers
    order = guideline.document.data
    return [name for name in order if name in unknown], [name for name in order if name in needed and not settled]


def _actions(guideline: Guideline, weighed: Weighed) -> Iterator[Tree]:
    """The actions that follow from the recommendation; one whose condition is unknown is left out."""
    recommended = weighed.recommended.name if weighed.recommended else None
    results: dict[str, Value | None] = {weighed.decision.name: recommended}
    for path, task in guideline.tasks.values():
        if not isinstance(task, Action):
            continue
        when = guideline.conditions.get((*path, "when"))
        abort = guideline.conditions.get((*path, "abort_if"))
        if when is None or when.truth(weighed.values, results):
            yield {
                "name": task.name,
                "text": task.text,
                "patient": task.patient,
                "dose": task.dose,
                "abort_if": abort.canonical if abort else None,
                "aborted": word(abort.truth(weighed.values, results)) if abort else "false",
                "cite": _cite(task.cite),
            }
