"""Splits one charge among the owners of a DApp's carriers: integers only, exact to the unit.

Whoever checks a receipt makes the same split again, so ties have one order: that of the shares.
"""

from __future__ import annotations

from collections.abc import Sequence

from channels.receipts.share import Share

WHOLE = 10_000
"""Basis points of one charge."""
ShareRows = tuple[tuple[str, str, int], ...]
"""(carrier, owner's address, basis points)."""


def split_charge(amount: int, shares: Sequence[tuple[str, str, int]]) -> tuple[Share, ...]:
    """Divides `amount` by largest remainder; of equal remainders the first share gets the spare unit.

    Args:
        amount: atomic units, not negative.
        shares: (carrier, owner's address, basis points), summing to 10 000.

    Returns:
        One `Share` a row in the same order, summing to `amount`, each less than one unit from its exact part.

    Raises:
        ValueError: the amount is negative or the basis points do not sum to 10 000.
    """
    if amount < 0:
        raise ValueError("an amount to split is not negative")
    if any(points < 0 for _, _, points in shares) or sum(points for _, _, points in shares) != WHOLE:
        raise ValueError(f"shares are basis points that sum to {WHOLE}")
    parts = [divmod(amount * points, WHOLE) for _, _, points in shares]
    spare = amount - sum(whole for whole, _ in parts)
    # sorted() is stable: equal remainders keep the order of the shares.
    rounded_up = set(sorted(range(len(parts)), key=lambda place: -parts[place][1])[:spare])
    return tuple(
        Share(carrier, owner, parts[place][0] + (place in rounded_up))
        for place, (carrier, owner, _) in enumerate(shares)
    )


def without_model(rows: ShareRows) -> ShareRows:
    """The shares of a call that the guideline answered alone: those of knowledge and data go to the guideline's author.

    Unchanged when no share belongs to a guideline.
    """
    if not any(carrier == "guideline" for carrier, _, _ in rows):
        return rows
    moved = sum(points for carrier, _, points in rows if carrier in ("knowledge", "data"))
    return tuple(
        (carrier, owner, points + moved * (carrier == "guideline"))
        for carrier, owner, points in rows
        if carrier not in ("knowledge", "data")
    )
