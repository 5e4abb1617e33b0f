"""Renders matplotlib figures as PNG."""

from __future__ import annotations

import io
import threading

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

DRAWING = threading.Lock()
"""Held while a figure is made: matplotlib shares fonts and styles among threads."""


def png(figure: Figure, dots_per_inch: int = 80) -> bytes:
    """The figure as PNG; made without pyplot, which keeps every figure and is not thread-safe."""
    file = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(file, dpi=dots_per_inch, format="png")
    return file.getvalue()
