"""Holds the money: deposits, claims, payouts and withdrawals, in double-entry books on SQL.

May import metering, receipts, protocol, sql and errors.
"""

from channels.ledger.books import BrokenBooks, books, transactions
from channels.ledger.ledger import Claimed, ClaimRow, Credit, Ledger, LedgerChannel, LedgerUpdate, Terms
from channels.ledger.rules import check_config, check_deposit, check_payer, claimable, refunded, refused
from channels.ledger.sql_ledger import SqlLedger

__all__ = [
    "BrokenBooks",
    "ClaimRow",
    "Claimed",
    "Credit",
    "Ledger",
    "LedgerChannel",
    "LedgerUpdate",
    "SqlLedger",
    "Terms",
    "books",
    "check_config",
    "check_deposit",
    "check_payer",
    "claimable",
    "refunded",
    "refused",
    "transactions",
]
