"""`ConcurrencyLimit`: how many calls may run or wait where there are no batches, and how many of them one payer's.

A queue of its own is no use before a server that has one, or before calls that wait for others: here only their number
is bounded. Used by `solo.py` and `triton.py`; the batcher counts rows, and makes room.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from serving.errors import CallError

PLACES = 128


class ConcurrencyLimit:
    """Places of one replica; no payer has more than half of them."""

    def __init__(self) -> None:
        self._taken: Counter[str] = Counter()

    @property
    def taken(self) -> int:
        """Calls that run or wait."""
        return self._taken.total()

    def admit(self, payer: str) -> None:
        """Lets a call come, or refuses it before anything is spent on it.

        Raises:
            CallError: `queue_full`.
        """
        if self._taken.total() >= PLACES or self._taken[payer] >= PLACES // 2:
            raise CallError("queue_full", "the queue of this model is full: try again shortly")

    @contextmanager
    def take(self, payer: str) -> Iterator[None]:
        """A place for the block.

        Raises:
            CallError: `queue_full`.
        """
        self.admit(payer)
        self._taken[payer] += 1
        try:
            yield
        finally:
            self._taken[payer] -= 1
            self._taken += Counter()  # forgets who has no call here
