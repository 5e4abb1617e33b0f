"""Who gets what of one charge: integers only, exact to the unit.

Pure. The same split is made again by whoever checks a receipt, so ties have one order: the order in which a DApp names
its owners.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

WHOLE = 10_000
"""Basis points of one charge."""
CARRIERS = ("knowledge", "guideline", "data", "compute", "operator")
"""In the order of a receipt's shares, which its digest covers and by which ties are rounded: never reordered."""


@dataclass(frozen=True, slots=True)
class Share:
    """What one owner gets of one charge: `amount` in atomic units, to `owner`'s address, for its role `carrier`."""

    carrier: str
    owner: str
    amount: int


def split_charge(amount: int, shares: Sequence[tuple[str, str, int]]) -> tuple[Share, ...]:
    """Divides `amount` by largest remainder; of equal remainders the first named wins the spare unit.

    Args:
        amount: atomic units, not negative.
        shares: (carrier, owner's address, basis points), summing to 10 000.

    Returns:
        One share an owner in the given order, summing to `amount` exactly, each less than one unit from its exact part.

    Raises:
        ValueError: the amount is negative or the basis points are not a whole.
    """
    if amount < 0:
        raise ValueError("an amount to split is not negative")
    if any(points < 0 for _, _, points in shares) or sum(points for _, _, points in shares) != WHOLE:
        raise ValueError(f"shares are basis points that sum to {WHOLE}")
    parts = [divmod(amount * points, WHOLE) for _, _, points in shares]
    spare = amount - sum(whole for whole, _ in parts)
    # sorted() is stable: equal remainders keep the given order.
    lucky = set(sorted(range(len(parts)), key=lambda place: -parts[place][1])[:spare])
    return tuple(
        Share(carrier, owner, parts[place][0] + (place in lucky)) for place, (carrier, owner, _) in enumerate(shares)
    )


ShareRows = tuple[tuple[str, str, int], ...]
"""(carrier, owner's address, basis points)."""


def without_model(rows: ShareRows) -> ShareRows:
    """The shares of a call that no model worked on: what is the model's and its data's goes to the guideline's author.

    Who has no guideline is paid as ever: then no such call is answered.
    """
    if not any(carrier == "guideline" for carrier, _, _ in rows):
        return rows
    moved = sum(points for carrier, _, points in rows if carrier in ("knowledge", "data"))
    kept = [row for row in rows if row[0] not in ("knowledge", "data")]
    return tuple((carrier, owner, points + moved * (carrier == "guideline")) for carrier, owner, points in kept)
