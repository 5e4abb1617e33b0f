"""Decides whether a voucher pays for a call: the pure rules of a channel.

`scripts/hold.lua` and `scripts/charge.lua` apply the same rules atomically; a property test keeps both sides equal. The
rules see no store, no clock and no signature, which the caller has verified.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

AMOUNT_LIMIT = 2**53
"""Lua numbers are exact only below this: deposits that would lift a balance to it and ceilings at it are refused."""

ABANDONED_LIMIT, ABANDONED_WINDOW_MS = 8, 60_000
"""How many unkeyed calls a channel's callers may abandon, and within which time."""


class Outcome(StrEnum):
    """What a step did. All but the first four, and REPLAYED and READ, are refusals; none of those moves money."""

    ACCEPTED = "accepted"
    CHARGED = "charged"
    RELEASED = "released"
    RENEWED = "renewed"
    READ = "read"
    REPLAYED = "replayed"
    """The call was charged before: its record comes back, with the stored answer while that is kept."""
    IN_PROGRESS = "in_progress"
    OTHER_REQUEST = "other_request"
    """The Idempotency-Key was used for another request."""
    NOT_OWNER = "not_owner"
    """A release or renewal by an attempt that does not own the hold, or of a hold that has ended."""
    REFUSED = "refused"
    """A charge by another attempt, above its hold, or too late: the answer is not given and costs nothing."""
    UNKNOWN_CHANNEL = "unknown_channel"
    MISMATCH = "mismatch"
    """The ceiling does not pay for this call: a corrective 402 gives the one that does."""
    EXCEEDS_BALANCE = "exceeds_balance"
    EXPOSURE = "exposure"
    WITHDRAWING = "withdrawing"
    ABANDONED = "abandoned"
    """Callers abandoned too many unkeyed calls: such calls wait until the window has passed."""
    NOT_READY = "not_ready"


@dataclass(frozen=True, slots=True)
class Channel:
    """A channel's amounts at one moment, in atomic units.

    Attributes:
        balance: what the ledger holds for the channel.
        claimed: cumulative, what was claimed on the ledger.
        charged: cumulative, what calls were charged; never falls.
        held: the sum of all holds.
        highest: the cover: the highest ceiling accepted.
        refunding: taken off the usable balance while a refund is under way.
        withdrawing: True while the payer's withdrawal is pending.
        lossy: True if the channel was rebuilt after the store lost part of its memory.
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
    """Whether the ceiling `maximum` pays for a call of `price` now.

    A keyed call is covered if the highest ceiling covers everything charged, held and asked, in any order of arrival: a
    client may sign many calls ahead. An unkeyed (stock) ceiling must be exact, because nothing else distinguishes a
    late call from a replayed one.

    Args:
        channel: its present amounts.
        price: the most that the call can cost.
        maximum: the ceiling that came with it.
        keyed: True if it has an Idempotency-Key.
        exposure_cap: what may be charged and held beyond what is claimed.
        extra: a deposit to count as already made.
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
        # After a loss a stock client is ahead of us by the charges that were lost; the cap bounds both.
        ahead = required <= maximum <= required + exposure_cap
        if not (channel.lossy and ahead):
            return Outcome.MISMATCH
    if required > usable or (not keyed and maximum > usable):
        return Outcome.EXCEEDS_BALANCE
    if required - channel.claimed > exposure_cap:
        return Outcome.EXPOSURE
    return Outcome.ACCEPTED


def admit_late(channel: Channel, actual: int, keyed: bool, exposure_cap: int) -> Outcome:
    """Whether a call whose hold has ended may still be charged: only within the present cover, balance and exposure.

    An unkeyed call may not: its record is gone with its answer, and then a late charge looks like a repeated one.
    """
    spent = channel.charged + channel.held + actual
    fits = spent <= min(channel.highest, channel.usable) and spent - channel.claimed <= exposure_cap
    return Outcome.CHARGED if keyed and fits and not channel.withdrawing else Outcome.REFUSED
