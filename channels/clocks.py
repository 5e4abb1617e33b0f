"""How far the clocks of a mesh's machines may be apart: each is compared with the store's, which all of them see.

The store's clock alone ends holds and dates receipts: no clock of a node can make a hold longer, or a charge older. A
node's own clock counts where nodes deal with each other or with people: the treasury's lease, the windows of deposits
and signed reads, the notice of a withdrawal. Next: `journal.py`, whose lease sets the limit.
"""

from __future__ import annotations

from channels.errors import NotReady

CLOCK_LIMIT_S = 2.0
"""How far a node's clock may be from the store's, and so half of what any two nodes may be apart.

A treasury renews its lease of 10 s every 3.3 s; one that stands by takes it when, by its own clock, it has ended. 4 s
apart, at least 2 s are left for a renewal that is slow; 6.7 s apart, two treasuries would take it from each other for
ever, and though the fencing token keeps money right, nothing would be settled in order. Every other window is far
wider: 60 s or more.
"""


class ClockSkew(NotReady):
    """A node's clock and the store's are too far apart."""


def ahead_s(asked_s: float, store_s: float, told_s: float) -> float:
    """By how many seconds the store's clock is ahead of ours, at least: what the question took is on nobody's side.

    Args:
        asked_s: our clock before the store was asked.
        store_s: what it said.
        told_s: our clock after.
    """
    if store_s > told_s:
        return store_s - told_s
    return min(0.0, store_s - asked_s)


def check(ahead: float, node: str) -> None:
    """Refuses a clock that is too far from the store's.

    Args:
        ahead: seconds by which the store's is ahead.
        node: whose clock it is, for people.

    Raises:
        ClockSkew: with what to do.
    """
    if abs(ahead) > CLOCK_LIMIT_S:
        said = f"{abs(ahead):.1f} s {'behind' if ahead > 0 else 'ahead of'} the store's"
        raise ClockSkew(
            "clock_skew",
            f"the clock of {node} is {said}, {CLOCK_LIMIT_S:g} s are allowed: let both machines follow one time server",
        )
