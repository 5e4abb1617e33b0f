"""Maps the outcome of a refused hold to the error that the caller gets."""

from __future__ import annotations

from channels.errors import X402, CallConflict, ChannelError, NotReady, PaymentRefused, TooManyAbandoned
from channels.metering.channel import Outcome
from channels.metering.quote import corrective_state
from channels.metering.store import StepResult

REFUSALS = {
    Outcome.UNKNOWN_CHANNEL: (X402 + "channel_not_found", "no such channel here: open it with a deposit"),
    Outcome.MISMATCH: (X402 + "cumulative_amount_mismatch", "the ceiling does not pay for this call: sign a new one"),
    Outcome.EXCEEDS_BALANCE: (X402 + "cumulative_exceeds_balance", "the channel's balance is too low: top it up"),
    Outcome.WITHDRAWING: ("withdrawal_pending", "a withdrawal of this channel is pending: open another one"),
}


def refusal(channel: str, result: StepResult) -> ChannelError:
    """The error for a hold that was refused; a ceiling that does not pay gets the channel's state to correct it."""
    if result.outcome is Outcome.IN_PROGRESS:
        return CallConflict("in_progress", "a call with this Idempotency-Key is running: ask again shortly")
    if result.outcome is Outcome.OTHER_REQUEST:
        return CallConflict("other_request", "this Idempotency-Key was used for another request: use a new one")
    if result.outcome is Outcome.ABANDONED:
        text = "calls on this channel were abandoned too often: send an Idempotency-Key, or wait a minute"
        return TooManyAbandoned("abandoned", text)
    if result.outcome is Outcome.EXPOSURE:
        return NotReady("exposure", "the channel owes as much as it may: it is being settled, retry shortly")
    code, message = REFUSALS[result.outcome]
    corrects = result.outcome is Outcome.MISMATCH and result.proof_maximum
    return PaymentRefused(code, message, corrective_state(channel, result) if corrects else None)
