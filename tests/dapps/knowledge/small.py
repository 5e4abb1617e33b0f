"""Provides a small guideline whose lines tests change: one number, two facts, three options."""

from __future__ import annotations

from dapps.knowledge import Guideline, load

TEXT = """\
id: small
version: 1.0.0
title: A small guideline
status: research-only
population: nobody
reviewed_by: null
citations:
  paper: {title: A paper, year: 2026, url: https://example.org, read: all of it}
data:
  score: {text: a score, type: number, unit: mg/dL, range: [0, 100], example: 50, origin: [record]}
  allergy: {text: an allergy, type: boolean, example: false, origin: [record, user]}
  scan: {text: a finding, type: boolean, example: false, origin: [record, model]}
derived:
  high:
    text: a high score
    if: score >= 40
tasks:
  - enquiry: intake
    requires: [score, scan]
    asks: [allergy]
  - decision: choose
    after: [intake]
    candidates:
      - {name: treat, text: treat, patient: A treatment may help.}
      - {name: wait, text: wait, patient: Waiting is safe.}
      - {name: ask, text: ask a specialist, patient: A specialist should look., defers: true}
    arguments:
      - id: score_high
        if: high
        text: the score is high
        patient: A value is high.
        supports: {treat: "+"}
        cite: {from: paper, place: page 1}
      - id: score_low
        if: score < 40
        text: the score is low
        supports: {wait: "++"}
        cite: {from: paper, confidence: secondary}
      - id: allergic
        if: allergy
        text: an allergy
        supports: {treat: "--", ask: "+"}
        when_unknown: open
        cite: {from: paper}
      - id: scan_bad
        if: scan
        text: the scan speaks against it
        supports: {treat: "--", wait: "++"}
        cite: {from: paper}
      - id: scan_unknown
        if: unknown(scan)
        text: there is no scan
        supports: {treat: "-", ask: "+"}
        cite: {from: paper}
      - id: score_unknown
        if: unknown(score)
        text: there is no score
        supports: {ask: "+"}
        cite: {from: paper}
  - action: give
    after: [choose]
    when: result(choose) == 'treat'
    text: Give it.
    patient: It is given.
    dose: 5 mg/kg
    abort_if: score < 10
    cite: {from: paper}
  - action: call
    after: [choose]
    when: result(choose) == 'ask'
    text: Call.
    cite: {from: paper}
"""


def changed(*swaps: tuple[str, str]) -> bytes:
    """The file with these texts replaced; each must be there."""
    text = TEXT
    for old, new in swaps:
        assert old in text, old
        text = text.replace(old, new)
    return text.encode()


def small(*swaps: tuple[str, str]) -> Guideline:
    """The guideline with these texts replaced."""
    return load(changed(*swaps))


def line_of(text: str, raw: bytes) -> int:
    """The line in which a text stands first."""
    before, match, _ = raw.decode().partition(text)
    assert match, text
    return before.count("\n") + 1
