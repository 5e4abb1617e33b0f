"""Stops the DApps while the proxy still carries their answers, then Serve and Ray."""

from __future__ import annotations

import os
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import ray
from ray import serve

from serving.mesh.applications import end_all


def stop_ray() -> None:
    """Stops Serve, if it runs, and Ray, after the calls in flight have come to their end."""
    # While it stops, Ray reports the actors that it ends as failures; only a stop that fails is worth reading.
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        try:
            # While the proxy still runs, so that calls in flight get their answers: Serve ends all at once.
            end_all([name for name in serve.status().applications if name != "control"])
            serve.shutdown()  # type: ignore[no-untyped-call]
        finally:
            ray.shutdown()
