"""Words CHDr.'s answers: a coded finding, a sentence for the doctor, a sentence for the patient.

Cut-offs and calibrations come from the card, so that words and measured numbers agree. Knows no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dapps.api import Coding, Finding, Inputs, IntakeRefused, Prepared, Report
from dapps.chdr.case import RECORD
from dapps.evaluation import calibration, card, logit
from dapps.intake.record import carried

PACKAGE = "dapps.chdr"
MURMUR = Coding("http://snomed.info/sct", "88610006")
SUMMARY = {
    True: "A heart murmur is heard.",
    False: "No heart murmur is heard.",
    None: "It cannot be told whether there is a heart murmur.",
}
RECOMMENDATION = {
    True: "Refer for echocardiography: a murmur is a sign, not a diagnosis; most murmurs of childhood are innocent.",
    False: "No referral because of this recording. A normal recording does not rule out heart disease.",
    None: "Repeat the recording in a quiet room, at another site; if it stays unclear, refer for echocardiography.",
}
PATIENT = {
    True: "The computer hears an extra sound between the heart beats, called a murmur. Most murmurs are harmless. "
    "A doctor should listen, and may look at the heart with ultrasound.",
    False: "The computer hears no extra sound between the heart beats. This does not rule out every heart problem.",
    None: "The computer cannot tell from this recording. It should be recorded again in a quiet room.",
}


def report(prepared: Prepared, outputs: Sequence[Inputs]) -> Report:
    """One finding for the patient: the mean over sites of the mean over windows, as the cut-offs were chosen."""
    windows = np.concatenate([np.asarray(item["MURMUR"], np.float64) for item in outputs])
    if not np.isfinite(windows).all():
        raise IntakeRefused("no_answer", "the model gave no usable answer for this recording")
    sites = by_site(prepared.facts, logit(windows))
    many = len(sites) > 1
    joint = sites.mean(0)
    values = calibration(PACKAGE, "murmur_patient").probability(joint) if many else 1 / (1 + np.exp(-joint))
    probability, low, high = (round(float(value), 4) for value in values)
    present = card.cutoffs(PACKAGE, "murmur_patient" if many else "murmur_recording").present(probability)
    finding = Finding(
        "murmur",
        "heart murmur",
        present,
        probability,
        interval=(min(low, probability), max(high, probability)),
        coding=MURMUR,
        quality="grey zone" if present is None else "good",
    )
    facts = prepared.facts["sites"]
    by_site_findings = [_site(fact, row) for fact, row in zip(facts, sites, strict=True)] if many else []
    source = f"{len(sites)} sites" if many else f"{len(windows)} window{'' if len(windows) == 1 else 's'}"
    return Report(
        f"{SUMMARY[present]} Probability {probability:.2f} over {source}.",
        (finding, *by_site_findings, *carried(prepared.facts.get("record", {}), RECORD)),
        RECOMMENDATION[present],
        {
            "sites": float(len(sites)),
            "windows": float(len(windows)),
            "seconds": float(sum(fact["seconds"] for fact in facts)),
        },
        patient_summary=PATIENT[present],
        traces={"murmur_by_window": tuple(round(float(value), 4) for value in windows[:, 0])},
    )


def by_site(facts: Any, logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Mean logits of each site [sites,3] from those of all windows [n,3]."""
    ends = np.cumsum([fact["windows"] for fact in facts["sites"]])
    return np.stack([part.mean(0) for part in np.split(logits, ends[:-1])])


def _site(fact: dict[str, Any], logits: np.ndarray[Any, Any]) -> Finding:
    """The finding at one site, from the mean, lowest and highest logit of any member [3]."""
    probability, low, high = (round(float(value), 4) for value in 1 / (1 + np.exp(-logits)))
    present = card.cutoffs(PACKAGE, "murmur_recording").present(probability)
    return Finding(
        "murmur_at_site",
        f"heart murmur, {fact['site']}",
        present,
        probability,
        interval=(min(low, probability), max(high, probability)),
        coding=MURMUR,
        quality="grey zone" if present is None else "good",
    )
