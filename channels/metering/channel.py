"""When a voucher pays for a call: the pure rules of a channel.

The same rules run atomically in `scripts/hold.lua` and `scripts/charge.lua`; a property test holds both sides equal.
Knows no store, no clock and no signature (the caller has verified it).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

AMOUNT_LIMIT = 2**53
"""Lua numbers are exact only below this: a deposit that would lift a balance to it and a ceiling at it are refused."""

ABANDONED_LIMIT, ABANDONED_WINDOW_MS = 8, 60_000
"""How many calls without a key a channel's callers may hang up on, and within which time."""


class Outcome(StrEnum):
    """What a step did. Only ACCEPTED and CHARGED changed anything; every other leaves the money as it was."""

    ACCEPTED = "accepted"
    CHARGED = "charged"
    RELEASED = "released"
    RENEWED = "renewed"
    REPLAYED = "replayed"
    """The call is charged: its record comes back, with the stored answer while that is kept."""
    IN_PROGRESS = "in_progress"
    OTHER_REQUEST = "other_request"
    """The Idempotency-Key was used for another request."""
    NOT_OWNER = "not_owner"
    """A release or renewal by an attempt that does not own the hold, or of a hold that has ended."""
    REFUSED = "refused"
    """A charge by another attempt, above its hold, or too late: the answer is not given and costs nothing."""
    UNKNOWN_CHANNEL = "unknown_channel"
    MISMATCH = "mismatch"
    """The ceiling is not the one that pays for this call: a corrective 402 says which is."""
    EXCEEDS_BALANCE = "exceeds_balance"
    EXPOSURE = "exposure"
    WITHDRAWING = "withdrawing"
    ABANDONED = "abandoned"
    """Too many calls without a key were hung up on: such calls wait until the window has passed."""
    NOT_READY = "not_ready"


@dataclass(frozen=True, slots=True)
class Channel:
    """A channel's amounts at one moment, in atomic units.

    `highest` is the cover (the highest ceiling accepted); `held` the sum of all holds; `refunding` is off the usable
    balance while a refund is under way; `lossy` marks a channel rebuilt after the store lost part of its memory.
    """

    balance: int
    claimed: int = 0
    charged: int = 0
    held: int = 0
    highest: int = 0
    refunding: int = 0
    withdrawing: bool = False
    lossy: bool = False

    @property
    def usable(self) -> int:
        """What calls may use of the balance."""
        return self.balance - self.refunding


def admit(channel: Channel, price: int, maximum: int, keyed: bool, exposure_cap: int, extra: int = 0) -> Outcome:
    """Whether a ceiling of `maximum` pays for a call of `price` now; `extra` is a deposit that would come with it.

    A keyed call is covered if the highest ceiling seen covers everything charged, held and asked, in any order of
    arrival: a client may sign many calls ahead. An unkeyed (stock) ceiling must be exact, because nothing else tells
    a late call from a replayed one.
    """
    if channel.withdrawing:
        return Outcome.WITHDRAWING
    if maximum >= AMOUNT_LIMIT:
        return Outcome.EXCEEDS_BALANCE
    required = channel.charged + channel.held + price
    usable = channel.usable + extra
    cover = max(channel.highest, maximum)
    if keyed and required > cover:
        return Outcome.MISMATCH
    if not keyed and maximum != required:
        # After a loss a stock client is ahead of us by what was lost; it is bounded by the cap, and so is the loss.
        ahead = required <= maximum <= required + exposure_cap
        if not (channel.lossy and ahead):
            return Outcome.MISMATCH
    if required > usable or (not keyed and maximum > usable):
        return Outcome.EXCEEDS_BALANCE
    if required - channel.claimed > exposure_cap:
        return Outcome.EXPOSURE
    return Outcome.ACCEPTED


def admit_late(channel: Channel, actual: int, keyed: bool, exposure_cap: int) -> Outcome:
    """Whether a call whose hold has expired may still be charged: only what the present cover and balance allow.

    Never an unkeyed one: its record ends with its answer, and then nothing tells a late charge from a repeated one.
    """
    spent = channel.charged + channel.held + actual
    fits = spent <= min(channel.highest, channel.usable) and spent - channel.claimed <= exposure_cap
    return Outcome.CHARGED if keyed and fits and not channel.withdrawing else Outcome.REFUSED
