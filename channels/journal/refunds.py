"""Keeps a row for each refund under way, so that it is finished after a crash and never made twice.

A refund first writes its intent here, then reserves its amount in the store, then calls the ledger. The row is deleted
only when the ledger's refund nonce has passed: after a time-out the ledger may still execute the refund.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import delete, insert, select

from channels.journal.journal import Journal
from channels.journal.tables import refunds


@dataclass(frozen=True, slots=True)
class Intent:
    """A refund under way: `amount` atomic units of a channel, under the ledger's refund `nonce`."""

    channel_id: str
    amount: int
    nonce: int


class Refunds:
    """Refunds under way, in the journal's database."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def begin(self, intent: Intent, token: int) -> Intent:
        """Writes an intent; returns the channel's earlier one instead if that is not finished."""
        with self._journal.write(token) as conn:
            row = conn.execute(select(refunds).where(refunds.c.channel_id == intent.channel_id)).one_or_none()
            if row is not None:
                return Intent(row.channel_id, row.amount, row.nonce)
            values = {"channel_id": intent.channel_id, "amount": intent.amount, "nonce": intent.nonce}
            conn.execute(insert(refunds).values(**values))
            return intent

    def end(self, intent: Intent, token: int) -> None:
        """Deletes an intent whose nonce has passed, or whose refund was refused before anything moved."""
        with self._journal.write(token) as conn:
            same = (refunds.c.channel_id == intent.channel_id) & (refunds.c.nonce == intent.nonce)
            conn.execute(delete(refunds).where(same))

    def pending(self) -> list[Intent]:
        """Every refund under way."""
        with self._journal.read() as conn:
            return [Intent(row.channel_id, row.amount, row.nonce) for row in conn.execute(select(refunds))]
