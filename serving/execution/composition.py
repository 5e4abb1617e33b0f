"""Runs the calls of one DApp to others within one caller's price, and collects the parts of its receipt.

The caller pays the price of the DApp that was called, in one charge; child calls are paid out of that. So the budget
goes down the tree, and parts of the receipt come back up. A child call that fails is refused and costs nothing.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType

import numpy as np

from channels.receipts import MAX_PART_DEPTH, MAX_PARTS, BadReceipt, Part, check_parts
from dapps import ChildFailed
from dapps.api import Inputs, calls


@dataclass(frozen=True, slots=True)
class ChildCall:
    """One DApp's call to another.

    Args:
        inputs: arrays [n, *shape] by name.
        payer: the payer of the outer call: in the other DApp's queue payers take turns too.
        chain: the DApps that wait for it, beginning with the one that the payer called.
        budget: the most that it may cost, in atomic units.
        parts_left: how many parts the receipt can still take.
        timeout_s: what is left of the outer call's time.
    """

    inputs: Inputs = field(repr=False)
    payer: str = field(repr=False)
    chain: tuple[str, ...]
    budget: int
    parts_left: int
    timeout_s: float

    def check(self, name: str) -> None:
        """Refuses a call that closes a circle, or is deeper or more numerous than a receipt can show.

        Raises:
            ChildFailed: `child_cycle` or `child_too_many`.
        """
        if name in self.chain:
            raise ChildFailed("child_cycle", f"{' asks '.join((*self.chain, name))}: a DApp never asks itself")
        if len(self.chain) > MAX_PART_DEPTH:
            raise ChildFailed("child_cycle", f"DApps ask each other at most {MAX_PART_DEPTH} deep")
        if self.parts_left < 1:
            raise ChildFailed("child_too_many", f"one call asks other DApps at most {MAX_PARTS} times")


@dataclass(frozen=True, slots=True)
class ChildResult:
    """The result of a child call: outputs by name, and its parts of the receipt, its own first."""

    outputs: Inputs = field(repr=False)
    parts: tuple[Part, ...]


ChildCaller = Callable[[str, ChildCall], Awaitable[ChildResult]]
"""Carries a call to the named DApp; raises `ChildFailed` with the code of a refusal."""


class Composition(AbstractContextManager["Composition"]):
    """The child calls of one call: within its block, the DApp may call others by `DApp.call`.

    Args:
        caller: carries a call to another DApp, on the event loop that this is made in.
        chain: as in `ChildCall`, ending with the DApp that answers the call.
        payer: who pays for the call.
        budget: the price of the call, in atomic units.
        max_parts: how many parts the call may have.
        until_s: when its time is up, by `time.monotonic`.
    """

    def __init__(
        self, caller: ChildCaller, *, chain: tuple[str, ...], payer: str, budget: int, max_parts: int, until_s: float
    ) -> None:
        self._caller, self._chain, self._payer = caller, chain, payer
        self._budget, self._max_parts, self._until_s = budget, max_parts, until_s
        self._loop = asyncio.get_running_loop()
        self._turn = threading.Lock()
        self._open = True
        self._asking = calls.asking(self.ask)
        self.parts: tuple[Part, ...] = ()
        """The receipt's parts so far."""

    def __enter__(self) -> Composition:
        self._asking.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        self._asking.__exit__(kind, error, trace)

    @property
    def spent(self) -> int:
        """What the child calls have cost so far, in atomic units."""
        return sum(part.amount for part in self.parts if part.depth == 1)

    def close(self) -> None:
        """Ends the call: a thread that it left behind makes no more child calls."""
        self._open = False

    def ask(self, name: str, inputs: Inputs) -> Inputs:
        """Makes a child call; runs in a thread of the DApp, never on the event loop. See `dapps.api.calls.Ask`.

        Raises:
            ChildFailed: the other DApp did not answer.
        """
        # One child call at a time: two that run together could spend the same rest of the budget.
        with self._turn:
            result = self._call(name, inputs)
            if not self._open:
                raise ChildFailed("outside_call", "the call that this was asked for has ended")
            self.parts += result.parts
            return result.outputs

    def _call(self, name: str, inputs: Inputs) -> ChildResult:
        left_s = self._until_s - time.monotonic()
        budget, parts_left = self._budget - self.spent, self._max_parts - len(self.parts)
        if not self._open or left_s <= 0:
            raise ChildFailed("child_deadline", "the time of the call is up")
        call = ChildCall(inputs, self._payer, self._chain, budget, parts_left, left_s)
        call.check(name)
        running = asyncio.run_coroutine_threadsafe(_carried(self._caller, name, call), self._loop)
        try:
            result = running.result(left_s)
        except TimeoutError as error:
            running.cancel()
            raise ChildFailed("child_deadline", f"{name} did not answer in the time of the call") from error
        try:
            check_parts(result.parts[0].amount, 0, result.parts)
        except (BadReceipt, IndexError) as error:
            raise ChildFailed("child_unavailable", f"{name} answered without a receipt that adds up") from error
        if result.parts[0].amount > budget or len(result.parts) > parts_left:
            raise ChildFailed("child_budget", f"{name} cost more than it was given")
        return result


async def _carried(caller: ChildCaller, name: str, call: ChildCall) -> ChildResult:
    try:
        return await caller(name, call)
    except ChildFailed:
        raise
    except Exception as error:  # its replica was lost, or it has none: for the caller both are one
        raise ChildFailed("child_unavailable", f"{name} cannot be reached") from error


def tensor_bytes(tensors: Inputs) -> list[bytes]:
    """Arrays as bytes for a digest: name, dtype, shape and content of each, in the order of their names."""
    chunks = []
    for name in sorted(tensors):
        array = tensors[name]
        chunks += [name.encode(), f"{array.dtype.str} {array.shape}".encode()]
        strings = array.dtype == np.dtype(object)
        chunks += [bytes(value) for value in array.ravel()] if strings else [np.ascontiguousarray(array).tobytes()]
    return chunks
