"""`Purse`: what one call may spend at another mesh, and the receipts that it got there.

The caller pays once, here. What the other mesh asks comes out of that, so its quote must fit into the most that this
call may cost, before anything is signed; its receipt goes into ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace

from channels.payer import Budget, BudgetExceeded
from channels.protocol import encode_header
from channels.receipts import MAX_PARTS, Part, Share, SignedReceipt
from serving.errors import CallError
from serving.protocol import Response, Result

HEADER = "leben-inner-receipts"
"""Of an answer: the other meshes' signed receipts, in the order of the parts of ours that they stand for."""


@dataclass(slots=True)
class Purse:
    """Of one call here.

    Args:
        most: what it may cost at most, in atomic units.
    """

    most: int
    promised: int = 0
    errands: list[RemoteCall] = field(default_factory=list)

    def __bool__(self) -> bool:
        """True if anything was paid."""
        return any(errand.receipt for errand in self.errands)

    def embedded(self, work: Result, amount: int) -> Result:
        """The work with the receipts of what was paid for it.

        Args:
            work: as it was done.
            amount: what is charged for it.

        Raises:
            CallError: `remote_price`: the other mesh charged more than that.
        """
        paid = [errand for errand in self.errands if errand.receipt is not None]
        if sum(errand.promised for errand in paid) > amount:
            raise CallError("remote_price", "what this DApp asks of another mesh costs more than it does itself")
        signed = [errand.receipt.to_json() for errand in paid if errand.receipt is not None]
        told = {HEADER: encode_header({"receipts": signed})}
        kept = work.kept and _with(work.kept, told)
        parts = (*work.parts, *(errand.part() for errand in paid))
        return replace(work, reply=_with(work.reply, told), kept=kept, parts=parts)


@dataclass(slots=True)
class RemoteCall:
    """One call to the other mesh: its quote while it runs, then what it was charged."""

    purse: Purse
    payer: str
    promised: int = 0
    receipt: SignedReceipt | None = None

    def promise(self, price: int) -> None:
        """Counts a quote against the call here, once however often it is sent.

        Raises:
            BudgetExceeded: the call may not cost so much, or asked for too much already.
        """
        if self.purse.promised - self.promised + price > self.purse.most:
            raise BudgetExceeded("budget_per_call", "the other mesh's quote is above what this call may cost")
        others = sum(bool(other.promised) for other in self.purse.errands if other is not self)
        if price and others >= MAX_PARTS:
            raise BudgetExceeded("budget_per_call", f"a receipt has at most {MAX_PARTS} parts")
        self._set(price)

    def paid(self, receipt: SignedReceipt) -> None:
        """Notes what was charged."""
        self.receipt = receipt
        self._set(receipt.receipt.amount)

    def _set(self, price: int) -> None:
        self.purse.promised += price - self.promised
        self.promised = price

    def part(self) -> Part:
        """What stands in our receipt: what theirs says, owed to the wallet that paid it."""
        if self.receipt is None:
            raise ValueError("nothing was paid")
        theirs = self.receipt.receipt
        digests = (theirs.model_digest, theirs.request_digest, theirs.result_digest)
        share = Share("remote", self.payer, theirs.amount)
        return Part(1, theirs.dapp, theirs.version, *digests, theirs.units, theirs.amount, (share,))


class QuoteBudget(Budget):
    """Of the wallet that pays the other mesh: a quote is held to what is left of the call that it is for."""

    def check_call(self, price: int) -> None:
        """Counts a quote, see `RemoteCall.promise`.

        Raises:
            BudgetExceeded: it does not fit.
        """
        super().check_call(price)
        if errand := REMOTE_CALL.get():
            errand.promise(price)


PURSE: ContextVar[Purse | None] = ContextVar("purse", default=None)
REMOTE_CALL: ContextVar[RemoteCall | None] = ContextVar("errand", default=None)


@contextmanager
def carried(most: int) -> Iterator[Purse]:
    """A purse for the call that is answered in this block."""
    token = PURSE.set(purse := Purse(most))
    try:
        yield purse
    finally:
        PURSE.reset(token)


@contextmanager
def errand(payer: str) -> Iterator[RemoteCall]:
    """One call to the other mesh, in the call of this context; outside of any it may cost nothing."""
    found = PURSE.get()
    purse = Purse(0) if found is None else found
    purse.errands.append(made := RemoteCall(purse, payer))
    token = REMOTE_CALL.set(made)
    try:
        yield made
    finally:
        REMOTE_CALL.reset(token)


def _with(reply: Response, headers: dict[str, str]) -> Response:
    return replace(reply, headers={**reply.headers, **headers})
