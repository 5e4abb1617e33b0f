"""`Refunds`: the intent rows that let a refund be finished after a crash, and never be made twice.

A refund first writes its intent here, then takes its amount off the store's usable balance, then asks the ledger. The
row goes only when the ledger's refund nonce has passed: a time-out proves nothing, the ledger may still execute it.
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

    def begin(self, wanted: Intent, token: int) -> Intent:
        """Writes an intent; a channel has one at a time, so what comes back may be an earlier one to finish first."""
        with self._journal.write(token) as conn:
            row = conn.execute(select(refunds).where(refunds.c.channel_id == wanted.channel_id)).one_or_none()
            if row is not None:
                return Intent(row.channel_id, row.amount, row.nonce)
            values = {"channel_id": wanted.channel_id, "amount": wanted.amount, "nonce": wanted.nonce}
            conn.execute(insert(refunds).values(**values))
            return wanted

    def end(self, intent: Intent, token: int) -> None:
        """Forgets an intent whose nonce has passed, or that was refused before anything moved."""
        with self._journal.write(token) as conn:
            same = (refunds.c.channel_id == intent.channel_id) & (refunds.c.nonce == intent.nonce)
            conn.execute(delete(refunds).where(same))

    def pending(self) -> list[Intent]:
        """Every refund under way."""
        with self._journal.read() as conn:
            return [Intent(row.channel_id, row.amount, row.nonce) for row in conn.execute(select(refunds))]
