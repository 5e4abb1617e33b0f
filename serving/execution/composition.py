"""`Composition`: one call of a DApp that asks other DApps, and what they cost: never more than the call itself.

The caller pays the price of the DApp that was asked, in one charge; what this one asks for is paid out of that, so a
budget goes down the tree and parts of the receipt come back up. What fails comes back as a refusal, and is no part.
Knows no Ray: `ChildCaller` does.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import numpy as np

from channels.receipts import MAX_PART_DEPTH, MAX_PARTS, BadReceipt, Part, check_parts
from dapps import ChildFailed
from dapps.api import Inputs


@dataclass(frozen=True, slots=True)
class ChildCall:
    """What one DApp asks of another.

    Args:
        inputs: arrays [n, *shape] by name.
        payer: whose call it is: in the other's queue payers take turns as ever.
        chain: the DApps that wait for it, from the one that the payer asked.
        budget: what it may cost at most, in atomic units.
        room: how many parts the receipt still holds.
        timeout_s: what is left of the call's time.
    """

    inputs: Inputs = field(repr=False)
    payer: str = field(repr=False)
    chain: tuple[str, ...]
    budget: int
    room: int
    timeout_s: float

    def check(self, name: str) -> None:
        """Refuses what would go round in a circle, or deeper than a receipt shows.

        Raises:
            ChildFailed: `child_cycle` or `child_too_many`.
        """
        if name in self.chain:
            raise ChildFailed("child_cycle", f"{' asks '.join((*self.chain, name))}: a DApp never asks itself")
        if len(self.chain) > MAX_PART_DEPTH:
            raise ChildFailed("child_cycle", f"DApps ask each other at most {MAX_PART_DEPTH} deep")
        if self.room < 1:
            raise ChildFailed("child_too_many", f"one call asks other DApps at most {MAX_PARTS} times")


@dataclass(frozen=True, slots=True)
class ChildResult:
    """The answer to an errand: outputs by name, and the parts that it makes of the receipt, its own first."""

    outputs: Inputs = field(repr=False)
    parts: tuple[Part, ...]


ChildCaller = Callable[[str, ChildCall], Awaitable[ChildResult | tuple[str, str]]]
"""Takes an errand to a DApp; a refusal comes back as (code, message)."""


class Composition:
    """One call.

    Args:
        reach: how other DApps are reached, from the event loop that this is made in.
        chain: as in `ChildCall`, the DApp that answers the call last.
        payer: whose call it is.
        budget: the price of the call in atomic units.
        room: how many parts it may have.
        until_s: when its time is up, by `time.monotonic`.
    """

    def __init__(
        self, reach: ChildCaller, chain: tuple[str, ...], payer: str, budget: int, room: int, until_s: float
    ) -> None:
        self._reach, self._chain, self._payer = reach, chain, payer
        self._budget, self._room, self._until_s = budget, room, until_s
        self._loop = asyncio.get_running_loop()
        self._turn = threading.Lock()
        self._open = True
        self._parts: tuple[Part, ...] = ()

    @property
    def parts(self) -> tuple[Part, ...]:
        """What was asked so far, as it stands in the receipt."""
        return self._parts

    @property
    def spent(self) -> int:
        """What it cost so far, in atomic units."""
        return sum(part.amount for part in self._parts if part.depth == 1)

    def close(self) -> tuple[Part, ...]:
        """Ends the call: a thread that it left behind asks for nothing more. What was asked for."""
        self._open = False
        return self._parts

    def ask(self, name: str, inputs: Inputs) -> Inputs:
        """See `dapps.api.calls.Ask`; in a thread of the DApp's, never in the event loop. One errand runs at a time.

        Raises:
            ChildFailed: the other did not answer.
        """
        # What is left of the budget is promised to one errand at a time: two could spend it twice.
        with self._turn:
            returned = self._go(name, inputs)
            if not self._open:
                raise ChildFailed("outside_call", "the call that this was asked for has ended")
            self._parts += returned.parts
            return returned.outputs

    def _go(self, name: str, inputs: Inputs) -> ChildResult:
        left_s = self._until_s - time.monotonic()
        budget, room = self._budget - self.spent, self._room - len(self._parts)
        if not self._open or left_s <= 0:
            raise ChildFailed("child_deadline", "the time of the call is up")
        errand = ChildCall(inputs, self._payer, self._chain, budget, room, left_s)
        errand.check(name)
        running = asyncio.run_coroutine_threadsafe(_taken(self._reach, name, errand), self._loop)
        try:
            told = running.result(left_s)
        except TimeoutError as error:
            running.cancel()
            raise ChildFailed("child_deadline", f"{name} did not answer in the time of the call") from error
        if not isinstance(told, ChildResult):
            raise ChildFailed(*told)
        try:
            check_parts(told.parts[0].amount, 0, told.parts)
        except (BadReceipt, IndexError) as error:
            raise ChildFailed("child_unavailable", f"{name} answered without a receipt that adds up") from error
        if told.parts[0].amount > budget or len(told.parts) > room:
            raise ChildFailed("child_budget", f"{name} cost more than it was given")
        return told


async def _taken(reach: ChildCaller, name: str, errand: ChildCall) -> ChildResult | tuple[str, str]:
    try:
        return await reach(name, errand)
    except Exception:  # its replica was lost, or it has none: whatever the cause, it did not answer
        return "child_unavailable", f"{name} cannot be reached"


def bytes_of(tensors: Inputs) -> list[bytes]:
    """Arrays as bytes for a digest: name, kind, shape and content of each, in the order of their names."""
    found = []
    for name in sorted(tensors):
        array = tensors[name]
        found += [name.encode(), f"{array.dtype.str} {array.shape}".encode()]
        texts = array.dtype == np.dtype(object)
        found += [bytes(each) for each in array.ravel()] if texts else [np.ascontiguousarray(array).tobytes()]
    return found
