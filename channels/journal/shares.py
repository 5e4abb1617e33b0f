"""Makes the rows of each receipt by owner, so that a statement reads only the rows of its own owner.

The rows only say which receipts concern an owner: what a line shows is read from the receipt itself, so a changed row
shows nothing that no receipt holds, and `Journal.verify` finds it.
"""

from __future__ import annotations

from collections import defaultdict

from sqlalchemy import Connection, func, or_, select

from channels.journal.tables import shares
from channels.receipts import Receipt

PAYER = "payer"
"""The carrier of the row that says what a receipt's payer was charged."""
Row = tuple[int, str, str, int]
"""Position, owner, carrier and amount in atomic units."""


def share_rows(receipt: Receipt, payer: str) -> list[Row]:
    """A receipt's rows in order: its payer's, then one for each share."""
    parties = [(payer, PAYER, receipt.amount)]
    parties += [(owed.share.owner, owed.share.carrier, owed.share.amount) for owed in receipt.owed]
    return [(position, *party) for position, party in enumerate(parties)]


def share_columns(number: int, row: Row) -> dict[str, object]:
    """The columns of one row of receipt `number`."""
    position, owner, carrier, amount = row
    return {"receipt": number, "position": position, "owner": owner, "carrier": carrier, "amount": amount}


def load_shares(conn: Connection, first: int, last: int) -> dict[int, list[Row]]:
    """The stored rows of receipts `first` to `last`, by receipt."""
    columns = shares.c
    chosen = select(columns.receipt, columns.position, columns.owner, columns.carrier, columns.amount)
    inside = columns.receipt.between(first, last)
    stored: dict[int, list[Row]] = defaultdict(list)
    for number, *row in conn.execute(chosen.where(inside).order_by(columns.receipt, columns.position)):
        stored[number].append(tuple(row))
    return stored


def strays(conn: Connection, count: int) -> int:
    """How many rows belong to no receipt of a journal with `count` receipts."""
    outside = or_(shares.c.receipt < 1, shares.c.receipt > count)
    return int(conn.scalar(select(func.count()).select_from(shares).where(outside)) or 0)
