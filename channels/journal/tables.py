"""Describes the journal's tables.

Receipts, their shares and Merkle levels are append-only: the database itself refuses to change them. No patient data:
keyed digests and call ids only.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

journal_tables = MetaData()
Number = Integer().with_variant(BigInteger(), "postgresql")
Name = String(80).with_variant(Text(), "postgresql")
fence = Table(
    "journal_fence",
    journal_tables,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("token", BigInteger, nullable=False),
    Column("holder", String(200), nullable=False),
    Column("expires_ms", BigInteger, nullable=False, server_default="0"),
)
buckets = Table(
    "journal_bucket",
    journal_tables,
    Column("bucket", Integer, primary_key=True, autoincrement=False),
    Column("drained", String(50), nullable=False),
)
channels = Table(
    "journal_channel",
    journal_tables,
    Column("channel_id", String(66), primary_key=True),
    Column("config", Text, nullable=False),
    Column("incarnation", BigInteger, nullable=False, default=0),
    Column("seq", BigInteger, nullable=False, default=0),
    Column("charged", BigInteger, nullable=False, default=0),
    Column("settled", BigInteger, nullable=False, default=0),
    # A ceiling may be any uint128: decimal text, because no column of numbers holds it exactly everywhere.
    Column("proof_maximum", String(39), nullable=False, default="0"),
    Column("proof_signature", String(130), nullable=False, default=""),
    Column("quarantine", String(100), nullable=False, default=""),
    Column("payer", String(42), nullable=False, server_default=text("''"), index=True),
    Column("receiver", String(42), nullable=False, server_default=text("''")),
    Column("authorizer", String(42), nullable=False, server_default=text("''")),
    Column("settled_seq", BigInteger, nullable=False, server_default="0"),
)
# An index of the channels that owe something, so that settling does not scan all channels.
WAITING = text("charged > settled AND quarantine = ''")
Index(
    "ix_journal_channel_waiting",
    *(channels.c.receiver, channels.c.authorizer, channels.c.channel_id),
    sqlite_where=WAITING,
    postgresql_where=WAITING,
)
receipts = Table(
    "journal_receipt",
    journal_tables,
    Column("number", Number, primary_key=True, autoincrement=False),
    Column("channel_id", ForeignKey("journal_channel.channel_id"), nullable=False),
    Column("incarnation", BigInteger, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("call_id", String(66), nullable=False, unique=True),
    Column("key", String(66)),
    Column("amount", BigInteger, nullable=False),
    Column("at_ms", BigInteger, nullable=False, index=True),
    Column("fields", Text, nullable=False),
    Column("chain", String(66), nullable=False),
    UniqueConstraint("channel_id", "incarnation", "seq"),
    UniqueConstraint("channel_id", "key"),
    Index("ix_journal_receipt_waiting", "channel_id", "seq"),
)
shares = Table(
    "journal_share",
    journal_tables,
    Column("receipt", Number, ForeignKey("journal_receipt.number"), primary_key=True, autoincrement=False),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("owner", String(42), nullable=False),
    Column("carrier", Name, nullable=False),
    Column("amount", BigInteger, nullable=False),
    # A statement reads its owner's rows in journal order, and no others.
    Index("ix_journal_share_owner", "owner", "receipt"),
)
refunds = Table(
    "journal_refund",
    journal_tables,
    Column("channel_id", ForeignKey("journal_channel.channel_id"), primary_key=True),
    Column("amount", BigInteger, nullable=False),
    Column("nonce", BigInteger, nullable=False),
)
epochs = Table(
    "journal_epoch",
    journal_tables,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("status", String(10), nullable=False),
    Column("root", String(66), nullable=False),
    Column("receiver", String(42), nullable=False),
    Column("claimed", BigInteger, nullable=False),
    Column("claims", Text, nullable=False),
    Column("credits", Text, nullable=False),
    Column("transactions", Text, nullable=False, default="[]"),
    Column("closed_ms", BigInteger, nullable=False, server_default="0"),
)
members = Table(
    "journal_epoch_receipt",
    journal_tables,
    # The key is the receipt alone: none is ever in two epochs, so none is paid twice.
    Column("receipt", Number, ForeignKey("journal_receipt.number"), primary_key=True),
    Column("epoch", Integer, ForeignKey("journal_epoch.number"), nullable=False, index=True),
)
merkle = Table(
    "journal_merkle",
    journal_tables,
    Column("epoch", Integer, ForeignKey("journal_epoch.number"), primary_key=True, autoincrement=False),
    Column("level", Integer, primary_key=True, autoincrement=False),
    # The lowest receipt number under the piece: it finds the piece that a receipt is in, at every level.
    Column("first", Number, primary_key=True, autoincrement=False),
    Column("numbers", Text, nullable=False),
    Column("nodes", Text, nullable=False),
)
dead_letters = Table(
    "journal_aside",
    journal_tables,
    Column("bucket", Integer, primary_key=True, autoincrement=False),
    Column("stream_id", String(50), primary_key=True),
    Column("code", String(100), nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("fields", Text, nullable=False),
)
