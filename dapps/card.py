"""Model cards: one dictionary of measured numbers, written as `card.json` for programs and `CARD.md` for people.

Nobody types a number into a card: the training script fills it from its own run. Also reads the cut-offs back, so that
the answer served and the card agree. Knows no torch. Read `dapps/metrics.py` for the measures.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from dapps import metrics


@dataclass(frozen=True, slots=True)
class Cutoffs:
    """Two cut-offs on the probability: absent below `low`, present from `high` on, unknown between."""

    low: float
    high: float

    def present(self, probability: float) -> bool | None:
        """True, False, or None in the grey zone; an undefined probability is unknown as well."""
        if probability >= self.high:
            return True
        return False if probability < self.low else None


def cutoffs(package: str) -> Cutoffs:
    """The cut-offs of the card that lies beside the code of this package."""
    card = json.loads(files(package).joinpath("card.json").read_text("utf-8"))
    return Cutoffs(float(card["operating point"]["low"]), float(card["operating point"]["high"]))


def choose(probabilities: np.ndarray[Any, Any], truth: np.ndarray[Any, Any]) -> Cutoffs:
    """Cut-offs at sensitivity 0.90 and at specificity 0.90, in whichever order they fall."""
    pair = (
        metrics.cutoff_for_sensitivity(probabilities, truth, 0.90),
        metrics.cutoff_for_specificity(probabilities, truth, 0.90),
    )
    return Cutoffs(min(pair), max(pair))


def measured(
    probabilities: np.ndarray[Any, Any], truth: np.ndarray[Any, Any], patients: Sequence[str], at: Cutoffs
) -> dict[str, Any]:
    """What a card says of one part of the data, intervals by bootstrap over patients as [value, low, high]."""

    def interval(measure: Any) -> list[float]:
        return metrics.bootstrap(measure, probabilities, truth, patients).rounded()

    return {
        "items": len(truth),
        "positive items": int(truth.sum()),
        "prevalence": round(float(truth.mean()), 4),
        "patients": len(set(patients)),
        "AUC": interval(metrics.auc),
        "sensitivity at low cut-off": interval(lambda score, label: metrics.sensitivity(score, label, at.low)),
        "specificity at low cut-off": interval(lambda score, label: metrics.specificity(score, label, at.low)),
        "sensitivity at high cut-off": interval(lambda score, label: metrics.sensitivity(score, label, at.high)),
        "specificity at high cut-off": interval(lambda score, label: metrics.specificity(score, label, at.high)),
        "share in the grey zone": round(float(np.mean((probabilities >= at.low) & (probabilities < at.high))), 4),
        "ECE": round(metrics.calibration_error(probabilities, truth), 4),
        "reliability (count, mean probability, observed rate)": [
            [count, round(mean, 4), round(rate, 4)] for count, mean, rate in metrics.reliability(probabilities, truth)
        ],
    }


def split_by_patient(finding: str, seed: int, test_share: float, folds: int) -> str:
    """The card's section on who was trained on, and who was not looked at."""
    return (
        f"By patient, stratified by any {finding}, seed {seed}: {test_share:.0%} of patients held out and used for no "
        f"choice; {folds} development folds, one member trained without each. The development numbers below are out of "
        "fold (one member each); the test numbers are those of the shipped ensemble."
    )


def operating_point(at: Cutoffs, what: str) -> dict[str, Any]:
    """The card's section on the cut-offs, in the form that `cutoffs` reads back."""
    return {
        "low": at.low,
        "high": at.high,
        "chosen": f"on out-of-fold development {what} at sensitivity 0.90 and specificity 0.90; no choice was made on "
        "the test patients; the answer between the two is 'unknown'",
    }


def origin(command: str, effort: str, weights: bytes, parameters: int) -> dict[str, Any]:
    """The card's sections on how the weights came to be, and which ones they are."""
    return {
        "training": {"command": command, "effort": effort, "torch": version("torch")},
        "weights": {"sha256": hashlib.sha256(weights).hexdigest(), "bytes": len(weights), "parameters": parameters},
    }


def write(folder: Path, card: dict[str, Any]) -> None:
    """Writes `card.json` and `CARD.md` into the folder."""
    (folder / "card.json").write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", "utf-8")
    (folder / "CARD.md").write_text(markdown(card), "utf-8")


def markdown(card: dict[str, Any]) -> str:
    """The card as Markdown: a heading a section, a bullet an entry."""
    lines = [f"# Model card: {card['name']} {card['version']}", "", "Written by the training script; do not edit.", ""]
    for title, value in card.items():
        if title not in ("name", "version"):
            lines += [f"## {title[0].upper()}{title[1:]}", "", *_lines(value), ""]
    return "\n".join(lines)


def _lines(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [f"- {name}: {_text(entry)}" for name, entry in value.items()]
    if isinstance(value, list):
        return [f"- {entry}" for entry in value]
    return [str(value)]


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{name} {_text(entry)}" for name, entry in value.items())
    if isinstance(value, list) and len(value) == 3 and all(isinstance(part, float) for part in value):
        return f"{value[0]:.3f} (95 % CI {value[1]:.3f} to {value[2]:.3f})"
    if isinstance(value, list) and value and isinstance(value[0], list):
        return "; ".join(f"{row[0]}: {row[1]:.2f} / {row[2]:.2f}" for row in value)
    return str(value)
