"""The schema of version 0.1: books, channels, journal, epochs. Leaves tables that are there as they are."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from channels.sql.migrations.append_only import forbid_changes

revision, down_revision = "0001", None

# SQLite's INTEGER has 64 bits and its lengths are not enforced; PostgreSQL is given what means the same there.
Number = sa.Integer().with_variant(sa.BigInteger(), "postgresql")
Name = sa.String(80).with_variant(sa.Text(), "postgresql")


def upgrade() -> None:
    """Makes what is absent."""
    _books()
    _journal()
    _epochs()
    forbid_changes("ledger_transaction", "ledger_entry", "journal_receipt")


def _table(name: str, *parts: sa.schema.SchemaItem) -> None:
    op.create_table(name, *parts, if_not_exists=True)


def _books() -> None:
    _table(
        "ledger_transaction",
        sa.Column("id", Number, primary_key=True, autoincrement=False),
        sa.Column("kind", sa.String(20), nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("reference", sa.String(200), unique=True),
        sa.Column("memo", sa.Text, nullable=False),
        sa.Column("prev_hash", sa.String(66), nullable=False),
        sa.Column("hash", sa.String(66), nullable=False, unique=True),
    )
    _table(
        "ledger_entry",
        sa.Column("transaction_id", Number, sa.ForeignKey("ledger_transaction.id"), primary_key=True),
        sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("account", sa.String(80), nullable=False),
        sa.Column("amount", sa.BigInteger, nullable=False),
        sa.Column("carrier", Name, nullable=False),
        sa.Column("dapp", Name, nullable=False),
    )
    op.create_index("ix_ledger_entry_account", "ledger_entry", ["account"], if_not_exists=True)
    _table(
        "ledger_balance",
        sa.Column("account", sa.String(80), primary_key=True),
        sa.Column("amount", sa.BigInteger, nullable=False),
        sa.CheckConstraint("amount >= 0 OR account = 'mint'"),
    )
    state = ("balance", "total_claimed", "withdraw_amount", "withdraw_requested_at_s", "refund_nonce", "version")
    _table(
        "ledger_channel",
        sa.Column("channel_id", sa.String(66), primary_key=True),
        sa.Column("config", sa.Text, nullable=False),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in state),
    )


def _journal() -> None:
    _table(
        "journal_fence",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("token", sa.BigInteger, nullable=False),
        sa.Column("holder", sa.String(200), nullable=False),
    )
    _table(
        "journal_bucket",
        sa.Column("bucket", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("drained", sa.String(50), nullable=False),
    )
    _table(
        "journal_channel",
        sa.Column("channel_id", sa.String(66), primary_key=True),
        sa.Column("config", sa.Text, nullable=False),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in ("incarnation", "seq", "charged", "settled")),
        sa.Column("proof_maximum", sa.String(39), nullable=False),
        sa.Column("proof_signature", sa.String(130), nullable=False),
        sa.Column("quarantine", sa.String(100), nullable=False),
    )
    _table(
        "journal_receipt",
        sa.Column("number", Number, primary_key=True, autoincrement=False),
        sa.Column("channel_id", sa.String(66), sa.ForeignKey("journal_channel.channel_id"), nullable=False),
        sa.Column("incarnation", sa.BigInteger, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("call_id", sa.String(66), nullable=False, unique=True),
        sa.Column("key", sa.String(66)),
        sa.Column("amount", sa.BigInteger, nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("fields", sa.Text, nullable=False),
        sa.Column("chain", sa.String(66), nullable=False),
        sa.UniqueConstraint("channel_id", "incarnation", "seq"),
        sa.UniqueConstraint("channel_id", "key"),
    )
    _table(
        "journal_refund",
        sa.Column("channel_id", sa.String(66), sa.ForeignKey("journal_channel.channel_id"), primary_key=True),
        sa.Column("amount", sa.BigInteger, nullable=False),
        sa.Column("nonce", sa.BigInteger, nullable=False),
    )


def _epochs() -> None:
    _table(
        "journal_epoch",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("status", sa.String(10), nullable=False),
        sa.Column("root", sa.String(66), nullable=False),
        sa.Column("receiver", sa.String(42), nullable=False),
        sa.Column("claimed", sa.BigInteger, nullable=False),
        *(sa.Column(name, sa.Text, nullable=False) for name in ("claims", "credits", "transactions")),
    )
    _table(
        "journal_epoch_receipt",
        sa.Column("receipt", Number, sa.ForeignKey("journal_receipt.number"), primary_key=True),
        sa.Column("epoch", sa.Integer, sa.ForeignKey("journal_epoch.number"), nullable=False),
    )
    op.create_index("ix_journal_epoch_receipt_epoch", "journal_epoch_receipt", ["epoch"], if_not_exists=True)
