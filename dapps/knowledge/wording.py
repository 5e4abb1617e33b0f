"""Words the reason of a recommendation and the notices below it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dapps.knowledge.document import Argument
from dapps.knowledge.guideline import Guideline
from dapps.knowledge.weigh import Weighed
from dapps.notice import RESEARCH_USE

NOT_REVIEWED = "Not reviewed by a clinician."


def reason(weighed: Weighed, needed: Sequence[str]) -> str:
    """Why the candidate is recommended, in one sentence; or which of the `needed` fields stand in the way."""
    if weighed.recommended is None:
        return f"Nothing can be recommended while this is unknown: {', '.join(needed) or 'more than one thing'}."
    name = weighed.recommended.name
    reasons = [
        argument.text
        for argument in weighed.decision.arguments
        if weighed.truths[argument.id] and argument.supports.get(name, "-").startswith("+") and argument.weight > 0
    ]
    sentence = f"{name}: {'; '.join(reasons)}."
    if weighed.provisional:
        sentence += f" Provisional: {len(weighed.open)} conditions that would speak against it are not known."
    return sentence


def notices(guideline: Guideline, weighed: Weighed) -> Iterator[str]:
    """What a reader must know: research use, review, conflicts, uncertain facts, and that a person decides."""
    yield RESEARCH_USE
    document = guideline.document
    yield NOT_REVIEWED if document.reviewed_by is None else f"Reviewed by {document.reviewed_by}."
    if document.status == "superseded":
        yield f"Superseded by {document.superseded_by}: for comparing versions only."
    for option in weighed.options:
        if option.conflict:
            yield f"Conflict: {option.candidate.name} is both confirmed and excluded; the exclusion stands."
    names = [argument.id for argument in uncertain(weighed)]
    if names:
        yield f"Uncertain facts, not read in the source itself: {', '.join(names)}."
    if weighed.provisional:
        yield "Provisional: ask what is listed as open before committing."
    yield "This is a recommendation; a named person decides."


def uncertain(weighed: Weighed) -> Iterator[Argument]:
    """The arguments that hold or may hold, and whose source was not read."""
    for argument in weighed.decision.arguments:
        if argument.cite.confidence != "read" and weighed.truths[argument.id] is not False:
            yield argument
