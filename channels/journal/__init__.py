"""Stores the charges drained from the store in SQL, in sequence, chains their receipts and lists statements of them.

May import metering, receipts, protocol, sql and errors.
"""

from channels.journal.journal import LEASE_S, Journal, StaleToken
from channels.journal.refunds import Intent, Refunds
from channels.journal.rows import (
    Fields,
    JournalChannel,
    JournalError,
    load_channel,
    read_channel,
    read_receipt,
)
from channels.journal.statement import Statement, Statements
from channels.journal.tables import (
    WAITING,
    channels,
    dead_letters,
    epochs,
    fence,
    journal_tables,
    members,
    merkle,
    receipts,
)

__all__ = [
    "LEASE_S",
    "WAITING",
    "Fields",
    "Intent",
    "Journal",
    "JournalChannel",
    "JournalError",
    "Refunds",
    "StaleToken",
    "Statement",
    "Statements",
    "channels",
    "dead_letters",
    "epochs",
    "fence",
    "journal_tables",
    "load_channel",
    "members",
    "merkle",
    "read_channel",
    "read_receipt",
    "receipts",
]
