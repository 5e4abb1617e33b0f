"""Stores the present state of each channel, which the books can always recompute."""

from __future__ import annotations

from functools import lru_cache

import orjson
from sqlalchemy import BigInteger, Column, Connection, RowMapping, String, Table, Text, insert, select, update

from channels.errors import ChannelError
from channels.ledger import accounts
from channels.ledger.books import BrokenBooks, balance, books
from channels.ledger.ledger import LedgerChannel
from channels.protocol import ChannelConfig, Json, channel_id

STATE = ("balance", "total_claimed", "withdraw_amount", "withdraw_requested_at_s", "refund_nonce", "version")
channels = Table(
    "ledger_channel",
    books,
    Column("channel_id", String(66), primary_key=True),
    Column("config", Text, nullable=False),
    *(Column(name, BigInteger, nullable=False, index=name == "withdraw_amount") for name in STATE),
)


def state(channel: LedgerChannel) -> Json:
    """A channel's state as a transaction's memo carries it."""
    return {name: getattr(channel, name) for name in ("channel_id", *STATE)}


def load(conn: Connection, identity: str) -> LedgerChannel | None:
    """A channel now."""
    row = conn.execute(select(channels).where(channels.c.channel_id == identity)).mappings().one_or_none()
    if row is None:
        return None
    return _channel(row)


def withdrawing(conn: Connection) -> list[LedgerChannel]:
    """Channels with a withdrawal pending."""
    rows = conn.execute(select(channels).where(channels.c.withdraw_amount > 0).order_by(channels.c.channel_id))
    return [_channel(row) for row in rows.mappings()]


def save(conn: Connection, channel: LedgerChannel) -> None:
    """Writes a channel's new state; its first version makes the row."""
    now = {name: getattr(channel, name) for name in STATE}
    if channel.version == 1:
        conn.execute(insert(channels).values(channel_id=channel.channel_id, config=_text(channel.config), **now))
    else:
        conn.execute(update(channels).where(channels.c.channel_id == channel.channel_id).values(**now))


def check_rows(conn: Connection, expected: dict[str, Json], chain_id: int) -> None:
    """Compares every channel with its state after its last transaction.

    Raises:
        BrokenBooks: names the first that differs.
    """
    rows = {row["channel_id"]: row for row in conn.execute(select(channels)).mappings()}
    for identity in sorted(rows.keys() | expected.keys()):
        row = rows.get(identity)
        if row is None or {name: row[name] for name in ("channel_id", *STATE)} != expected.get(identity):
            raise BrokenBooks(f"channel {identity} is not what its transactions made it")
        left = row["balance"] - row["total_claimed"]
        if not _is_config(row["config"], identity, chain_id) or balance(conn, accounts.channel(identity)) != left:
            raise BrokenBooks(f"channel {identity} does not hold what it says")


def _channel(row: RowMapping) -> LedgerChannel:
    return LedgerChannel(row["channel_id"], _config(row["config"]), *(int(row[name]) for name in STATE))


@lru_cache(maxsize=65_536)
def _config(text: str) -> ChannelConfig:
    """A channel's config never changes, and withdrawing channels are looked at all the time."""
    return ChannelConfig.from_json(orjson.loads(text))


def _is_config(text: str, identity: str, chain_id: int) -> bool:
    try:
        config = ChannelConfig.from_json(orjson.loads(text))
    except (ValueError, ChannelError):
        return False
    return text == _text(config) and channel_id(chain_id, config) == identity


def _text(config: ChannelConfig) -> str:
    return orjson.dumps(config.to_json()).decode()
