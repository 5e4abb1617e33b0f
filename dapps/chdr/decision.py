"""Auscultation and pulse oximetry of a newborn, weighed together: pass, repeat in an hour, or refer, and why.

With a recording the joint guideline decides; oximetry alone is decided by AAP 2025. The model's answer is one datum: a
murmur that it cannot tell is unknown, and nobody passes on an unknown. Knows no torch and no server.
"""

from __future__ import annotations

from typing import Any

from dapps.knowledge import Guideline, Reading, explain, find, from_probability
from dapps.knowledge.explain import Tree
from dapps.knowledge.record import read

JOINT, OXIMETRY = "cchd-joint-2025", "cchd-aap-2025"
FIELD = "murmur"


def guidelines() -> tuple[Guideline, ...]:
    """The guidelines that decide; their digests are part of the DApp's."""
    return find(JOINT), find(OXIMETRY)


def heard(probability: float, low: float, high: float, *, model: str, usable: bool = True) -> Reading:
    """The murmur as a datum.

    Args:
        probability: calibrated, over all recordings.
        low: below this there is none.
        high: from this on there is one.
        model: which model answered, for the explanation.
        usable: False where the quality of the recordings was too low.
    """
    return from_probability(probability, low, high, model, usable)


def decide(record: dict[str, Any], murmur: Reading | None = None) -> Tree:
    """Explains what the guideline recommends.

    Args:
        record: the guideline's fields as plain values; see `leben guideline fields cchd-joint-2025`.
        murmur: from `heard`, or None for a call without a recording.

    Raises:
        RecordRefused: a field is unknown or does not fit.
    """
    if murmur is None:
        return explain(find(OXIMETRY), read(record, find(OXIMETRY)))
    found = find(JOINT)
    known = read({name: value for name, value in record.items() if name != FIELD}, found)
    return explain(found, {**known, FIELD: murmur})


def screens(pairs: list[tuple[float | None, float | None]], age_h: float | None) -> dict[str, Any]:
    """The record of the measurement that decides, from all of a newborn's in order: (right hand, foot) in percent.

    It is the last one, unless an earlier one was below 90 % in a limb: that fails at once and is not measured away.
    """
    lows = [number for number, pair in enumerate(pairs) if any(value is not None and value < 90 for value in pair)]
    deciding = lows[0] if lows else len(pairs) - 1
    record: dict[str, Any] = {"age_h": age_h}
    if pairs:
        record |= {"screen_number": deciding + 1}
        record |= dict(zip(("pre_ductal_spo2_percent", "post_ductal_spo2_percent"), pairs[deciding], strict=True))
    return record
