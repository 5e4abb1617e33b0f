"""Defines `Executor`: where an authorised call's tensors are computed, whatever computes them.

Three classes implement it: `BatchedExecutor` on this process's device, `UnbatchedExecutor` for DApps that call other
DApps, and `RemoteExecutor` for models on another server.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import psutil

from dapps.api import Inputs

DEADLINE_S = 60.0
CHECK_PAYER, START_PAYER = "health check", "start-up"
"""Whom a replica's own work is queued for: no payer has these addresses."""
OWN_PAYERS = frozenset({CHECK_PAYER, START_PAYER})
"""Work that no caller asked for is in nobody's statistics."""


@dataclass(slots=True)
class Submission:
    """One call's tensors on their way to an executor.

    Attributes:
        tensors: arrays [n, *shape] by input name, checked against the DApp's declaration.
        payer: calls of one payer queue behind each other; payers take turns.
        timeout_s: a call that has waited this long is dropped without being run.
        priority: 1 goes first among the payer's own calls, 0 after all that have one; never before another payer.
    """

    tensors: Inputs = field(repr=False)
    payer: str = ""
    timeout_s: float = DEADLINE_S
    priority: int = 0

    @property
    def rows(self) -> int:
        """The number of items n."""
        return len(next(iter(self.tensors.values())))


@dataclass(slots=True)
class Completion:
    """What an executor computed for one submission.

    Attributes:
        outputs: arrays [n, *shape] by output name.
        device_ns: the submission's part of the device's time, in nanoseconds.
    """

    outputs: Inputs = field(repr=False)
    device_ns: int


class Queue(Protocol):
    """The part of an executor that a call meets."""

    def admit(self, payer: str) -> None:
        """Refuses a call of one row before anything is spent on it, if the queue has no place for it.

        Raises:
            CallError: `queue_full`.
        """

    async def submit(self, submission: Submission) -> Completion:
        """Computes one call's rows.

        Raises:
            CallError: `queue_full` or `deadline`. Errors of the model pass through unchanged.
        """


class Executor(Queue, Protocol):
    """Computes the calls of one DApp. The defaults below are those of an executor without a device of its own."""

    @property
    def waiting(self) -> int:
        """How much waits: rows where calls are batched, calls elsewhere."""

    async def start(self) -> str:
        """Prepares for calls and returns the device's name.

        Raises:
            StartError: it cannot.
        """

    def resize(self, maximum_batch: int) -> None:
        """Bounds the rows of later batches; without effect where there are no batches."""
        return

    async def check(self) -> None:
        """Raises any error if replacing this process would help, and nothing otherwise."""
        return

    def memory_bytes(self) -> int:
        """Memory in use, of the device or else of this process."""
        return int(psutil.Process().memory_info().rss)

    async def close(self) -> None:
        """Frees threads and connections once running calls have ended."""
