"""Weighs haemorrhage on CT and the record together: options for thrombolysis with their pros and cons.

The model's answer is one observation among others. It is "no bleeding" only below the lower cut-off, for a whole series
of usable images; everything else is unknown, and unknown is never "no bleeding". Knows no torch and no server.
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
"""A series must span this much of the head to rule bleeding out."""


def guideline() -> Guideline:
    """The guideline that decides; its digest is part of the DApp's."""
    return find(GUIDELINE)


def seen(
    probability: float, low: float, high: float, *, whole_head: bool, model: str, usable: bool = True
) -> Observation:
    """The CT finding as an observation.

    Args:
        probability: calibrated, for all slices.
        low: below this haemorrhage is absent.
        high: from this on it is present.
        whole_head: False for single slices, which rule nothing out: then absent becomes unknown.
        model: the name of the model, for the explanation.
        usable: False if the quality of the images was too low.
    """
    observation = from_probability(probability, low, high, model, usable)
    if observation.value is False and not whole_head:
        return Observation(None, observation.origin, f"{observation.note}; single slices rule nothing out")
    return observation


def decide(record: dict[str, Any], ct: Observation | None = None) -> Tree:
    """Explains what the guideline recommends.

    Args:
        record: the guideline's fields as plain values; see `leben guideline fields stroke-ivt-2026`.
        ct: from `seen`, or None for a call without images.

    Raises:
        RecordRefused: a field is unknown or does not fit.
    """
    stroke = guideline()
    observations = read(record, stroke)
    return explain(stroke, observations if ct is None else {**observations, FIELD: joined(observations, ct)})


def joined(record: Record, ct: Observation) -> Observation:
    """The observation of haemorrhage if a person may have read the images too.

    A person's reading stands where the model's answer is unknown, and a person's "present" always stands. If only the
    model finds blood, the observation is unknown, and a specialist looks.
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
    own, fields = divide(case.record, FIELDS, guideline())
    check_guideline_fields(fields, guideline())
    return own, fields


def concluded(report: Report, prepared: Prepared, model: str) -> Report:
    """The report with the decision, if the record holds fields of the guideline."""
    record = prepared.facts.get("guideline")
    if not record:
        return report
    finding = next((item for item in report.findings if item.code == FINDING), None)
    ct = None
    if finding is not None and finding.probability is not None:
        slices = int(prepared.facts["slices"])
        cut = card.cutoffs(__package__, "haemorrhage_series" if slices >= series.MIN_SLICES else "haemorrhage_slice")
        whole = whole_head(prepared.facts["positions_mm"])
        ct = seen(finding.probability, cut.low, cut.high, whole_head=whole, model=model)
    return with_recommendation(report, decide(record, ct), "Thrombolysis")


def whole_head(positions_mm: list[float | None]) -> bool:
    """Whether slices at these places show the whole head."""
    places = [place for place in positions_mm if place is not None]
    return len(positions_mm) == len(places) >= series.MIN_SLICES and max(places) - min(places) >= MIN_SPAN_MM
