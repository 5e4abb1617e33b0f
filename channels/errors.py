"""Defines the refusals of the payment layer: each carries one stable code, none an HTTP status.

`serving/protocol/refusals.py` alone maps codes to statuses. Codes beginning with `invalid_batch_settlement_evm_` are
x402's own wire strings; a stock client acts on them, so they never change.
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
    """Rebuilds an error that crossed a process boundary, without the constructor of its subclass."""
    error = kind.__new__(kind)
    ChannelError.__init__(error, code, message)
    return error


class MalformedPayment(ChannelError):
    """The payment header does not follow x402 v2 `batch-settlement`."""


class PaymentRefused(ChannelError):
    """A well-formed payment that does not pay for this call; nothing was charged.

    Args:
        code: stable code.
        message: for people.
        state: what a corrective 402 shows the client of its channel, so that it can sign again.
    """

    state: dict[str, Any] | None = None

    def __init__(self, code: str, message: str, state: dict[str, Any] | None = None) -> None:
        super().__init__(code, message)
        self.state = state


class CallConflict(ChannelError):
    """The Idempotency-Key belongs to a call that is running, to an answer that has expired, or to another request."""


class NotReady(ChannelError):
    """The store or the treasury is not ready to move money; nothing was charged, retry later."""


class TooManyAbandoned(ChannelError):
    """This payer hung up on too many calls without a key; nothing was charged."""


class OutcomeUnknown(ChannelError):
    """The connection to the store broke during a charge: the call may be charged; retry with the same key."""


class LedgerError(ChannelError):
    """The ledger refused a deposit, claim or payout."""


class LedgerUnavailable(ChannelError):
    """The ledger cannot be reached, or did not confirm a transaction: send the same again."""
