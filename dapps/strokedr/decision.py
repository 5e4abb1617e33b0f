"""Haemorrhage on CT and the admission record, weighed together: options for thrombolysis with their pros and cons.

The model's answer is one datum among others. It says "no bleeding" only below the lower cut-off, of a whole series, of
usable images; everything else is unknown, and unknown is never "no bleeding". Knows no torch and no server.
"""

from __future__ import annotations

from typing import Any

from dapps.knowledge import Guideline, Reading, explain, find, from_probability
from dapps.knowledge.explain import Tree
from dapps.knowledge.record import Record, read

GUIDELINE = "stroke-ivt-2026"
FIELD = "haemorrhage"


def guideline() -> Guideline:
    """The guideline that decides; its digest is part of the DApp's."""
    return find(GUIDELINE)


def seen(probability: float, low: float, high: float, *, whole_head: bool, model: str, usable: bool = True) -> Reading:
    """The CT finding as a datum.

    Args:
        probability: calibrated, for all that was sent.
        low: below this haemorrhage is absent.
        high: from this on it is present.
        whole_head: False for single slices, which rule nothing out: then absent becomes unknown.
        model: which model answered, for the explanation.
        usable: False where the quality of the images was too low.
    """
    found = from_probability(probability, low, high, model, usable)
    if found.value is False and not whole_head:
        return Reading(None, found.origin, f"{found.note}; single slices rule nothing out")
    return found


def decide(record: dict[str, Any], ct: Reading | None = None) -> Tree:
    """Explains what the guideline recommends.

    Args:
        record: the guideline's fields as plain values; see `leben guideline fields stroke-ivt-2026`.
        ct: from `seen`, or None for a call without images.

    Raises:
        RecordRefused: a field is unknown or does not fit.
    """
    found = guideline()
    known = read(record, found)
    return explain(found, known if ct is None else {**known, FIELD: joined(known, ct)})


def joined(record: Record, ct: Reading) -> Reading:
    """What is known of haemorrhage when a person may have read the images too.

    A person's reading stands where the model cannot tell, and blood that a person sees is blood. Where the model alone
    sees it, it is unknown, and a specialist looks.
    """
    read_by_person = record.get(FIELD)
    if read_by_person is None or read_by_person.value is None:
        return ct
    if read_by_person.value or not ct.value:
        return read_by_person
    return Reading(None, ct.origin, f"{ct.note}; the record says otherwise")
