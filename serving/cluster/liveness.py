"""Awaits an operation of another process for as long as that process answers pings.

Some operations take a minute, such as a deposit on a slow chain, so no single bound fits them; a process that is frozen
or lost must be noticed in seconds all the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")
PATIENCE_S = 3.0
"""Time without an answer after which the process is pinged, and how long it may take to answer the ping."""


class NotAlive(Exception):
    """The process does not answer: the operation may have been made, or may still be."""


async def while_alive(
    operation: Awaitable[T], ping: Callable[[], Awaitable[object]], patience_s: float = PATIENCE_S
) -> T:
    """The result of an operation; its errors pass through.

    Args:
        operation: runs in another process.
        ping: is answered at once by that process if it is alive.
        patience_s: see `PATIENCE_S`.

    Raises:
        NotAlive: a ping was not answered.
    """
    task = asyncio.ensure_future(operation)
    try:
        while not (await asyncio.wait({task}, timeout=patience_s))[0]:
            try:
                async with asyncio.timeout(patience_s):
                    await ping()
            except Exception as error:
                if task.done():
                    break
                raise NotAlive("a process does not answer") from error
        return task.result()
    finally:
        task.cancel()
