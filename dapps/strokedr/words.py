"""Words StrokeDr.'s answers: findings with codes, a sentence for the doctor, a sentence for the patient.

Cut-offs and calibrations come from the cards, so that words and measured numbers agree. Knows no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dapps.api import Coding, Finding, Inputs, IntakeRefused, Prepared, Report
from dapps.evaluation import calibration, card, logit
from dapps.intake.record import carried
from dapps.strokedr import series
from dapps.strokedr.prognosis.admission import FIELDS

PACKAGE = "dapps.strokedr"
SNOMED = "http://snomed.info/sct"
HAEMORRHAGE = Coding(SNOMED, "1386000")
OUTCOMES = (
    # The modified Rankin scale, of which dead or dependent is the upper half.
    ("poor_outcome_6_months", "dead or dependent at six months", Coding("http://loinc.org", "75859-9")),
    ("death_14_days", "death by day 14", Coding(SNOMED, "419099009")),
)
SUMMARY = {
    True: "Signs of intracranial haemorrhage.",
    False: "No sign of intracranial haemorrhage on what was sent.",
    None: "Intracranial haemorrhage can neither be called present nor absent.",
}
RECOMMENDATION = {
    True: "Have a radiologist read the whole examination now.",
    False: "Read the whole examination as usual: a negative answer rules nothing out; ischaemia is not looked for.",
    None: "Have a radiologist read the whole examination without delay.",
}
PATIENT = {
    True: "The computer sees signs that could be bleeding inside the head. A doctor has to look at the pictures now.",
    False: "The computer sees no sign of bleeding inside the head. It can miss one: a doctor still reads the pictures.",
    None: "The computer cannot tell whether there is bleeding inside the head. A doctor has to look at the pictures.",
}
PATIENT_OUTCOME = (
    "Among {many} people who came to hospital in a like state, about {few} had died or needed help in daily life "
    "half a year later. This was in the 1990s; treatment is better today. It says nothing certain about any one person."
)


@dataclass(frozen=True, slots=True)
class Bleed:
    """The joint answer of the slices: one finding, the probability of each slice, and the index of the highest."""

    finding: Finding
    slices: tuple[float, ...]
    highest: int


def report(prepared: Prepared, outputs: Sequence[Inputs]) -> Report:
    """Findings on haemorrhage, if there are slices, and on outcome, if there is a record."""
    if not all(np.isfinite(array).all() for item in outputs for array in item.values()):
        raise IntakeRefused("no_answer", "the model gave no usable answer")
    findings: list[Finding] = []
    sentences: list[str] = []
    patient: list[str] = []
    advice, quality, traces = "", {}, {}
    images = np.array([item["HAEMORRHAGE"][0] for item in outputs if "HAEMORRHAGE" in item], np.float64)
    if len(images):
        joint = bleed(images)
        present = joint.finding.present
        findings.append(joint.finding)
        sentences.append(
            f"{SUMMARY[present]} Probability {joint.finding.probability:.2f} from {_count(len(images), 'slice')}."
        )
        patient.append(PATIENT[present])
        advice = RECOMMENDATION[present]
        quality = {"slices": float(len(images)), "slices_without_brain": float(prepared.facts.get("dropped", 0))}
        if passed_over := prepared.facts.get("passed_over"):
            quality["files_passed_over"] = float(passed_over)
        traces["haemorrhage_by_slice"] = tuple(round(value, 4) for value in joint.slices)
    for item in outputs:
        if "OUTCOME" in item:
            findings += outcomes(item["OUTCOME"][0])
            chances = ", ".join(f"{finding.label} {finding.probability:.2f}" for finding in findings[-len(OUTCOMES) :])
            sentences.append(f"Prognosis from the admission record: {chances}.")
            few = round(10 * float(item["OUTCOME"][0, 0, 0]))
            patient.append(PATIENT_OUTCOME.format(many=10, few=few))
    record = prepared.facts.get("record", {})
    findings += carried(record, FIELDS)
    if record:
        quality["record_fields_known"] = float(len(record))
    return Report(
        " ".join(sentences), tuple(findings), advice, quality, patient_summary=" ".join(patient), traces=traces
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def bleed(images: np.ndarray[Any, np.dtype[np.float64]]) -> Bleed:
    """From HAEMORRHAGE [n,3] in the order of the head; fewer than MIN_SLICES slices count one by one."""
    logits = logit(images)
    if len(images) < series.MIN_SLICES:
        highest = int(images[:, 0].argmax())
        slices, whole, model = images[:, 0], images[highest], "haemorrhage_slice"
    else:
        smoothed = np.stack([series.smooth(column) for column in logits.T], axis=1)
        near = calibration(PACKAGE, "haemorrhage_slice_in_series")
        slices, model = near.probability(smoothed[:, 0]), "haemorrhage_series"
        joint = calibration(PACKAGE, model)
        whole = np.array([joint.probability(series.together(column)) for column in smoothed.T])
        highest = int(slices.argmax())
    probability, low, high = (round(float(value), 4) for value in whole)
    present = card.cutoffs(PACKAGE, model).present(probability)
    finding = Finding(
        "intracranial_haemorrhage",
        "intracranial haemorrhage",
        present,
        probability,
        interval=(min(low, probability), max(high, probability)),
        coding=HAEMORRHAGE,
        quality="grey zone" if present is None else "good",
    )
    return Bleed(finding, tuple(float(value) for value in slices), highest)


def outcomes(rows: np.ndarray[Any, Any]) -> list[Finding]:
    """From OUTCOME [2,3]."""
    findings = []
    for (code, label, coding), row in zip(OUTCOMES, rows, strict=True):
        probability, low, high = (round(float(value), 4) for value in row)
        present = card.cutoffs(f"{PACKAGE}.prognosis", code).present(probability)
        quality = "grey zone" if present is None else "good"
        findings.append(
            Finding(code, label, present, probability, interval=(low, high), coding=coding, quality=quality)
        )
    return findings
