"""Drains charges from the store into SQL in sequence, chains their receipts and writes statements of them.

May import metering, receipts, protocol, sql and errors.
"""

from channels.journal.journal import LEASE_S, Journal, StaleToken
from channels.journal.refunds import Intent, Refunds
from channels.journal.rows import ChannelCopy, Fields, JournalError, load_copy, load_receipts, read_copy, read_receipt
from channels.journal.statement import Statement, Statements
from channels.journal.tables import WAITING, aside, copies, epochs, fence, journal_tables, members, receipts

__all__ = [
    "LEASE_S",
    "WAITING",
    "ChannelCopy",
    "Fields",
    "Intent",
    "Journal",
    "JournalError",
    "Refunds",
    "StaleToken",
    "Statement",
    "Statements",
    "aside",
    "copies",
    "epochs",
    "fence",
    "journal_tables",
    "load_copy",
    "load_receipts",
    "members",
    "read_copy",
    "read_receipt",
    "receipts",
]
