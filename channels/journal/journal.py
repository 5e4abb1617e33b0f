"""Keeps the durable copy in SQL of what the store charged, in sequence, as a chain of receipts.

Each write checks the treasury's fencing token inside its transaction: a treasury that was replaced while it slept
changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import orjson
from sqlalchemy import Connection, Row, delete, insert, select, update

from channels.journal.batch import JournalBatch
from channels.journal.rows import (
    NUMBER_LIMIT,
    DeadLetter,
    Fields,
    JournalChannel,
    JournalError,
    StaleToken,
    Stored,
    columns,
    dump,
    load_channel,
    load_receipts,
    read_channel,
    read_receipt,
    read_record,
)
from channels.journal.shares import load_shares, share_rows, strays
from channels.journal.tables import buckets, channels, dead_letters, fence, receipts
from channels.metering import CLOCK_LIMIT_S, ChargeRecord
from channels.protocol import ChannelConfig
from channels.receipts import CHAIN_START, Receipt, extend_chain
from channels.sql import Database

__all__ = ["DeadLetter", "Journal", "JournalChannel", "JournalError", "StaleToken"]
LEASE_S = 10.0
"""How long a treasury that does not renew its lease keeps others waiting."""
VERIFY_ROWS = 1_000
"""Receipts that `verify` holds in memory at once."""
MAX_LEASE_S = LEASE_S + 2 * CLOCK_LIMIT_S
"""The most that a lease may have left by another node's clock, at the largest allowed skew."""


