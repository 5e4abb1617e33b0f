"""Limits how many calls run or wait where calls are not batched, in total and for each payer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from serving.errors import CallError

MAX_CALLS = 128


class ConcurrencyLimit:
    """Counts the calls of one replica that run or wait; no payer may have more than half of `MAX_CALLS`."""

    def __init__(self) -> None:
        self._calls: Counter[str] = Counter()

    @property
    def taken(self) -> int:
        """Calls that run or wait."""
        return self._calls.total()

    def admit(self, payer: str) -> None:
        """Refuses a call before anything is spent on it, if it exceeds the limit.

        Raises:
            CallError: `queue_full`.
        """
        if self._calls.total() >= MAX_CALLS or self._calls[payer] >= MAX_CALLS // 2:
            raise CallError("queue_full", "the queue of this model is full: try again shortly")

    def enter(self, payer: str) -> None:
        """Counts a call until `leave`.

        Raises:
            CallError: `queue_full`.
        """
        self.admit(payer)
        self._calls[payer] += 1

    def leave(self, payer: str) -> None:
        """Ends what `enter` began."""
        self._calls[payer] -= 1
        if not self._calls[payer]:
            del self._calls[payer]  # so that the memory does not grow with the number of payers

    @contextmanager
    def take(self, payer: str) -> Iterator[None]:
        """Counts a call for the block.

        Raises:
            CallError: `queue_full`.
        """
        self.enter(payer)
        try:
            yield
        finally:
            self.leave(payer)
