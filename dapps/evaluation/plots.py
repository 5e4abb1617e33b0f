"""ROC and reliability curves of one model as a small PNG. Used by `leben dapp evaluate --plots` and for docs."""

from __future__ import annotations

import io
import threading
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dapps.api import Scored
from dapps.evaluation import metrics

DRAWING = threading.Lock()
"""Held while a figure is made: matplotlib shares fonts and styles among threads."""
DRAWN = 200
BAND = (2.5, 97.5)

Array = np.ndarray[Any, np.dtype[Any]]


def png(figure: Figure, dots_per_inch: int = 80) -> bytes:
    """The figure as PNG; made without pyplot, which keeps figures and is not for threads."""
    file = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(file, dpi=dots_per_inch, format="png")
    return file.getvalue()


def curves(scored: Scored, numbers: dict[str, Any]) -> bytes:
    """ROC with its bootstrap band and both cut-offs, and observed against predicted; `numbers` as `measured` gives."""
    with DRAWING:
        return _curves(scored, numbers)


def _curves(scored: Scored, numbers: dict[str, Any]) -> bytes:
    figure = Figure(figsize=(8.4, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    _roc(left, scored, numbers)
    _reliability(right, scored, numbers)
    figure.suptitle(
        f"{scored.model}: {numbers['n']} items ({numbers['positive']} positive), one item is a {scored.item}"
    )
    return png(figure)


def _roc(axes: Any, scored: Scored, numbers: dict[str, Any]) -> None:
    grid = np.linspace(0, 1, 101)
    draws = []
    names = np.asarray(scored.patients)
    groups = [np.flatnonzero(names == name) for name in dict.fromkeys(scored.patients)] if len(names) < 5000 else None
    random = np.random.default_rng(0)
    for _ in range(DRAWN):
        if groups is None:
            rows = random.integers(0, len(names), len(names))
        else:
            rows = np.concatenate([groups[index] for index in random.integers(0, len(groups), len(groups))])
        if 0 < scored.truth[rows].sum() < len(rows):
            draws.append(np.interp(grid, *metrics.roc(scored.probability[rows], scored.truth[rows])))
    if draws:
        axes.fill_between(grid, *np.percentile(draws, BAND, axis=0), color="C0", alpha=0.2, label="95 % over patients")
    auc, low, high = numbers["auc"]
    if auc is not None:
        axes.plot(
            *metrics.roc(scored.probability, scored.truth), "C0", label=f"AUC {auc:.3f} ({low:.3f} to {high:.3f})"
        )
    for name, marker in (("low", "v"), ("high", "^")):
        sensitivity, specificity = numbers[f"sensitivity_at_{name}"][0], numbers[f"specificity_at_{name}"][0]
        if sensitivity is not None and specificity is not None:
            axes.plot(1 - specificity, sensitivity, f"k{marker}", label=f"{name} cut-off")
    axes.plot([0, 1], [0, 1], "0.7", linewidth=0.8)
    axes.set(xlabel="1 - specificity", ylabel="sensitivity", aspect="equal", title="ROC")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower right", fontsize=8)
    else:
        axes.text(0.5, 0.5, "one class only:\nno curve", ha="center", va="center")


def _reliability(axes: Any, scored: Scored, numbers: dict[str, Any]) -> None:
    rows = numbers["reliability"]
    mean = [row["mean_probability"] for row in rows]
    rate, count = np.array([row["observed"] for row in rows]), np.array([row["n"] for row in rows])
    error = 1.96 * np.sqrt(rate * (1 - rate) / count)
    axes.plot([0, 1], [0, 1], "0.7", linewidth=0.8)
    axes.errorbar(mean, rate, [np.minimum(error, rate), np.minimum(error, 1 - rate)], fmt="o-", color="C1", capsize=2)
    for x, y, n in zip(mean, rate, count, strict=True):
        axes.annotate(str(n), (x, y), textcoords="offset points", xytext=(4, -9), fontsize=7)
    axes.axvspan(scored.at.low, scored.at.high, color="0.9", zorder=0, label="grey zone")
    axes.set(xlabel="predicted probability", ylabel="observed share", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.set_title(f"Reliability, ECE {numbers['ece']:.3f}")
    axes.legend(loc="upper left", fontsize=8)
