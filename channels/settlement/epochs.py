"""Keeps settlement epochs in SQL: the receipts claimed together, the claims, the credits and the Merkle root.

An epoch is written whole before its claim is sent and marked when it is paid, so the next treasury finishes it after a
crash at any point.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import orjson
from sqlalchemy import delete, func, insert, select, update

from channels.journal import (
    WAITING,
    Journal,
    JournalChannel,
    JournalError,
    channels,
    dead_letters,
    epochs,
    members,
    read_channel,
    read_receipt,
    receipts,
)
from channels.receipts import Proof, Receipt, leaf_node
from channels.settlement.epoch import ClaimSelection, Epoch, Totals
from channels.settlement.epoch_rows import (
    ABANDONED,
    CLOSED,
    PENDING,
    claim_json,
    epoch_of,
    insert_epoch,
    known_epoch,
    read_pieces,
    select_epoch,
    take,
    waiting,
)
from channels.settlement.merkle_pieces import Piece, load_pieces, path, store_pieces

NAMES = 500
"""Channels named in one SQL statement, whose length the engines bound."""


class Epochs:
    """The epochs of one journal.

    Args:
        journal: where they are.
        on_computed: called with the Merkle levels of a closed epoch that a proof had to compute, to store them.
    """

    def __init__(
        self, journal: Journal, on_computed: Callable[[int, Sequence[Piece]], None] = lambda number, pieces: None
    ) -> None:
        self._journal, self._on_computed = journal, on_computed

    def unsettled(self) -> Totals:
        """The sums that wait, without quarantined channels."""
        waiting = channels.c.charged - channels.c.settled
        sums = select(func.sum(waiting), func.max(waiting), func.count()).where(WAITING)
        behind = (receipts.c.channel_id == channels.c.channel_id) & (receipts.c.seq > channels.c.settled_seq)
        oldest = select(func.min(receipts.c.at_ms)).select_from(channels).join(receipts, behind)
        with self._journal.read() as conn:
            amount, largest, count = conn.execute(sums).one()
            first = conn.scalar(oldest.where(WAITING, receipts.c.amount > 0))
            return Totals(int(amount or 0), int(largest or 0), first, count)

    def counts(self) -> tuple[int, int, int]:
        """Channels in all, quarantined channels, and journal entries that could not be stored."""
        with self._journal.read() as conn:
            total = conn.scalar(select(func.count()).select_from(channels))
            quarantined = conn.scalar(select(func.count()).select_from(channels).where(channels.c.quarantine != ""))
            refused = conn.scalar(select(func.count()).select_from(dead_letters))
        return int(total or 0), int(quarantined or 0), int(refused or 0)

    def quarantined(self) -> list[JournalChannel]:
        """Channels that are kept out of settlement until a person releases them."""
        with self._journal.read() as conn:
            chosen = select(channels).where(channels.c.quarantine != "").order_by(channels.c.channel_id)
            return [read_channel(dict(row)) for row in conn.execute(chosen).mappings()]

    def next_channels(self, count: int) -> list[JournalChannel]:
        """Up to `count` channels to settle together: of one receiver and one authorizer."""
        order = (channels.c.receiver, channels.c.authorizer, channels.c.channel_id)
        with self._journal.read() as conn:
            first = conn.execute(select(*order).where(WAITING).order_by(*order).limit(1)).one_or_none()
            if first is None:
                return []
            same = (channels.c.receiver == first.receiver) & (channels.c.authorizer == first.authorizer)
            chosen = select(channels).where(WAITING, same).order_by(channels.c.channel_id).limit(count)
            return [read_channel(dict(row)) for row in conn.execute(chosen).mappings()]

    def owe(self, channel_ids: Sequence[str]) -> bool:
        """True if one of these channels owes something that can be settled."""
        parts = [channel_ids[place : place + NAMES] for place in range(0, len(channel_ids), NAMES)]
        with self._journal.read() as conn:
            counts = (select(func.count()).where(WAITING, channels.c.channel_id.in_(part)) for part in parts)
            return any(conn.scalar(count) for count in counts)

    def owe_others(self, authorizer: str) -> bool:
        """True if a channel whose authorizer is not `authorizer` owes something."""
        with self._journal.read() as conn:
            return bool(conn.scalar(select(func.count()).where(WAITING, channels.c.authorizer != authorizer)))

    def waiting(self, channel_id: str, count: int | None = None) -> list[Receipt]:
        """A channel's first `count` receipts that are in no epoch, in sequence; all by default."""
        with self._journal.read() as conn:
            return [receipt for _, receipt in waiting(conn, channel_id, count)]

    def quarantine(self, channel_id: str, reason: str, token: int) -> None:
        """Keeps a channel out of further epochs until a person releases it; `reason` is a code."""
        with self._journal.write(token) as conn:
            conn.execute(update(channels).where(channels.c.channel_id == channel_id).values(quarantine=reason))

    def release(self, channel_id: str) -> None:
        """Lets a quarantined channel be settled again; needs no token, because it moves no money."""
        with self._journal.write_unfenced() as conn:
            conn.execute(update(channels).where(channels.c.channel_id == channel_id).values(quarantine=""))

    def open(self, token: int, selections: Sequence[ClaimSelection], chain_id: int) -> Epoch:
        """Writes a pending epoch: claims, credits, receipts and root, all or nothing.

        Raises:
            JournalError: another epoch is pending, or the selections do not add up to their receipts.
        """
        with self._journal.write(token) as conn:
            if select_epoch(conn, epochs.c.status == PENDING) is not None:
                raise JournalError("epoch_pending", "finish the pending epoch first")
            number = int(conn.scalar(select(func.max(epochs.c.number))) or 0) + 1
            claims, taken = [], []
            for selection in selections:
                before, part = take(conn, selection)
                claims.append(claim_json(selection, before))
                taken += part
            taken.sort(key=lambda item: item[0])
            insert_epoch(conn, number, claims, taken, chain_id)
            conn.execute(insert(members), [{"receipt": place, "epoch": number} for place, _ in taken])
            return known_epoch(conn, number)

    def close(self, number: int, transactions: Sequence[str], at_ms: int, token: int, chain_id: int) -> Epoch:
        """Marks an epoch as done, with the ledger's transactions and the time, and stores its Merkle levels."""
        with self._journal.write(token) as conn:
            values = {"status": CLOSED, "transactions": orjson.dumps(list(transactions)).decode(), "closed_ms": at_ms}
            conn.execute(update(epochs).where(epochs.c.number == number, epochs.c.status == PENDING).values(**values))
            store_pieces(conn, number, read_pieces(conn, number, chain_id))
            return known_epoch(conn, number)

    def abandon(self, number: int, token: int) -> None:
        """Frees the receipts of an epoch whose claim the ledger refused, so nothing of it has happened."""
        with self._journal.write(token) as conn:
            row = select_epoch(conn, epochs.c.number == number)
            if row is None or row["status"] != PENDING:
                raise JournalError("epoch_not_pending", "only a pending epoch can be abandoned")
            conn.execute(delete(members).where(members.c.epoch == number))
            for claim in orjson.loads(row["claims"]):
                name = claim["voucher"]["channelId"]
                last = select(func.max(receipts.c.seq)).join(members, members.c.receipt == receipts.c.number)
                before = int(conn.scalar(last.where(receipts.c.channel_id == name)) or 0)
                values = {"settled": int(claim["before"]), "settled_seq": before}
                conn.execute(update(channels).where(channels.c.channel_id == name).values(**values))
            conn.execute(update(epochs).where(epochs.c.number == number).values(status=ABANDONED))

    def pending(self) -> Epoch | None:
        """The epoch that is under way, if one is."""
        with self._journal.read() as conn:
            row = select_epoch(conn, epochs.c.status == PENDING)
        return None if row is None else epoch_of(row)

    def epoch(self, number: int) -> Epoch | None:
        """An epoch by number."""
        with self._journal.read() as conn:
            row = select_epoch(conn, epochs.c.number == number)
        return None if row is None else epoch_of(row)

    def of(self, call_id: str) -> Epoch | None:
        """The epoch that a call's receipt is in, if it is in one."""
        with self._journal.read() as conn:
            number = conn.scalar(select(members.c.epoch).join(receipts).where(receipts.c.call_id == call_id))
        return None if number is None else self.epoch(number)

    def proof(self, call_id: str, chain_id: int) -> Proof | None:
        """Proves that a call's receipt is under its epoch's root; None while it is in no epoch.

        Raises:
            JournalError: what is stored does not lead from the receipt to the root.
        """
        chosen = (
            select(receipts.c.number, receipts.c.fields, epochs.c.number.label("epoch"), epochs.c.root, epochs.c.status)
            .join(members, members.c.receipt == receipts.c.number)
            .join(epochs, epochs.c.number == members.c.epoch)
            .where(receipts.c.call_id == call_id)
        )
        with self._journal.read() as conn:
            row = conn.execute(chosen).one_or_none()
            if row is None:
                return None
            leaf = read_receipt(orjson.loads(row.fields)).digest(chain_id)
            pieces = load_pieces(conn, row.epoch, row.number)
            if not pieces:
                pieces = read_pieces(conn, row.epoch, chain_id)
                if row.status == CLOSED:
                    self._on_computed(row.epoch, pieces)
        leads = path(pieces, row.number)
        if leads.node != leaf_node(leaf) or "0x" + leads.root.hex() != row.root:
            raise JournalError("journal_tampered", f"the Merkle levels of epoch {row.epoch} do not lead to its root")
        return Proof(row.epoch, row.root, leaf, leads.steps)

    def store_levels(self, number: int, pieces: Sequence[Piece], token: int) -> None:
        """Stores the Merkle levels of an epoch that was closed by a version that did not; again is harmless."""
        with self._journal.write(token) as conn:
            store_pieces(conn, number, pieces)