class Journal:
    """Receipts and channels in one database."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self.database, self._clock = database, clock

    @classmethod
    def open(
        cls, url: str, clock: Callable[[], float] = time.time, read_only: bool = False, create: bool = True
    ) -> Journal:
        """Opens a journal; `create` makes its tables where they are absent, unless it is only read.

        The ledger's database may be shared.
        """
        return cls(Database(url, read_only=read_only, create=create), clock)

    def close(self) -> None:
        """Closes the database."""
        self.database.close()

    def acquire(self, holder: str) -> int:
        """A new fencing token, higher than every one before: from now on only its holder writes."""
        with self.database.write() as conn:
            return self._take(conn, holder)

    def lease(self, holder: str) -> int | None:
        """`acquire`, unless another holder has renewed its lease within `LEASE_S`; then None."""
        with self.database.write() as conn:
            row = conn.execute(select(fence)).one_or_none()
            left_ms = row.expires_ms - self._now_ms() if row and row.holder != holder else 0
            # More than that was written before a clock stepped back: nobody waits for it.
            return None if 0 < left_ms <= MAX_LEASE_S * 1000 else self._take(conn, holder)

    def renew(self, token: int, ttl_s: float = LEASE_S) -> None:
        """Keeps others waiting for `ttl_s` from now; 0 lets the next one in at once."""
        with self.write(token) as conn:
            conn.execute(update(fence).values(expires_ms=self._now_ms() + int(ttl_s * 1000)))

    def leased(self) -> str | None:
        """The holder of a lease that has not ended, or None."""
        with self.database.read() as conn:
            row = conn.execute(select(fence)).one_or_none()
        return row.holder if row and 0 < row.expires_ms - self._now_ms() <= MAX_LEASE_S * 1000 else None

    def check(self, token: int) -> None:
        """Raises StaleToken if another treasury has taken over; called before every effect outside SQL."""
        with self.database.read() as conn:
            if _token(conn) != token:
                raise StaleToken

    @contextmanager
    def write(self, token: int) -> Iterator[Connection]:
        """A writing transaction of the treasury that holds `token`."""
        with self.database.write() as conn:
            if _token(conn) != token:
                raise StaleToken
            yield conn

    @contextmanager
    def write_unfenced(self) -> Iterator[Connection]:
        """A writing transaction of an operator, who holds no token."""
        with self.database.write() as conn:
            yield conn

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A consistent view."""
        with self.database.read() as conn:
            yield conn

    def remember_channel(self, config: ChannelConfig, channel_id: str, token: int) -> None:
        """Stores a channel before its first call; again is harmless."""
        with self.write(token) as conn:
            if load_channel(conn, channel_id) is None:
                parties = {
                    "payer": config.payer,
                    "receiver": config.receiver,
                    "authorizer": config.receiver_authorizer,
                }
                conn.execute(insert(channels).values(channel_id=channel_id, config=dump(config.to_json()), **parties))

    def forget_channel(self, channel_id: str, token: int) -> None:
        """Undoes `remember_channel` after a refused deposit; a channel with a receipt stays."""
        with self.write(token) as conn:
            conn.execute(delete(channels).where(channels.c.channel_id == channel_id, channels.c.seq == 0))

    def channels(self) -> Iterator[JournalChannel]:
        """Every channel."""
        with self.database.read() as conn:
            rows = conn.execute(select(channels).order_by(channels.c.channel_id)).mappings().all()
        return (read_channel(dict(row)) for row in rows)

    def charged_keys(self, channel_id: str) -> list[tuple[str, str]]:
        """Every keyed call ever charged on a channel: its id and the digest of its request."""
        chosen = select(receipts.c.key, receipts.c.fields).where(
            receipts.c.channel_id == channel_id, receipts.c.key.is_not(None)
        )
        with self.database.read() as conn:
            return [
                (row.key, orjson.loads(row.fields)["digest"])
                for row in conn.execute(chosen.order_by(receipts.c.number))
            ]

    def drained(self, bucket: int) -> str:
        """Stream id of the last entry of a bucket that is stored here; ``0-0`` before the first."""
        with self.database.read() as conn:
            return _drained(conn, bucket)

    def positions(self) -> dict[int, str]:
        """`drained` of every bucket that has any entry here."""
        with self.database.read() as conn:
            return {row.bucket: row.drained for row in conn.execute(select(buckets))}

    def channel(self, channel_id: str) -> JournalChannel | None:
        """One channel, or None."""
        with self.database.read() as conn:
            return load_channel(conn, channel_id)

    def append(self, bucket: int, entries: Sequence[tuple[str, Fields]], token: int) -> int:
        """Stores drained entries in order, all or none; an entry that is stored already is skipped.

        Returns:
            How many were new.

        Raises:
            StaleToken: another treasury has taken over.
            JournalError: an entry is malformed, leaves a gap, or contradicts a stored one.
        """
        if not entries:
            return 0
        with self.write(token) as conn:
            batch = JournalBatch(conn, (fields.get("channel", "") for _, fields in entries))
            for stream_id, fields in entries:
                batch.add(stream_id, fields)
            batch.save()
            _raise_drained(conn, bucket, entries[-1][0])
            return len(batch.rows)

    def add_dead_letter(self, bucket: int, entry: tuple[str, Fields], code: str, token: int) -> None:
        """Keeps an entry that cannot be stored as a charge, so that those behind it can be stored."""
        stream_id, fields = entry
        with self.write(token) as conn:
            same = (dead_letters.c.bucket == bucket) & (dead_letters.c.stream_id == stream_id)
            if conn.execute(select(dead_letters.c.code).where(same)).one_or_none() is None:
                row = {"bucket": bucket, "stream_id": stream_id, "code": code, "at_ms": self._now_ms()}
                conn.execute(insert(dead_letters).values(**row, fields=dump(dict(fields))))
            _raise_drained(conn, bucket, stream_id)

    def dead_letters(self) -> list[DeadLetter]:
        """Every entry that could not be stored as a charge, oldest first."""
        chosen = select(dead_letters).order_by(dead_letters.c.at_ms, dead_letters.c.bucket, dead_letters.c.stream_id)
        with self.database.read() as conn:
            rows = conn.execute(chosen).all()
        return [DeadLetter(row.bucket, row.stream_id, row.code, row.at_ms, orjson.loads(row.fields)) for row in rows]

    def record(self, call_id: str) -> ChargeRecord | None:
        """A charged call as the store had it, if it was drained."""
        with self.database.read() as conn:
            text = conn.scalar(select(receipts.c.fields).where(receipts.c.call_id == call_id))
        return None if text is None else read_record(orjson.loads(text))

    def stored(self, call_id: str) -> Stored | None:
        """The receipt of a call with its place in the journal's chain, if the call was charged and drained."""
        own = receipts.c
        with self.database.read() as conn:
            row = conn.execute(select(own.number, own.fields, own.chain).where(own.call_id == call_id)).one_or_none()
            if row is None:
                return None
            before = conn.scalar(select(own.chain).where(own.number == row.number - 1)) or CHAIN_START
        return Stored(read_receipt(orjson.loads(row.fields)), row.number, before, row.chain)

    def receipts(self, channel_id: str | None = None, epoch: int | None = None) -> list[Receipt]:
        """Receipts in journal order: of a channel, of an epoch, of both, or all."""
        with self.database.read() as conn:
            return load_receipts(conn, channel_id, epoch)

    def verify(self) -> int:
        """Recomputes the chain over all receipts and the shares of each; returns the number of receipts.

        Raises:
            JournalError: names the first receipt that is not what was written.
        """
        chain, count, last = CHAIN_START, 0, -NUMBER_LIMIT
        chosen = select(receipts, channels.c.payer).join(channels, isouter=True).order_by(receipts.c.number)
        with self.database.read() as conn:
            while rows := conn.execute(chosen.where(receipts.c.number > last).limit(VERIFY_ROWS)).all():
                last = rows[-1].number
                stored = load_shares(conn, rows[0].number, last)
                for row in rows:
                    count += 1
                    receipt = _sound_receipt(row)
                    chain = chain if receipt is None else extend_chain(chain, receipt)
                    if receipt is None or row.chain != chain or row.number != count:
                        raise JournalError("journal_tampered", f"receipt {count} is not what was written")
                    if stored.get(count, []) != share_rows(receipt, row.payer):
                        raise JournalError("journal_tampered", f"the shares of receipt {count} are not what it says")
            if strays(conn, count):
                raise JournalError("journal_tampered", "there are shares without a receipt")
        return count

    def _take(self, conn: Connection, holder: str) -> int:
        token = _token(conn) + 1
        values = {"token": token, "holder": holder, "expires_ms": self._now_ms() + int(LEASE_S * 1000)}
        conn.execute(insert(fence).values(id=1, **values) if token == 1 else update(fence).values(**values))
        return token

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)


