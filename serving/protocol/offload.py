"""What keeps the event loop free: large pieces of work go to a thread, small ones stay, for the hop costs more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

SMALL_BYTES = 32 << 10
LIGHTER = 64
"""How much less work a byte is that is copied or hashed, as binary numbers are, than one of JSON or of texts."""
T = TypeVar("T")


async def run_in_thread(size: int, work: Callable[..., T], *values: object) -> T:
    """Runs `work(*values)`, in a thread if it has more than 32 KiB to go through.

    The loop also answers health checks: what would hold it for 5 ms must leave it, what takes microseconds must not.
    """
    return work(*values) if size <= SMALL_BYTES else await asyncio.to_thread(work, *values)
