"""Adds what settling many channels at a flat cost needs, the lease of several settlers, and dead letters.

A channel's copy gets its payer, receiver and authorizer out of its config, and the number of its last settled receipt,
so that what waits is found by an index instead of by reading everything that ever happened.
"""

from __future__ import annotations

import orjson
import sqlalchemy as sa
from alembic import op

from channels.sql.migrations.append_only import forbid_changes

revision, down_revision = "0002", "0001"

PARTIES = {"payer": "payer", "receiver": "receiver", "authorizer": "receiverAuthorizer"}
WAITING = sa.text("charged > settled AND quarantine = ''")


def upgrade() -> None:
    """Adds columns, fills them from what is there, and indexes them."""
    for name in PARTIES:
        op.add_column("journal_channel", sa.Column(name, sa.String(42), nullable=False, server_default=sa.text("''")))
    op.add_column("journal_channel", sa.Column("settled_seq", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("journal_fence", sa.Column("expires_ms", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("journal_epoch", sa.Column("closed_ms", sa.BigInteger, nullable=False, server_default="0"))
    _fill()
    op.create_index("ix_journal_receipt_waiting", "journal_receipt", ["channel_id", "seq"])
    op.create_index("ix_journal_receipt_at_ms", "journal_receipt", ["at_ms"])
    op.create_index("ix_journal_channel_payer", "journal_channel", ["payer"])
    parties = ["receiver", "authorizer", "channel_id"]
    op.create_index(
        "ix_journal_channel_waiting", "journal_channel", parties, sqlite_where=WAITING, postgresql_where=WAITING
    )
    op.create_index("ix_ledger_channel_withdraw_amount", "ledger_channel", ["withdraw_amount"])
    op.create_table(
        "journal_aside",
        sa.Column("bucket", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("stream_id", sa.String(50), primary_key=True),
        sa.Column("code", sa.String(100), nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("fields", sa.Text, nullable=False),
    )
    forbid_changes("journal_aside")


def _fill() -> None:
    conn = op.get_bind()
    copies = sa.table("journal_channel", *map(sa.column, ("channel_id", "config", "settled_seq", *PARTIES)))
    for channel_id, text in conn.execute(sa.select(copies.c.channel_id, copies.c.config)).all():
        config = orjson.loads(text)
        values = {name: config[field] for name, field in PARTIES.items()}
        conn.execute(copies.update().where(copies.c.channel_id == channel_id).values(**values))
    op.execute(
        "UPDATE journal_channel SET settled_seq = COALESCE((SELECT max(r.seq) FROM journal_receipt r "
        "JOIN journal_epoch_receipt m ON m.receipt = r.number WHERE r.channel_id = journal_channel.channel_id), 0)"
    )
