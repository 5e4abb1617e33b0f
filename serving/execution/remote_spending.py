"""Limits what one call may spend at another mesh, and adds that mesh's receipts to ours.

The caller pays once, here. What the other mesh charges comes out of that, so its quote must fit into the most that the
call may cost before anything is signed.
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
"""Response header with the other meshes' signed receipts, in the order of the parts of ours that they stand for."""


@dataclass(slots=True)
class Spending:
    """What one call spends at other meshes.

    Attributes:
        limit: the most that it may spend, in atomic units.
        promised: the quotes of running remote calls and the charges of answered ones.
        calls: its remote calls so far.
    """

    limit: int
    promised: int = 0
    calls: list[RemoteCall] = field(default_factory=list)

    def __bool__(self) -> bool:
        """True if anything was paid."""
        return any(call.receipt for call in self.calls)

    def with_receipts(self, result: Result, amount: int) -> Result:
        """Adds the other meshes' receipts to a result.

        Args:
            result: as it was computed.
            amount: what the call is charged here.

        Raises:
            CallError: `remote_price`: the other mesh charged more than that.
        """
        paid = [call for call in self.calls if call.receipt is not None]
        if sum(call.promised for call in paid) > amount:
            raise CallError("remote_price", "what this DApp asks of another mesh costs more than it does itself")
        signed = [call.receipt.to_json() for call in paid if call.receipt is not None]
        headers = {HEADER: encode_header({"receipts": signed})}
        stored = result.stored and _with(result.stored, headers)
        parts = (*result.parts, *(call.part() for call in paid))
        return replace(result, response=_with(result.response, headers), stored=stored, parts=parts)


@dataclass(slots=True)
class RemoteCall:
    """One call to another mesh: its quote while it runs, then its charge."""

    spending: Spending
    wallet: str
    promised: int = 0
    receipt: SignedReceipt | None = None

    def promise(self, price: int) -> None:
        """Counts a quote against the limit, once however often it is sent.

        Raises:
            BudgetExceeded: the call may not cost so much, or has made too many remote calls.
        """
        if self.spending.promised - self.promised + price > self.spending.limit:
            raise BudgetExceeded("budget_per_call", "the other mesh's quote is above what this call may cost")
        others = sum(bool(other.promised) for other in self.spending.calls if other is not self)
        if price and others >= MAX_PARTS:
            raise BudgetExceeded("budget_per_call", f"a receipt has at most {MAX_PARTS} parts")
        self._set(price)

    def paid(self, receipt: SignedReceipt) -> None:
        """Replaces the quote by the charge."""
        self.receipt = receipt
        self._set(receipt.receipt.amount)

    def part(self) -> Part:
        """The part of our receipt: the other mesh's receipt, owed to the wallet that paid it."""
        if self.receipt is None:
            raise ValueError("nothing was paid")
        theirs = self.receipt.receipt
        return Part(
            depth=1,
            dapp=theirs.dapp,
            version=theirs.version,
            model_digest=theirs.model_digest,
            request_digest=theirs.request_digest,
            result_digest=theirs.result_digest,
            units=theirs.units,
            amount=theirs.amount,
            shares=(Share("remote", self.wallet, theirs.amount),),
        )

    def _set(self, price: int) -> None:
        self.spending.promised += price - self.promised
        self.promised = price


class QuoteBudget(Budget):
    """The budget of the wallet that pays other meshes: a quote must fit into what is left of the call here."""

    def check_call(self, price: int) -> None:
        """Counts a quote; see `RemoteCall.promise`.

        Raises:
            BudgetExceeded: it does not fit.
        """
        super().check_call(price)
        if call := _remote_call.get():
            call.promise(price)


_spending: ContextVar[Spending | None] = ContextVar("spending", default=None)
_remote_call: ContextVar[RemoteCall | None] = ContextVar("remote_call", default=None)


@contextmanager
def spending(limit: int) -> Iterator[Spending]:
    """Counts what the call in this block spends at other meshes."""
    token = _spending.set(opened := Spending(limit))
    try:
        yield opened
    finally:
        _spending.reset(token)


@contextmanager
def remote_call(wallet: str) -> Iterator[RemoteCall]:
    """Counts one remote call against the call of this context; outside any call it may spend nothing."""
    current = _spending.get()
    opened = Spending(0) if current is None else current  # a Spending without receipts is falsy
    opened.calls.append(call := RemoteCall(opened, wallet))
    token = _remote_call.set(call)
    try:
        yield call
    finally:
        _remote_call.reset(token)


def count_receipt(signed: SignedReceipt) -> None:
    """Counts what another mesh charged the remote call of this context."""
    if call := _remote_call.get():
        call.paid(signed)


def _with(response: Response, headers: dict[str, str]) -> Response:
    return replace(response, headers={**response.headers, **headers})
