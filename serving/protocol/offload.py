"""Runs large pieces of work in a thread, and small ones at once, for which the hop would cost more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

SMALL_BYTES = 32 << 10
BINARY_DISCOUNT = 64
"""A byte that is copied or hashed, as in binary tensors, is this much less work than a byte of JSON or text."""
T = TypeVar("T")


async def run_in_thread(size: int, work: Callable[..., T], *values: object) -> T:
    """Runs `work(*values)`, in a thread if it has more than 32 KiB of JSON to go through.

    The event loop also answers health checks: 5 ms of work must leave it, a few microseconds must not.

    Args:
        size: bytes to go through; binary data counts 1 / `BINARY_DISCOUNT` of its bytes.
        work: what to run.
        values: its arguments.
    """
    return work(*values) if size <= SMALL_BYTES else await asyncio.to_thread(work, *values)
