"""Adds the rows of receipts by owner, filled from the receipts, and the stored Merkle levels of epochs.

Merkle levels of older epochs are stored when one of their receipts is first proved: a leaf depends on the chain id,
which a database without a ledger does not hold.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson
import sqlalchemy as sa
from alembic import op
from eth_utils import to_checksum_address

from channels.sql.migrations.append_only import forbid_changes

revision, down_revision = "0003", "0002"

ROWS = 1_000
Number = sa.Integer().with_variant(sa.BigInteger(), "postgresql")
Name = sa.String(80).with_variant(sa.Text(), "postgresql")


def upgrade() -> None:
    """Makes both tables, fills the first and makes both append-only."""
    shares = op.create_table(
        "journal_share",
        sa.Column("receipt", Number, sa.ForeignKey("journal_receipt.number"), primary_key=True, autoincrement=False),
        sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("owner", sa.String(42), nullable=False),
        sa.Column("carrier", Name, nullable=False),
        sa.Column("amount", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "journal_merkle",
        sa.Column("epoch", sa.Integer, sa.ForeignKey("journal_epoch.number"), primary_key=True, autoincrement=False),
        sa.Column("level", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("first", Number, primary_key=True, autoincrement=False),
        sa.Column("numbers", sa.Text, nullable=False),
        sa.Column("nodes", sa.Text, nullable=False),
    )
    _fill(shares)
    op.create_index("ix_journal_share_owner", "journal_share", ["owner", "receipt"])
    forbid_changes("journal_share", "journal_merkle")


def _fill(shares: sa.Table) -> None:
    conn = op.get_bind()
    receipts = sa.table("journal_receipt", *map(sa.column, ("number", "channel_id", "amount", "fields")))
    channels = sa.table("journal_channel", *map(sa.column, ("channel_id", "payer")))
    chosen = (
        sa.select(receipts.c.number, receipts.c.amount, receipts.c.fields, channels.c.payer)
        .join(channels, channels.c.channel_id == receipts.c.channel_id)
        .order_by(receipts.c.number)
        .limit(ROWS)
    )
    last = 0
    while rows := conn.execute(chosen.where(receipts.c.number > last)).all():
        conn.execute(shares.insert(), [share for row in rows for share in _shares(row)])
        last = rows[-1].number


def _shares(row: Any) -> Iterator[dict[str, object]]:
    """One row for the payer, then one for each share, in the order of the receipt and of its parts."""
    charge = orjson.loads(orjson.loads(row.fields)["body"])
    parties = [("payer", row.payer, row.amount), *charge["shares"]]
    for part in charge.get("parts", ()):
        parties += part[-1]
    for position, (carrier, owner, amount) in enumerate(parties):
        address = to_checksum_address(owner) if position else owner
        values = {"position": position, "owner": address, "carrier": carrier, "amount": amount}
        yield {"receipt": row.number} | values
