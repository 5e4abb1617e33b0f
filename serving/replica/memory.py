"""Offers a replica's process to Linux as the first to end when a machine has no memory left.

Another program may take the memory. Of the mesh's processes the greatest replica must end then, which Serve starts
again in seconds, and neither the controller nor a proxy, the store or the treasury: without them no DApp answers.
"""

from __future__ import annotations

import logging
from pathlib import Path

log = logging.getLogger("leben.replica")
OOM_SCORE = Path("/proc/self/oom_score_adj")
MAX_OOM_SCORE = "1000"


def end_first() -> None:
    """Raises the score by which Linux chooses; an isolated DApp's process inherits it."""
    try:
        OOM_SCORE.write_text(MAX_OOM_SCORE)
    except OSError:
        log.warning("Linux cannot be told to end replicas first when memory runs out: %s is not writable", OOM_SCORE)
