"""Haemorrhage on CT and the admission record, weighed together: options for thrombolysis with their pros and cons.

The model's answer is one datum among others. It says "no bleeding" only below the lower cut-off, of a whole series, of
usable images; everything else is unknown, and unknown is never "no bleeding". Knows no torch and no server.
"""

from __future__ import annotations

from typing import Any

from dapps.api import Case, Prepared, Report
from dapps.api.recommendation import with_recommendation
from dapps.evaluation import card
from dapps.intake.record import Values, check_guideline_fields, divide
from dapps.knowledge import Guideline, Observation, explain, find, from_probability
from dapps.knowledge.explain import Tree
from dapps.knowledge.record import Record, read
from dapps.strokedr import series
from dapps.strokedr.prognosis.admission import FIELDS

GUIDELINE = "stroke-ivt-2026"
FIELD, FINDING = "haemorrhage", "intracranial_haemorrhage"
MIN_SPAN_MM = 90.0
"""A series that spans less of the head rules no bleeding out."""


def guideline() -> Guideline:
    """The guideline that decides; its digest is part of the DApp's."""
    return find(GUIDELINE)


def seen(
    probability: float, low: float, high: float, *, whole_head: bool, model: str, usable: bool = True
) -> Observation:
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
        return Observation(None, found.origin, f"{found.note}; single slices rule nothing out")
    return found


def decide(record: dict[str, Any], ct: Observation | None = None) -> Tree:
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


def joined(record: Record, ct: Observation) -> Observation:
    """What is known of haemorrhage when a person may have read the images too.

    A person's reading stands where the model cannot tell, and blood that a person sees is blood. Where the model alone
    sees it, it is unknown, and a specialist looks.
    """
    read_by_person = record.get(FIELD)
    if read_by_person is None or read_by_person.value is None:
        return ct
    if read_by_person.value or not ct.value:
        return read_by_person
    return Observation(None, ct.origin, f"{ct.note}; the record says otherwise")


def divided(case: Case) -> tuple[Values | None, dict[str, Any]]:
    """The values of the admission record, None if there is none, and the guideline's fields, checked.

    Raises:
        IntakeRefused: `guideline_field` or `unknown_field`, with the field's name, or a code of the intake.
    """
    if case.record is None:
        return None, {}
    own, asked = divide(case.record, FIELDS, guideline())
    check_guideline_fields(asked, guideline())
    return own, asked


def concluded(report: Report, prepared: Prepared, model: str) -> Report:
    """The report with the decision, where the record asks for one."""
    record = prepared.facts.get("guideline")
    if not record:
        return report
    found = next((each for each in report.findings if each.code == FINDING), None)
    ct = None
    if found is not None and found.probability is not None:
        slices = int(prepared.facts["slices"])
        cut = card.cutoffs(__package__, "haemorrhage_series" if slices >= series.MIN_SLICES else "haemorrhage_slice")
        whole = whole_head(prepared.facts["positions_mm"])
        ct = seen(found.probability, cut.low, cut.high, whole_head=whole, model=model)
    return with_recommendation(report, decide(record, ct), "Thrombolysis")


def whole_head(positions_mm: list[float | None]) -> bool:
    """Whether slices at these places show the whole head."""
    known = [place for place in positions_mm if place is not None]
    return len(positions_mm) == len(known) >= series.MIN_SLICES and max(known) - min(known) >= MIN_SPAN_MM
