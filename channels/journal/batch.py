"""Checks drained entries one by one against their channels and writes them in the journal's transaction.

An entry is taken only in sequence, without a gap, joined to the stored cumulative, and each call once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from sqlalchemy import Connection, bindparam, insert, select, update
from sqlalchemy.exc import IntegrityError

from channels.errors import ChannelError
from channels.journal.rows import (
    Fields,
    JournalChannel,
    JournalError,
    columns,
    dump,
    load_channels,
    read_proof,
    read_receipt,
)
from channels.journal.shares import share_columns, share_rows
from channels.journal.tables import channels, receipts, shares
from channels.protocol import HASH
from channels.receipts import CHAIN_START, Receipt, extend_chain

RAISED = ("incarnation", "seq", "charged", "proof_maximum", "proof_signature")
RAISE = (
    update(channels)
    .where(channels.c.channel_id == bindparam("channel"))
    .values({name: bindparam(f"new_{name}") for name in RAISED})
)


class JournalBatch:
    """The entries of one drain, checked one by one against the channels they belong to.

    Args:
        conn: the transaction that they are written in.
        channels: ids of the entries' channels, read at once.
    """

    def __init__(self, conn: Connection, channels: Iterable[str]) -> None:
        self._conn = conn
        # Other text is no channel's id, and may hold what a database refuses as a parameter.
        self._channels = load_channels(conn, filter(HASH.fullmatch, channels))
        self._raised: set[str] = set()
        self._fresh: dict[tuple[str, int, int], str] = {}
        last = conn.execute(select(receipts.c.number, receipts.c.chain).order_by(receipts.c.number.desc()).limit(1))
        self._number, self._chain = tuple(last.one_or_none() or (0, CHAIN_START))
        self.rows: list[dict[str, object]] = []
        self._shares: list[dict[str, object]] = []

    def add(self, stream_id: str, fields: Fields) -> None:
        """Takes an entry, skips a stored one, refuses one that contradicts what is stored."""
        try:
            receipt = read_receipt(fields)
            proof = read_proof(fields)
        except (JournalError, ChannelError, LookupError, ValueError) as error:
            raise JournalError("journal_entry_invalid", f"entry {stream_id} is not a charge") from error
        channel = self._channels.get(receipt.channel_id)
        if channel is None:
            raise JournalError("journal_unknown_channel", f"entry {stream_id} is of a channel that was never stored")
        text = dump(dict(fields))
        if receipt.seq <= channel.seq and self._stored(receipt) == text:
            return
        if receipt.seq <= channel.seq or receipt.incarnation < channel.incarnation:
            raise JournalError("journal_conflict", f"entry {stream_id} contradicts a stored one")
        # A missing number is a charge whose receipt nobody has: nothing behind it may be stored as if it were whole.
        if receipt.seq != channel.seq + 1 or receipt.before != channel.charged:
            raise JournalError("journal_gap", f"entry {stream_id} does not follow the last stored charge")
        self._number, self._chain = self._number + 1, extend_chain(self._chain, receipt)
        self.rows.append(columns(fields) | {"number": self._number, "fields": text, "chain": self._chain})
        self._shares += [share_columns(self._number, row) for row in share_rows(receipt, channel.config.payer)]
        self._fresh[receipt.channel_id, receipt.incarnation, receipt.seq] = text
        self._channels[receipt.channel_id] = _raised(channel, receipt, proof)
        self._raised.add(receipt.channel_id)

    def save(self) -> None:
        """Writes the entries taken."""
        if not self.rows:
            return
        try:
            self._conn.execute(insert(receipts), self.rows)
        except IntegrityError as error:
            raise JournalError("journal_conflict", "a call is charged twice") from error
        self._conn.execute(insert(shares), self._shares)
        self._conn.execute(RAISE, [_row(self._channels[name]) for name in sorted(self._raised)])

    def _stored(self, receipt: Receipt) -> str | None:
        fresh = self._fresh.get((receipt.channel_id, receipt.incarnation, receipt.seq))
        own = receipts.c
        chosen = select(own.fields).where(
            own.channel_id == receipt.channel_id, own.incarnation == receipt.incarnation, own.seq == receipt.seq
        )
        return fresh or self._conn.scalar(chosen)


def _raised(channel: JournalChannel, receipt: Receipt, proof: tuple[int, bytes]) -> JournalChannel:
    raised = replace(channel, incarnation=receipt.incarnation, seq=receipt.seq, charged=receipt.after)
    # Never lowered: a lower ceiling drained late would leave no signature for what was charged.
    if proof[0] <= channel.proof_maximum:
        return raised
    return replace(raised, proof_maximum=proof[0], proof_signature=proof[1])


def _row(channel: JournalChannel) -> dict[str, object]:
    numbers = {"new_incarnation": channel.incarnation, "new_seq": channel.seq, "new_charged": channel.charged}
    proof = {"new_proof_maximum": str(channel.proof_maximum), "new_proof_signature": channel.proof_signature.hex()}
    return {"channel": channel.channel_id, **numbers, **proof}