def _sound_receipt(row: Row[Any]) -> Receipt | None:
    """The receipt of a row whose columns agree with its fields; None if they do not."""
    try:
        fields = orjson.loads(row.fields)
        own = columns(fields)
        sound = {name: getattr(row, name) for name in own} == own and row.fields == dump(fields)
        return read_receipt(fields) if sound else None
    except (JournalError, ValueError):
        return None


def _token(conn: Connection) -> int:
    return int(conn.scalar(select(fence.c.token).where(fence.c.id == 1)) or 0)


def _drained(conn: Connection, bucket: int) -> str:
    return str(conn.scalar(select(buckets.c.drained).where(buckets.c.bucket == bucket)) or "0-0")


def _raise_drained(conn: Connection, bucket: int, stream_id: str) -> None:
    present = conn.scalar(select(buckets.c.drained).where(buckets.c.bucket == bucket))
    if present is None:
        conn.execute(insert(buckets).values(bucket=bucket, drained=stream_id))
    elif _order(stream_id) > _order(present):
        conn.execute(update(buckets).where(buckets.c.bucket == bucket).values(drained=stream_id))


def _order(stream_id: str) -> tuple[int, int]:
    milliseconds, _, count = stream_id.partition("-")
    return int(milliseconds), int(count or 0)
