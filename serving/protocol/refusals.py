"""Maps each refusal's code to an HTTP status and a text for the caller.

Only a successful answer charges a hold, so every refusal releases it, with one exception: after `outcome_unknown` the
caller repeats the call with its key.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from channels.errors import (
    CallConflict,
    ChannelError,
    LedgerError,
    MalformedPayment,
    NotReady,
    OutcomeUnknown,
    PaymentRefused,
    TooManyAbandoned,
)
from dapps import ChildFailed, IntakeRefused
from serving.errors import CallError

STATUS = {
    "bad_request": 400,
    "invalid_tensor": 400,
    "invalid_key": 400,
    "load_failed": 400,
    "read_unsigned": 401,
    "withdraw_signature": 401,
    "payout_signature": 401,
    "withdraw_amount": 400,
    "payout_amount": 400,
    "forbidden": 403,
    "unknown_model": 404,
    "unknown_version": 404,
    "not_found": 404,
    "method_not_allowed": 405,
    "slow_body": 408,
    "in_progress": 409,
    "other_request": 409,
    "withdraw_pending": 409,
    "withdraw_not_pending": 409,
    "withdraw_too_early": 409,
    "withdraw_on_chain": 409,
    "nonce_used": 409,
    "answer_expired": 410,
    "body_too_large": 413,
    "unsupported_encoding": 415,
    "queue_full": 429,
    "busy": 503,
    "internal": 500,
    "dapp_crashed": 500,
    "dapp_hung": 504,
    "not_finite": 500,
    "out_of_memory": 503,
    "device_failed": 503,
    "child_failed": 503,
    "remote_unavailable": 503,
    "remote_refused": 502,
    "remote_unpaid": 503,
    "remote_price": 503,
    "not_ready": 503,
    "accounts_busy": 503,
    "store_unavailable": 503,
    "stale_treasury": 503,
    "outcome_unknown": 503,
    "deadline": 504,
}
"""Status of our own codes; `CLASSES` covers those of the payment layer."""


CLASSES: tuple[tuple[type[Exception], int], ...] = (
    (MalformedPayment, 402),
    (PaymentRefused, 402),
    (LedgerError, 402),
    (CallConflict, 409),
    (NotReady, 503),
    (TooManyAbandoned, 429),
    (OutcomeUnknown, 503),
)


CODE = re.compile(r"[a-z_]{1,64}")


RETRY_AFTER_S = {429: "1", 503: "1", 409: "1"}


class Refusal(NamedTuple):
    """What a caller gets in place of an answer: an HTTP status, a stable code and a text for people."""

    status: int
    code: str
    message: str


def describe(error: BaseException) -> Refusal:
    """The refusal for an error; an unforeseen error has a constant text, so that it cannot echo the input."""
    if isinstance(error, IntakeRefused):  # whatever its code, it is about the file
        return Refusal(422, error.code, error.message)
    if isinstance(error, CallError | ChannelError):
        for kind, status in CLASSES:
            if isinstance(error, kind):
                return Refusal(STATUS.get(error.code, status), error.code, error.message)
        return Refusal(STATUS.get(error.code, 500), error.code, error.message)
    if isinstance(error, ChildFailed):
        reason = error.code if CODE.fullmatch(error.code) else "for a reason of its own"
        text = f"a DApp that this one asks did not answer ({reason}); the call costs nothing"
        return Refusal(503, "child_failed", text)
    return Refusal(500, "internal", "internal error: the call costs nothing; its log line has the cause")
