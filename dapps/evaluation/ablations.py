"""Reads and writes `ABLATIONS.yaml`: the ideas measured on the development folds alone, beside the weights.

A training script writes it with `--compare` and copies it into its card. Knows no model.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

NAME = "ABLATIONS.yaml"


def row(idea: str, aucs: Mapping[str, float], chosen: str) -> dict[str, str]:
    """One idea with its out-of-fold AUCs by model, and whether it was kept (`shipped`, or anything else for no)."""
    measured = "; ".join(f"{model} AUC {value:.3f}" for model, value in aucs.items())
    return {
        "idea": idea,
        "measured": measured,
        "kept": chosen if chosen == "a check" else ("yes" if chosen == "shipped" else "no"),
    }


def write(folder: Path, rows: list[dict[str, str]]) -> None:
    """Writes the table into the folder."""
    (folder / NAME).write_text(yaml.safe_dump(rows, sort_keys=False, allow_unicode=True, width=120), "utf-8")


def read(folder: Path) -> list[dict[str, Any]]:
    """The table in the folder; empty if no comparison was run there."""
    path = folder / NAME
    return list(yaml.safe_load(path.read_text("utf-8"))) if path.exists() else []
