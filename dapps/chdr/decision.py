"""Weighs auscultation and pulse oximetry of a newborn together: pass, repeat in an hour, or refer, and why.

With a recording the joint guideline decides, without one AAP 2025. The model's answer is one observation: a probability
in the grey zone is unknown, and nobody passes on an unknown. Knows no torch and no server.
"""

from __future__ import annotations

from typing import Any

from dapps.api import Case, Prepared, Report
from dapps.api.recommendation import with_recommendation
from dapps.chdr.case import RECORD
from dapps.evaluation import card
from dapps.intake.record import Values, check_guideline_fields, divide
from dapps.knowledge import Guideline, Observation, explain, find, from_probability
from dapps.knowledge.explain import Tree
from dapps.knowledge.record import read

JOINT, OXIMETRY = "cchd-joint-2025", "cchd-aap-2025"
FIELD = "murmur"
MAX_AGE_H = 28 * 24.0
"""The guidelines apply to newborns."""


def guidelines() -> tuple[Guideline, ...]:
    """The guidelines that decide; their digests are part of the DApp's."""
    return find(JOINT), find(OXIMETRY)


def heard(probability: float, low: float, high: float, *, model: str, usable: bool = True) -> Observation:
    """The murmur as an observation.

    Args:
        probability: calibrated, over all recordings.
        low: below this it is absent.
        high: from this on it is present.
        model: the name of the model, for the explanation.
        usable: False if the quality of the recordings was too low.
    """
    return from_probability(probability, low, high, model, usable)


def decide(record: dict[str, Any], murmur: Observation | None = None) -> Tree:
    """Explains what the guideline recommends.

    Args:
        record: the guideline's fields as plain values; see `leben guideline fields cchd-joint-2025`.
        murmur: from `heard`, or None for a call without a recording.

    Raises:
        RecordRefused: a field is unknown or does not fit.
    """
    if murmur is None:
        return explain(find(OXIMETRY), read(record, find(OXIMETRY)))
    guideline = find(JOINT)
    observations = read({name: value for name, value in record.items() if name != FIELD}, guideline)
    return explain(guideline, {**observations, FIELD: murmur})


def screens(pairs: list[tuple[float | None, float | None]], age_h: float | None) -> dict[str, Any]:
    """The guideline's record of the screen that decides, from all screens in order: (right hand, foot) in percent.

    It is the last one, unless an earlier one was below 90 % in a limb: that fails at once, whatever is measured later.
    """
    lows = [number for number, pair in enumerate(pairs) if any(value is not None and value < 90 for value in pair)]
    deciding = lows[0] if lows else len(pairs) - 1
    record: dict[str, Any] = {"age_h": age_h}
    if pairs:
        record |= {"screen_number": deciding + 1}
        record |= dict(zip(("pre_ductal_spo2_percent", "post_ductal_spo2_percent"), pairs[deciding], strict=True))
    return record


def divided(case: Case) -> tuple[Values | None, dict[str, Any]]:
    """The values of the DApp's own fields, None if there are none, and all fields that the guideline needs, checked.

    Oximetry may come in the guideline's fields or in the DApp's own; the guideline's take precedence.

    Raises:
        IntakeRefused: `guideline_field` or `unknown_field`, with the field's name, or a code of the intake.
    """
    if case.record is None:
        return None, {}
    own, fields = divide(case.record, RECORD, find(OXIMETRY))
    fields = _oximetry(own or {}) | fields
    check_guideline_fields(fields, find(OXIMETRY))
    return own, fields


def _oximetry(record: Values) -> dict[str, Any]:
    """The guideline's fields from the DApp's own; none without a measurement, or above the guideline's age."""
    pairs = [
        tuple(_number(record, f"spo2_{site}{again}") for site in ("right_hand", "foot")) for again in ("", "_2", "_3")
    ]
    while pairs and pairs[-1] == (None, None):
        pairs.pop()
    age_h = _number(record, "age")
    if not pairs or (age_h is not None and age_h > MAX_AGE_H):
        return {}
    return screens([(right, foot) for right, foot in pairs], age_h)


def _number(record: Values, name: str) -> float | None:
    value = record.get(name)
    return value if isinstance(value, float) else None


def concluded(report: Report, prepared: Prepared, model: str) -> Report:
    """The report with the decision, if the record holds fields of the guideline."""
    record = prepared.facts.get("guideline")
    if not record:
        return report
    finding = next((item for item in report.findings if item.code == "murmur"), None)
    murmur = None
    if finding is not None and finding.probability is not None:
        many = len(prepared.facts["sites"]) > 1
        cut = card.cutoffs(__package__, "murmur_patient" if many else "murmur_recording")
        murmur = heard(finding.probability, cut.low, cut.high, model=model)
    return with_recommendation(report, decide(record, murmur), "Newborn screen")
