"""Lists what an address was charged and what it earned, line by line, from the journal's receipts.

A payer sees the charges of its channels and an owner its share of each charge. Deposits, refunds and payouts are in the
ledger. Amounts are atomic units.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields

import orjson
from sqlalchemy import select

from channels.journal.journal import Journal
from channels.journal.rows import read_receipt
from channels.journal.shares import PAYER
from channels.journal.tables import channels, members, receipts, shares
from channels.protocol import Json
from channels.receipts import Owed, Receipt, Share

PAGE = 1_000


@dataclass(frozen=True, slots=True)
class Line:
    """One charge as it concerns one address: `carrier` is `payer`, or who was paid `amount`.

    `number` is the receipt's place in the journal, `epoch` the settlement that paid it, None while it waits.
    """

    number: int
    at_ms: int
    carrier: str
    dapp: str
    version: str
    units: int
    amount: int
    epoch: int | None
    channel: str
    seq: int
    receipt: str


@dataclass(frozen=True, slots=True)
class Statement:
    """A page of lines in journal order; `after` continues it, None at the end."""

    lines: tuple[Line, ...]
    after: int | None

    @property
    def charged(self) -> int:
        """What these lines charged."""
        return sum(line.amount for line in self.lines if line.carrier == PAYER)

    @property
    def earned(self) -> int:
        """What these lines paid."""
        return sum(line.amount for line in self.lines if line.carrier != PAYER)

    def to_json(self) -> Json:
        """Lines, their sums as decimal strings, and `next`: the `after` of the next page.

        `role` repeats `carrier` until version 0.3, for readers of version 0.1.
        """
        lines = [
            {field.name: getattr(line, field.name) for field in fields(Line)}
            | {"amount": str(line.amount), "role": line.carrier}
            for line in self.lines
        ]
        return {"lines": lines, "charged": str(self.charged), "earned": str(self.earned), "next": self.after}

    def to_csv(self) -> str:
        """The lines as CSV with a header row (RFC 4180)."""
        text = io.StringIO()
        table = csv.writer(text)
        table.writerow([*(field.name for field in fields(Line)), "role"])
        table.writerows((*astuple(line), line.carrier) for line in self.lines)
        return text.getvalue()


class Statements:
    """Statements out of one journal."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def page(self, owner: str, from_ms: int, to_ms: int, after: int = 0, count: int = PAGE) -> Statement:
        """Lines of `owner`'s checksummed address for charges from `from_ms` until before `to_ms`.

        Args:
            owner: whose lines.
            from_ms: first millisecond since 1970, by the store's clock.
            to_ms: first millisecond that is not in it.
            after: the `after` of the page before this one.
            count: most receipts in a page; an owner that is several carriers has a line for each.
        """
        numbers = (
            select(shares.c.receipt)
            .distinct()
            .join(receipts, receipts.c.number == shares.c.receipt)
            .where(shares.c.owner == owner, shares.c.receipt > after)
            .where(receipts.c.at_ms >= from_ms, receipts.c.at_ms < to_ms)
            .order_by(shares.c.receipt)
            .limit(count + 1)
            .subquery()
        )
        chosen = (
            select(receipts.c.number, receipts.c.fields, channels.c.payer, members.c.epoch)
            .join(numbers, numbers.c.receipt == receipts.c.number)
            .join(channels, channels.c.channel_id == receipts.c.channel_id)
            .join(members, members.c.receipt == receipts.c.number, isouter=True)
            .order_by(receipts.c.number)
        )
        with self._journal.read() as conn:
            rows = conn.execute(chosen).all()
        lines = [
            line
            for row in rows[:count]
            for line in _lines(row.number, read_receipt(orjson.loads(row.fields)), owner, row.payer, row.epoch)
        ]
        return Statement(tuple(lines), rows[count - 1].number if len(rows) > count else None)


def _lines(number: int, receipt: Receipt, owner: str, payer: str, epoch: int | None) -> Sequence[Line]:
    whole = Owed(receipt.dapp, receipt.version, receipt.units, Share(PAYER, owner, receipt.amount))
    rows = [whole] if payer == owner else []
    rows += [owed for owed in receipt.owed if owed.share.owner == owner]
    return [
        Line(
            number,
            receipt.at_ms,
            owed.share.carrier,
            owed.dapp,
            owed.version,
            owed.units,
            owed.share.amount,
            epoch,
            receipt.channel_id,
            receipt.seq,
            receipt.call_id,
        )
        for owed in rows
    ]
