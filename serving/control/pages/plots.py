"""The plots of a model card, as coordinates: the template draws them as SVG, so that they follow the reader's colours.

Takes the sections that `dapps/evaluation/card.py` writes; of a card that is laid out otherwise nothing is drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dapps.evaluation import INTERVALS

SIZE = 200.0
"""Side of the plots, in units of the SVG."""
MOST_MODELS = 8
MOST_BINS = 40
LEAST_RADIUS, MOST_RADIUS = 2.0, 9.0


@dataclass(frozen=True, slots=True)
class Dot:
    """A bin of the reliability plot: where it stands, how large it is drawn, and what it says."""

    x: float
    y: float
    radius: float
    text: str


@dataclass(frozen=True, slots=True)
class Bar:
    """A measure with its interval; places are fractions of the width, times `SIZE`."""

    label: str
    at: float
    low: float
    high: float
    text: str


@dataclass(frozen=True, slots=True)
class Model:
    """What is drawn and told of one model of a card."""

    name: str
    part: str
    items: str
    bars: tuple[Bar, ...]
    dots: tuple[Dot, ...]


def of_card(card: dict[str, Any]) -> list[Model]:
    """The models of a card: the numbers of the held-out part, or of the development part where there is no other."""
    results = card.get("results")
    if not isinstance(results, dict):
        return []
    part = next((part for part in ("held_out", "development") if isinstance(results.get(part), dict)), None)
    if part is None:
        return []
    models = list(results[part].items())[:MOST_MODELS]
    return [_model(name, part, numbers) for name, numbers in models if isinstance(numbers, dict)]


def _model(name: str, part: str, numbers: dict[str, Any]) -> Model:
    told = [f"{numbers.get('n', '?')} items", f"{numbers.get('positive', '?')} positive"]
    told += [f"one item is a {numbers['item']}"] if "item" in numbers else []
    bars = tuple(bar for label, key in INTERVALS if (bar := _bar(label, numbers.get(key))))
    return Model(name.replace("_", " "), part.replace("_", "-"), ", ".join(told), bars, _dots(numbers))


def _bar(label: str, value: object) -> Bar | None:
    if not isinstance(value, list) or len(value) != 3 or not all(map(_fraction, value)):
        return None
    at, low, high = map(float, value)
    return Bar(label, at * SIZE, low * SIZE, high * SIZE, f"{at:.3f} ({low:.3f} to {high:.3f})")


def _dots(numbers: dict[str, Any]) -> tuple[Dot, ...]:
    bins = numbers.get("reliability")
    rows = [row for row in bins[:MOST_BINS] if isinstance(row, dict)] if isinstance(bins, list) else []
    rows = [row for row in rows if _fraction(row.get("mean_probability")) and _fraction(row.get("observed"))]
    rows = [row for row in rows if type(row.get("n")) is int and row["n"] > 0]
    most = max((row["n"] for row in rows), default=1)
    return tuple(
        Dot(
            row["mean_probability"] * SIZE,
            (1 - row["observed"]) * SIZE,
            # The area tells how many answers a bin holds.
            max(LEAST_RADIUS, MOST_RADIUS * (row["n"] / most) ** 0.5),
            f"{row['n']} answers near {row['mean_probability']:.2f}: {row['observed']:.2f} were positive",
        )
        for row in rows
    )


def _fraction(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
