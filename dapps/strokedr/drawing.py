"""The picture of a StrokeDr. report: the most suspicious slice with its saliency, and each slice's probability.

The picture shows the model's input, which holds no name, and is not stored. Knows no server.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from dapps.api import RESEARCH_USE, Inputs, Prepared, Report
from dapps.evaluation import card
from dapps.evaluation.figures import DRAWING, png
from dapps.strokedr import series
from dapps.strokedr.framing import SIZE
from dapps.strokedr.words import OUTCOMES, PACKAGE

FAINTEST = 0.15
"""Share of the greatest saliency below which nothing is tinted."""

Array = np.ndarray[Any, np.dtype[Any]]


def draw(prepared: Prepared, outputs: Sequence[Inputs], report: Report) -> bytes:
    """PNG bytes."""
    with DRAWING:
        return _draw(prepared, outputs, report)


def _draw(prepared: Prepared, outputs: Sequence[Inputs], report: Report) -> bytes:
    slices = [(item["SLICE"][0, 0], out["SALIENCY"][0]) for item, out in _pairs(prepared, outputs) if "SLICE" in item]
    outcomes = [out["OUTCOME"][0] for out in outputs if "OUTCOME" in out]
    rows = int(bool(slices)) + int(bool(outcomes))
    figure = Figure(figsize=(9.6, 0.9 + (4.4 if slices else 0) + (2.0 if outcomes else 0)), layout="constrained")
    parts = figure.subfigures(rows, 1, height_ratios=[4.4] * bool(slices) + [2.0] * bool(outcomes), squeeze=False)
    if slices:
        _slices(parts[0, 0], slices, report)
    if outcomes:
        _outcomes(parts[-1, 0].subplots(), outcomes[0])
    figure.suptitle(textwrap.fill(report.summary, 110), fontsize=10)
    figure.supxlabel(RESEARCH_USE, fontsize=8, color="0.4")
    return png(figure, 100)


def _pairs(prepared: Prepared, outputs: Sequence[Inputs]) -> list[tuple[Inputs, Inputs]]:
    return list(zip(prepared.items, outputs, strict=True))


def _slices(part: Any, slices: list[tuple[Array, Array]], report: Report) -> None:
    traces = np.array(report.traces["haemorrhage_by_slice"])
    worst = int(traces.argmax())
    grey, places = slices[worst]
    plain, tinted, bars = part.subplots(1, 3, width_ratios=(1, 1, 1.15))
    for axes in (plain, tinted):
        axes.imshow(grey, cmap="gray", vmin=0, vmax=255)
        axes.set_axis_off()
    plain.set_title(f"slice {worst + 1} of {len(slices)}", fontsize=9)
    tinted.imshow(_tint(places, grey))
    tinted.set_title("what speaks for a bleed", fontsize=9)
    at = card.cutoffs(PACKAGE, _model(len(slices)))
    colours = ["C3" if value >= at.high else "C1" if value >= at.low else "C0" for value in traces]
    bars.barh(np.arange(1, len(traces) + 1), traces, color=colours)
    bars.axvspan(at.low, at.high, color="0.9", zorder=0, label="grey zone")
    bars.set(
        xlim=(0, 1), ylim=(0.4, len(traces) + 0.6), xlabel="probability of haemorrhage", ylabel="slice, feet to head"
    )
    bars.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    bars.legend(loc="lower right", fontsize=8)


def _model(slices: int) -> str:
    return "haemorrhage_slice" if slices < series.MIN_SLICES else "haemorrhage_slice_in_series"


def _tint(places: Array, grey: Array) -> Array:
    """Saliency [h,w] as RGBA [SIZE,SIZE,4]: red where it adds to the logit, clear elsewhere and beside the head."""
    smooth = Image.fromarray(places.astype(np.float32)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    wide = np.clip(np.asarray(smooth), 0, None)
    strength = wide / max(float(wide.max()), 1e-6)
    tint = np.zeros((SIZE, SIZE, 4))
    tint[..., 0] = 1.0
    tint[..., 1] = 0.8 * (1 - strength)
    tint[..., 3] = np.where((strength > FAINTEST) & (grey > 0), 0.55 * strength, 0)
    return tint


def _outcomes(axes: Any, probabilities: Array) -> None:
    for place, ((code, _, _), (value, low, high)) in enumerate(zip(OUTCOMES, probabilities, strict=True)):
        at = card.cutoffs(f"{PACKAGE}.prognosis", code)
        axes.barh(place, at.high - at.low, left=at.low, height=0.8, color="0.9")
        axes.errorbar(value, place, xerr=[[value - low], [high - value]], fmt="o", color="C0", capsize=4)
        axes.annotate(
            f"{value:.2f}", (value, place), textcoords="offset points", xytext=(0, 8), ha="center", fontsize=9
        )
    axes.set_yticks(range(len(OUTCOMES)), [label for _, label, _ in OUTCOMES])
    axes.set(
        xlim=(0, 1), ylim=(-0.6, len(OUTCOMES) - 0.4), xlabel="probability; bars: range of members; grey: grey zone"
    )
