"""`settle`: asks the treasury of a running mesh to claim and split now, and tells how far it is.

For commands, in a process that is connected to the mesh's Ray. Next: `treasury.py`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any

from serving.errors import StartError

SETTLE_TIMEOUT_S = 60.0
PROGRESS_S = 0.5


def settle(progress: Callable[[int, int], None] = lambda done, total: None) -> dict[str, Any]:
    """Asks the treasury of the Ray that this process is connected to for a settlement.

    Args:
        progress: told (channels settled, channels in all) now and then.

    Returns:
        What was claimed, in how many epochs, the last root, and the payouts; amounts in atomic units.

    Raises:
        StartError: if the treasury has settled nothing for a minute.
    """
    answer = _treasury().settle.remote()
    last, moved_s = (0, 0), time.monotonic()
    while True:
        with suppress(TimeoutError):
            settled: dict[str, Any] = answer.result(timeout_s=PROGRESS_S)
            return settled
        told = _treasury().progress.remote().result(timeout_s=SETTLE_TIMEOUT_S)
        if told != last:
            last, moved_s = told, time.monotonic()
            progress(*told)
        elif time.monotonic() - moved_s > SETTLE_TIMEOUT_S:
            raise StartError("the treasury settles nothing: its log is in the dashboard")


@cache
def _treasury() -> Any:
    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    handle = serve.get_deployment_handle("Treasury", app_name="control")
    # A driver has no event loop that outlives a call; in throughput mode a handle would otherwise look for one.
    handle._init(_run_router_in_separate_loop=True)  # type: ignore[no-untyped-call]
    return handle
