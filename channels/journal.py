"""`Journal`: the durable copy in SQL of what the store charged, in sequence, as a chain of receipts.

Every write carries the treasury's fencing token and is checked inside its transaction: a treasury that was replaced
while it slept changes nothing. Knows no ledger. Next: `epochs.py`, which settles what is here; `settler.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import orjson
from sqlalchemy import Connection, insert, select, update
from sqlalchemy.exc import IntegrityError

from channels.database import Database
from channels.errors import ChannelError
from channels.journal_rows import (
    START,
    ChannelCopy,
    Fields,
    JournalError,
    StaleToken,
    columns,
    dump,
    link,
    load_copy,
    load_receipts,
    read_copy,
    read_receipt,
)
from channels.journal_tables import buckets, copies, fence, journal_tables, receipts
from channels.receipt import Receipt
from channels.x402 import ChannelConfig, parse_amount

__all__ = ["ChannelCopy", "Journal", "JournalError", "StaleToken"]


class Journal:
    """Receipts and channels in one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @classmethod
    def open(cls, url: str) -> Journal:
        """Opens a journal, making its tables where they are absent; the ledger's file may be shared."""
        return cls(Database(url, journal_tables, append_only=(receipts,)))

    def close(self) -> None:
        """Closes the database."""
        self._database.close()

    def acquire(self, holder: str) -> int:
        """A new fencing token, higher than every one before: from now on only its holder writes."""
        with self._database.write() as conn:
            token = _token(conn) + 1
            if token == 1:
                conn.execute(insert(fence).values(id=1, token=token, holder=holder))
            else:
                conn.execute(update(fence).values(token=token, holder=holder))
            return token

    def check(self, token: int) -> None:
        """Raises StaleToken if another treasury has taken over; asked before every effect outside SQL."""
        with self._database.read() as conn:
            if _token(conn) != token:
                raise StaleToken

    @contextmanager
    def write(self, token: int) -> Iterator[Connection]:
        """A writing transaction of the treasury that holds `token`."""
        with self._database.write() as conn:
            if _token(conn) != token:
                raise StaleToken
            yield conn

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A consistent view."""
        with self._database.read() as conn:
            yield conn

    def remember_channel(self, config: ChannelConfig, channel_id: str, token: int) -> None:
        """Stores a channel before its first call; again is harmless."""
        with self.write(token) as conn:
            if load_copy(conn, channel_id) is None:
                conn.execute(insert(copies).values(channel_id=channel_id, config=dump(config.to_json())))

    def channels(self) -> Iterator[ChannelCopy]:
        """Every channel."""
        with self._database.read() as conn:
            rows = conn.execute(select(copies).order_by(copies.c.channel_id)).mappings().all()
        return (read_copy(dict(row)) for row in rows)

    def charged_keys(self, channel_id: str) -> list[tuple[str, str]]:
        """Every keyed call ever charged on a channel: its id and its journal fields as JSON."""
        chosen = select(receipts.c.key, receipts.c.fields).where(
            receipts.c.channel_id == channel_id, receipts.c.key.is_not(None)
        )
        with self._database.read() as conn:
            return [(row.key, row.fields) for row in conn.execute(chosen.order_by(receipts.c.number))]

    def drained(self, bucket: int) -> str:
        """Stream id of the last entry of a bucket that is stored here; ``0-0`` before the first."""
        with self._database.read() as conn:
            return _drained(conn, bucket)

    def positions(self) -> dict[int, str]:
        """`drained` of every bucket that has any entry here."""
        with self._database.read() as conn:
            return {row.bucket: row.drained for row in conn.execute(select(buckets))}

    def channel(self, channel_id: str) -> ChannelCopy | None:
        """One channel, or None."""
        with self._database.read() as conn:
            return load_copy(conn, channel_id)

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
            page = _Page(conn)
            for stream_id, fields in entries:
                page.add(stream_id, fields)
            page.save()
            _raise_drained(conn, bucket, entries[-1][0])
            return len(page.rows)

    def receipt(self, call_id: str) -> Receipt | None:
        """The receipt of a call, if it was charged and drained."""
        with self._database.read() as conn:
            text = conn.scalar(select(receipts.c.fields).where(receipts.c.call_id == call_id))
        return None if text is None else read_receipt(orjson.loads(text))

    def receipts(self, channel_id: str | None = None, epoch: int | None = None) -> list[Receipt]:
        """Receipts in journal order: of a channel, of an epoch, of both, or all."""
        with self._database.read() as conn:
            return load_receipts(conn, channel_id, epoch)

    def verify(self) -> int:
        """Recomputes the chain over all receipts and gives their number.

        Raises:
            JournalError: names the first receipt that is not what was written.
        """
        chain, count = START, 0
        with self._database.read() as conn:
            for row in conn.execute(select(receipts).order_by(receipts.c.number)):
                count += 1
                try:
                    fields = orjson.loads(row.fields)
                    chain = link(chain, read_receipt(fields))
                    own = columns(fields)
                    sound = {name: getattr(row, name) for name in own} == own and row.fields == dump(fields)
                except (JournalError, ValueError):
                    sound = False
                if not sound or row.chain != chain or row.number != count:
                    raise JournalError("journal_tampered", f"receipt {count} is not what was written")
        return count


class _Page:
    """The entries of one drain, checked one by one against the channels they belong to."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn
        self._copies: dict[str, ChannelCopy] = {}
        self._fresh: dict[tuple[str, int, int], str] = {}
        last = conn.execute(select(receipts.c.number, receipts.c.chain).order_by(receipts.c.number.desc()).limit(1))
        self._number, self._chain = tuple(last.one_or_none() or (0, START))
        self.rows: list[dict[str, object]] = []

    def add(self, stream_id: str, fields: Fields) -> None:
        """Takes an entry, skips one that is stored, refuses one that cannot be true."""
        try:
            receipt = read_receipt(fields)
            proof = (
                parse_amount(fields["proof_max"], "proof_max"),
                bytes.fromhex(fields["proof_sig"].removeprefix("0x")),
            )
        except (JournalError, ChannelError, LookupError, ValueError) as error:
            raise JournalError("journal_entry_invalid", f"entry {stream_id} is not a charge") from error
        copy = self._copies.get(receipt.channel_id) or load_copy(self._conn, receipt.channel_id)
        if copy is None:
            raise JournalError("journal_unknown_channel", f"entry {stream_id} is of a channel that was never stored")
        text = dump(dict(fields))
        if receipt.seq <= copy.seq and self._stored(receipt) == text:
            return
        if receipt.seq <= copy.seq or receipt.incarnation < copy.incarnation:
            raise JournalError("journal_conflict", f"entry {stream_id} contradicts a stored one")
        # A missing number is a charge whose receipt nobody has: nothing behind it may be stored as if it were whole.
        if receipt.seq != copy.seq + 1 or receipt.before != copy.charged:
            raise JournalError("journal_gap", f"entry {stream_id} does not follow the last stored charge")
        self._number, self._chain = self._number + 1, link(self._chain, receipt)
        self.rows.append(columns(fields) | {"number": self._number, "fields": text, "chain": self._chain})
        self._fresh[receipt.channel_id, receipt.incarnation, receipt.seq] = text
        self._copies[receipt.channel_id] = _raised(copy, receipt, proof)

    def save(self) -> None:
        """Writes everything taken."""
        if not self.rows:
            return
        try:
            self._conn.execute(insert(receipts), self.rows)
        except IntegrityError as error:
            raise JournalError("journal_conflict", "a call is charged twice") from error
        for copy in self._copies.values():
            self._conn.execute(
                update(copies)
                .where(copies.c.channel_id == copy.channel_id)
                .values(
                    incarnation=copy.incarnation,
                    seq=copy.seq,
                    charged=copy.charged,
                    proof_maximum=str(copy.proof_maximum),
                    proof_signature=copy.proof_signature.hex(),
                )
            )

    def _stored(self, receipt: Receipt) -> str | None:
        fresh = self._fresh.get((receipt.channel_id, receipt.incarnation, receipt.seq))
        own = receipts.c
        chosen = select(own.fields).where(
            own.channel_id == receipt.channel_id, own.incarnation == receipt.incarnation, own.seq == receipt.seq
        )
        return fresh or self._conn.scalar(chosen)


def _raised(copy: ChannelCopy, receipt: Receipt, proof: tuple[int, bytes]) -> ChannelCopy:
    raised = replace(copy, incarnation=receipt.incarnation, seq=receipt.seq, charged=receipt.after)
    # Never lowered: a lower ceiling drained late would leave no signature for what was charged.
    if proof[0] <= copy.proof_maximum:
        return raised
    return replace(raised, proof_maximum=proof[0], proof_signature=proof[1])


def _token(conn: Connection) -> int:
    return int(conn.scalar(select(fence.c.token).where(fence.c.id == 1).with_for_update()) or 0)


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
