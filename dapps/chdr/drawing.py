"""Draws a CHDr. report: each site's phonocardiogram with its envelope, and the murmur probability over time.

The picture shows the model's input, which holds no name, and is not stored. Knows no server.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from dapps.api import RESEARCH_USE, Inputs, Prepared, Report
from dapps.chdr import gate
from dapps.chdr.windows import WINDOW_SAMPLES
from dapps.chdr.words import PACKAGE
from dapps.evaluation import card
from dapps.evaluation.figures import DRAWING, png

WINDOW_S = WINDOW_SAMPLES / gate.RATE_HZ
SHOWN = 2500
"""Points drawn of a recording: the lowest and highest sample of each stretch, so that no beat is lost."""

Array = np.ndarray[Any, np.dtype[Any]]


def draw(prepared: Prepared, outputs: Sequence[Inputs], report: Report) -> bytes:
    """PNG bytes."""
    with DRAWING:
        return _draw(prepared, outputs, report)


def _draw(prepared: Prepared, outputs: Sequence[Inputs], report: Report) -> bytes:
    sites = prepared.facts["sites"]
    ends = np.cumsum([site["windows"] for site in sites])
    windows = np.split(np.concatenate([item["PCG"] for item in prepared.items]), ends[:-1])
    chances = np.split(np.concatenate([out["MURMUR"] for out in outputs]), ends[:-1])
    figure = Figure(figsize=(9.6, 1.0 + 2.7 * len(sites)), layout="constrained")
    rows = figure.subplots(2 * len(sites), 1, height_ratios=[1.5, 1.0] * len(sites), squeeze=False)[:, 0]
    for index, (site, cut, chance) in enumerate(zip(sites, windows, chances, strict=True)):
        starts_s = np.linspace(0, max(site["seconds"] - WINDOW_S, 0), len(cut))
        _sound(rows[2 * index], cut, starts_s, site)
        _chance(rows[2 * index + 1], chance, starts_s, last=index == len(sites) - 1)
    figure.suptitle(report.summary, fontsize=11)
    figure.supxlabel(RESEARCH_USE, fontsize=8, color="0.4")
    return png(figure, 100)


def _sound(axes: Any, windows: Array, starts_s: Array, site: dict[str, Any]) -> None:
    """The windows at their times: they may overlap, and gaps between them were not analysed."""
    for window, start_s in zip(windows, starts_s, strict=True):
        time_s = start_s + np.arange(WINDOW_SAMPLES) / gate.RATE_HZ
        stretch = WINDOW_SAMPLES // (SHOWN // 2)
        pairs = window[: WINDOW_SAMPLES // stretch * stretch].reshape(-1, stretch)
        axes.fill_between(time_s[::stretch][: len(pairs)], pairs.min(1), pairs.max(1), color="0.6", linewidth=0)
        loud = gate.envelope(window)
        scale = np.abs(window).max() / max(loud.max(), 1e-9)
        place_s = start_s + (np.arange(len(loud)) + gate.SMOOTH_STEPS / 2) * gate.STEP_SAMPLES / gate.RATE_HZ
        axes.plot(place_s, loud * scale, "C0", linewidth=1.2)
    axes.set(xlim=(0, max(site["seconds"], WINDOW_S)), yticks=[])
    axes.set_title(f"{site['site']}, {site['seconds']:.1f} s: sound and envelope", fontsize=9, loc="left")


def _chance(axes: Any, chance: Array, starts_s: Array, last: bool) -> None:
    at = card.cutoffs(PACKAGE, "murmur_recording")
    middle_s = starts_s + WINDOW_S / 2
    axes.axhspan(at.low, at.high, color="0.9", zorder=0, label="grey zone")
    axes.fill_between(middle_s, chance[:, 1], chance[:, 2], color="C3", alpha=0.15, label="range of members")
    axes.plot(middle_s, chance[:, 0], "C3o-", label="murmur probability")
    axes.set(xlim=(0, starts_s[-1] + WINDOW_S), ylim=(0, 1))
    if last:
        axes.set_xlabel("seconds")
        # Beside the axis' name, where it hides no answer.
        axes.legend(loc="upper right", bbox_to_anchor=(1.0, -0.3), fontsize=8, ncols=3, frameon=False)
