"""Writes model cards as `CARD.yaml` for programs and `CARD.md` for people, and reads them.

Nobody types a result into a card: the training script fills it from its own run. The service reads its cut-offs from
the card, so that served answers and the card agree. Knows no torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from dapps.api import Cutoffs
from dapps.evaluation import metrics

RESULTS = ("development", "held_out")
INTERVALS = (
    ("AUC", "auc"),
    ("sensitivity at low cut-off", "sensitivity_at_low"),
    ("specificity at low cut-off", "specificity_at_low"),
    ("sensitivity at high cut-off", "sensitivity_at_high"),
    ("specificity at high cut-off", "specificity_at_high"),
)


@cache
def read(package: str) -> dict[str, Any]:
    """The card beside the code of this package; callers must not change it."""
    card: dict[str, Any] = yaml.safe_load(files(package).joinpath("CARD.yaml").read_text("utf-8"))
    return card


def cutoffs(package: str, model: str) -> Cutoffs:
    """The cut-offs of one model of a package's card."""
    point = read(package)["operating_points"][model]
    return Cutoffs(float(point["low"]), float(point["high"]))


def held_out(package: str) -> frozenset[str]:
    """Names of the groups (patients, hospitals) that took no part in training the model of this package."""
    return frozenset(map(str, read(package)["split"]["held_out"]))


def choose(probabilities: np.ndarray[Any, Any], truth: np.ndarray[Any, Any]) -> Cutoffs:
    """Cut-offs at sensitivity 0.90 and at specificity 0.90, the lower one first."""
    pair = (
        metrics.cutoff_for_sensitivity(probabilities, truth, 0.90),
        metrics.cutoff_for_specificity(probabilities, truth, 0.90),
    )
    return Cutoffs(min(pair), max(pair))


def operating_points(points: Mapping[str, Cutoffs]) -> dict[str, Any]:
    """The card's section on the cut-offs, in the form that `cutoffs` reads back."""
    return {name: {"low": at.low, "high": at.high} for name, at in points.items()} | {
        "chosen": "on out-of-fold development answers at sensitivity 0.90 and at specificity 0.90, before the held-out "
        "part was opened; the answer between the two is 'unknown'"
    }


def origin(command: str, effort: str, weights: bytes, parameters: int) -> dict[str, Any]:
    """The card's sections on the training run and the weights."""
    return {
        "training": {"command": command, "effort": effort, "torch": version("torch")},
        "weights": {"sha256": hashlib.sha256(weights).hexdigest(), "bytes": len(weights), "parameters": parameters},
    }


def write(folder: Path, card: dict[str, Any]) -> None:
    """Writes `CARD.yaml` and `CARD.md` into the folder."""
    text = yaml.safe_dump(card, sort_keys=False, allow_unicode=True, width=120)
    (folder / "CARD.yaml").write_text(text, "utf-8")
    (folder / "CARD.md").write_text(markdown(card), "utf-8")


def markdown(card: dict[str, Any]) -> str:
    """The card as Markdown: results as tables, everything else as headings and bullets."""
    lines = [f"# Model card: {card['name']} {card['version']}", "", "Written by the training script; do not edit.", ""]
    for title, value in card.items():
        if title in ("name", "version"):
            continue
        lines += [f"## {title[0].upper()}{title[1:].replace('_', ' ')}", ""]
        if title == "results":
            for part in RESULTS:
                lines += _results(part, value[part])
        elif title == "ablations":
            lines += [*_table(["idea", "measured on development folds", "kept"], [list(row.values()) for row in value])]
        else:
            lines += _bullets(value)
        lines.append("")
    return "\n".join(lines)


def _results(part: str, models: Mapping[str, Any]) -> list[str]:
    lines = [f"### {part.replace('_', '-').capitalize()}", ""]
    names = list(models)
    rows: list[list[Any]] = [
        ["one item is a", *(models[name]["item"] for name in names)],
        ["items, positive", *(f"{models[name]['n']}, {models[name]['positive']}" for name in names)],
        ["prevalence", *(_number(models[name]["prevalence"]) for name in names)],
        ["patients", *(models[name]["patients"] for name in names)],
    ]
    rows += [[label, *(_interval(models[name][key]) for name in names)] for label, key in INTERVALS]
    rows += [
        ["share in the grey zone", *(_number(models[name]["grey_zone_share"]) for name in names)],
        ["ECE", *(_number(models[name]["ece"]) for name in names)],
        ["Brier", *(_number(models[name]["brier"]) for name in names)],
    ]
    lines += _table(["", *names], rows)
    for name in names:
        bins = [[row["n"], _number(row["mean_probability"]), _number(row["observed"])] for row in _bins(models[name])]
        lines += ["", f"Reliability of {name}:", "", *_table(["n", "mean probability", "observed rate"], bins)]
        groups = [
            [group, f"{row['n']}, {row['positive']}", *(_number(row[key]) for key in list(row)[2:])]
            for group, row in models[name]["subgroups"].items()
        ]
        if groups:
            head = ["subgroup", "items, positive", "AUC", "sensitivity at low", "specificity at high", "ECE"]
            lines += ["", f"Subgroups of {name}:", "", *_table(head, groups)]
    return [*lines, ""]


def _bins(model: Mapping[str, Any]) -> list[dict[str, Any]]:
    return list(model["reliability"])


def _table(head: list[str], rows: list[list[Any]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]


def _bullets(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [f"- {name.replace('_', ' ')}: {_text(entry)}" for name, entry in value.items()]
    if isinstance(value, list):
        return [f"- {entry}" for entry in value]
    return [str(value)]


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{name} {_text(entry)}" for name, entry in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _interval(value: list[float | None]) -> str:
    middle, low, high = (_number(part) for part in value)
    return f"{middle} ({low} to {high})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
