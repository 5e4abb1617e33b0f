"""How a mesh stops: the DApps first, while the proxy still carries their answers, then Serve and Ray.

Imports Ray, so it is imported by whoever has started it. Next: `replica.py`.
"""

from __future__ import annotations

import os
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import ray
from ray import serve

from serving.applications import DRAIN_S


def stop_ray() -> None:
    """Stops Serve and Ray, if they run, after the calls in flight have come to their end."""
    if not ray.is_initialized():
        return
    # While it stops, Ray reports the actors that it ends as failures; only a stop that fails is worth reading.
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        try:
            _drain()
            serve.shutdown()  # type: ignore[no-untyped-call]
        finally:
            ray.shutdown()


def _drain() -> None:
    """Ends the DApps while the proxy still runs, so that calls in flight get their answers: Serve ends all at once."""

    def left() -> list[str]:
        return [name for name in serve.status().applications if name != "control"]

    until_s = time.monotonic() + DRAIN_S
    for name in left():
        serve.delete(name, _blocking=False)
    while left() and time.monotonic() < until_s:
        time.sleep(0.1)
