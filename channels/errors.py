"""Refusals of the payment layer: each carries one stable code, none carries an HTTP status.

`serving/errors.py` is the only place that maps a code to a status. Codes beginning with `invalid_batch_settlement_evm_`
are x402's own wire strings; a stock client acts on them, so they never change.
"""

from __future__ import annotations

from typing import Any

X402 = "invalid_batch_settlement_evm_"


class ChannelError(Exception):
    """Base of every refusal: `code` is stable and documented, `message` is for people and holds no secret.

    Args:
        code: one of the codes in `docs/errors.md`.
        message: what is wrong and what to do next.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (type(self), self.code, self.message)


def _restored(kind: type[ChannelError], code: str, message: str) -> ChannelError:
    """An error that crossed a process boundary; subclasses may be built from other arguments than these."""
    error = kind.__new__(kind)
    ChannelError.__init__(error, code, message)
    return error


class MalformedPayment(ChannelError):
    """The payment header is not what x402 v2 `batch-settlement` says it is."""


class PaymentRefused(ChannelError):
    """A well-formed payment that does not pay for this call; nothing was charged.

    Args:
        code: stable code.
        message: for people.
        state: what a corrective 402 tells the client about its channel, where that helps it.
    """

    state: dict[str, Any] | None = None

    def __init__(self, code: str, message: str, state: dict[str, Any] | None = None) -> None:
        super().__init__(code, message)
        self.state = state


class CallConflict(ChannelError):
    """The Idempotency-Key names a call that is running, gone, or was another request."""


class NotReady(ChannelError):
    """The store or treasury cannot answer for the money now; nothing was charged, retry later."""


class TooManyAbandoned(ChannelError):
    """Calls without a key were hung up on too often; nothing was charged."""


class OutcomeUnknown(ChannelError):
    """The connection broke while a charge was under way: the call may be charged; ask again with the same key."""


class LedgerError(ChannelError):
    """The ledger refused a deposit, claim or payout."""


class LedgerUnavailable(ChannelError):
    """The ledger cannot be asked now, or what it was asked is not known to have happened: ask the same again."""
