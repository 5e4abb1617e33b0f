"""Draws a model's measures as SVG: intervals and reliability of a card, ROC and reliability of an evaluation.

The catalogue's pages and `leben dapp evaluate --plots` draw with the same functions. An SVG here has classes and no
style: a page styles it with its own sheet, and `curves` adds `STYLE` to a file. Every text is escaped: the names in a
card are an author's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from dapps.api import Scored
from dapps.evaluation import metrics
from dapps.evaluation.card import INTERVALS

SIZE = 200.0
"""Side of a square plot, in units of the SVG."""
MAX_MODELS = 8
MAX_BINS = 40
MIN_RADIUS, MAX_RADIUS = 2.0, 9.0
DRAWS = 200
BAND = (2.5, 97.5)
TICKS = (0, 0.5, 1)
STYLE = """
svg { font: 12px system-ui, sans-serif; background: #ffffff; }
.label { text-anchor: end; } .tick { text-anchor: middle; } .axis { stroke: #5c6166; fill: none; }
.guide { stroke: #b8b4ac; stroke-dasharray: 4 4; } .range { stroke: #0b5d57; stroke-width: 3; }
.mark { fill: #0b5d57; } .curve { stroke: #0b5d57; stroke-width: 2; fill: none; }
.band { fill: #0b5d57; fill-opacity: 0.2; } .zone { fill: #e6e3dd; } .error { stroke: #0b5d57; }
"""

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class Bin:
    """Answers with alike probabilities: their mean, the observed share of positives, and their number."""

    predicted: float
    observed: float
    count: int


@dataclass(frozen=True, slots=True)
class Measure:
    """A measure between 0 and 1 with its 95 % interval."""

    label: str
    value: float
    low: float
    high: float

    @property
    def text(self) -> str:
        """The numbers, for people."""
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True, slots=True)
class Model:
    """One model of a card: its measures, and the bins of its reliability plot."""

    name: str
    part: str
    items: str
    measures: tuple[Measure, ...]
    bins: tuple[Bin, ...]


def of_card(card: dict[str, Any]) -> list[Model]:
    """The models of a card: the held-out part's numbers, or the development part's where there is no other.

    Takes the sections that `dapps.evaluation.card` writes; a card with another layout has no models.
    """
    results = card.get("results")
    if not isinstance(results, dict):
        return []
    part = next((part for part in ("held_out", "development") if isinstance(results.get(part), dict)), None)
    if part is None:
        return []
    models = list(results[part].items())[:MAX_MODELS]
    return [_model(name, part, numbers) for name, numbers in models if isinstance(numbers, dict)]


def intervals(model: Model) -> str:
    """The measures of a model with their intervals, as an SVG 400 units wide."""
    left, row_height = 188, 26
    floor = row_height * len(model.measures) + 4
    parts = []
    for number, measure in enumerate(model.measures):
        y, text = row_height * number + 14, escape(measure.text)
        low, high, at = (left + SIZE * value for value in (measure.low, measure.high, measure.value))
        parts += [
            f'<text x="178" y="{y + 4}" class="label">{escape(measure.label)}</text>',
            f'<line x1="{low:g}" x2="{high:g}" y1="{y}" y2="{y}" class="range"><title>{text}</title></line>',
            f'<circle cx="{at:g}" cy="{y}" r="4" class="mark"><title>{text}</title></circle>',
        ]
    parts.append(f'<line x1="{left}" x2="{left + SIZE:g}" y1="{floor}" y2="{floor}" class="axis"/>')
    parts += [f'<text x="{left + at * SIZE:g}" y="{floor + 16}" class="tick">{at}</text>' for at in TICKS]
    return _svg(f"0 0 400 {floor + 20}", f"Measures of {model.name} with their intervals", parts)


def reliability(name: str, bins: Sequence[Bin], grey_zone: tuple[float, float] | None = None) -> str:
    """Observed rate against answered probability, with 95 % error bars; a dot's area is the number of answers.

    Args:
        name: the model's.
        bins: in order of their probability.
        grey_zone: the two cut-offs, shaded between.
    """
    most = max((row.count for row in bins), default=1)
    zone = []
    if grey_zone is not None:
        low, high = (SIZE * cutoff for cutoff in grey_zone)
        shape = f'x="{low:g}" y="0" width="{high - low:g}" height="{SIZE:g}"'
        zone.append(f'<rect {shape} class="zone"><title>grey zone</title></rect>')
    parts = [*zone, *_square("answered probability", "observed rate")]
    for row in bins:
        error = 1.96 * (row.observed * (1 - row.observed) / row.count) ** 0.5
        x, y = _point(row.predicted, row.observed)
        _, top = _point(0, min(row.observed + error, 1))
        _, bottom = _point(0, max(row.observed - error, 0))
        radius = max(MIN_RADIUS, MAX_RADIUS * (row.count / most) ** 0.5)
        text = f"{row.count} answers near {row.predicted:.2f}: {row.observed:.2f} were positive"
        parts += [
            f'<line x1="{x}" x2="{x}" y1="{top}" y2="{bottom}" class="error"/>',
            f'<circle cx="{x}" cy="{y}" r="{radius:g}" class="mark"><title>{text}</title></circle>',
        ]
    return _svg("-42 -10 260 250", f"Reliability of {name}", parts)


def curves(scored: Scored, numbers: dict[str, Any]) -> bytes:
    """A file with the ROC curve, its bootstrap band and both cut-offs, beside the reliability plot.

    Args:
        scored: the answers.
        numbers: what `measured` gives for them.
    """
    rows = numbers["reliability"]
    bins = [Bin(row["mean_probability"], row["observed"], row["n"]) for row in rows]
    title = f"{scored.model}: {numbers['n']} items ({numbers['positive']} positive), one item is a {scored.item}"
    heads = ("ROC", f"Reliability, ECE {numbers['ece']:.3f}")
    plots = (_roc(scored, numbers), reliability(scored.model, bins, (scored.at.low, scored.at.high)))
    placed = [f'<text x="320" y="20" class="tick">{escape(title)}</text>']
    for left, head, plot in zip((20, 340), heads, plots, strict=True):
        placed.append(f'<text x="{left + 150}" y="44" class="tick">{escape(head)}</text>')
        placed.append(plot.replace("<svg ", f'<svg x="{left}" y="50" width="290" height="290" ', 1))
    style = f"<style>{STYLE}</style>"
    whole = _svg("0 0 640 350", title, [style, '<rect width="640" height="350" fill="#ffffff"/>', *placed])
    return whole.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" width="640" height="350" ', 1).encode()


def _roc(scored: Scored, numbers: dict[str, Any]) -> str:
    parts, legend = _square("1 - specificity", "sensitivity"), []
    if (band := _band(scored)) is not None:
        parts.append(f'<polygon points="{_points(band)}" class="band"><title>95 % over patients</title></polygon>')
    auc, low, high = numbers["auc"]
    if auc is None:
        legend.append("one class only: no curve")
    else:
        curve = zip(*metrics.roc(scored.probability, scored.truth), strict=True)
        parts.append(f'<polyline points="{_points(curve)}" class="curve"/>')
        legend.append(f"AUC {auc:.3f} ({low:.3f} to {high:.3f})")
    for name, turn in (("low", 1), ("high", -1)):
        sensitivity, specificity = numbers[f"sensitivity_at_{name}"][0], numbers[f"specificity_at_{name}"][0]
        if sensitivity is not None and specificity is not None:
            x, y = _point(1 - specificity, sensitivity)
            corners = f"{x - 5:g},{y - 4 * turn:g} {x + 5:g},{y - 4 * turn:g} {x:g},{y + 5 * turn:g}"
            parts.append(f'<polygon points="{corners}"><title>{name} cut-off</title></polygon>')
            legend.append(f"{'▼' if turn > 0 else '▲'} {name} cut-off")
    for number, text in enumerate(reversed(legend)):
        parts.append(f'<text x="196" y="{192 - 15 * number}" class="label">{escape(text)}</text>')
    return _svg("-42 -10 260 250", f"ROC of {scored.model}", parts)


def _band(scored: Scored) -> list[tuple[float, float]] | None:
    """The outline of the ROC curve's 95 % band, by resampling patients."""
    grid = np.linspace(0, 1, 101)
    names = np.asarray(scored.patients)
    groups = [np.flatnonzero(names == name) for name in dict.fromkeys(scored.patients)] if len(names) < 5000 else None
    random, draws = np.random.default_rng(0), []
    for _ in range(DRAWS):
        if groups is None:
            rows = random.integers(0, len(names), len(names))
        else:
            rows = np.concatenate([groups[index] for index in random.integers(0, len(groups), len(groups))])
        if 0 < scored.truth[rows].sum() < len(rows):
            draws.append(np.interp(grid, *metrics.roc(scored.probability[rows], scored.truth[rows])))
    if not draws:
        return None
    low, high = np.percentile(draws, BAND, axis=0)
    return [*zip(grid, low, strict=True), *zip(grid[::-1], high[::-1], strict=True)]


def _model(name: str, part: str, numbers: dict[str, Any]) -> Model:
    items = [f"{numbers.get('n', '?')} items", f"{numbers.get('positive', '?')} positive"]
    items += [f"one item is a {numbers['item']}"] if "item" in numbers else []
    measures = [_measure(label, numbers.get(key)) for label, key in INTERVALS]
    named = name.replace("_", " "), part.replace("_", "-"), ", ".join(items)
    return Model(*named, tuple(measure for measure in measures if measure), _bins(numbers))


def _measure(label: str, value: object) -> Measure | None:
    if not isinstance(value, list) or len(value) != 3 or not all(map(_is_fraction, value)):
        return None
    return Measure(label, *map(float, value))


def _bins(numbers: dict[str, Any]) -> tuple[Bin, ...]:
    rows = numbers.get("reliability")
    rows = [row for row in rows[:MAX_BINS] if isinstance(row, dict)] if isinstance(rows, list) else []
    rows = [row for row in rows if _is_fraction(row.get("mean_probability")) and _is_fraction(row.get("observed"))]
    rows = [row for row in rows if type(row.get("n")) is int and row["n"] > 0]
    return tuple(Bin(row["mean_probability"], row["observed"], row["n"]) for row in rows)


def _is_fraction(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _square(below: str, beside: str) -> list[str]:
    """The frame, diagonal and ticks of a plot from 0 to 1 in both directions."""
    side = f"{SIZE:g}"
    parts = [
        f'<rect x="0" y="0" width="{side}" height="{side}" class="axis"/>',
        f'<line x1="0" y1="{side}" x2="{side}" y2="0" class="guide"/>',
        f'<text x="100" y="234" class="tick">{below}</text>',
        f'<text transform="translate(-29 100) rotate(-90)" class="tick">{beside}</text>',
    ]
    for at in TICKS:
        parts.append(f'<text x="{at * SIZE:g}" y="216" class="tick">{at}</text>')
        parts.append(f'<text x="-4" y="{204 - at * SIZE:g}" class="label">{at}</text>')
    return parts


def _point(x: float, y: float) -> tuple[float, float]:
    return round(x * SIZE, 2), round((1 - y) * SIZE, 2)


def _points(pairs: Iterable[tuple[float, float]]) -> str:
    return " ".join("{:g},{:g}".format(*_point(float(x), float(y))) for x, y in pairs)


def _svg(box: str, label: str, parts: Sequence[str]) -> str:
    return f'<svg viewBox="{box}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'
