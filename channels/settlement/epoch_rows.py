"""Reads and writes the rows of settlement epochs: receipts taken into an epoch, claims, credits and roots."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import orjson
from sqlalchemy import Connection, RowMapping, insert, select, update

from channels.journal import JournalError, channels, epochs, load_channel, members, read_receipt, receipts
from channels.ledger import ClaimRow, Credit
from channels.protocol import ChannelConfig, Voucher
from channels.receipts import Receipt, merkle_root
from channels.settlement.epoch import ClaimSelection, Epoch
from channels.settlement.merkle_pieces import Piece, pieces_of

PENDING, CLOSED, ABANDONED = "pending", "closed", "abandoned"


def credits_of(taken: Sequence[Receipt]) -> tuple[Credit, ...]:
    """What receipts owe, summed per owner, carrier and DApp."""
    sums: Counter[tuple[str, str, str]] = Counter()
    for receipt in taken:
        for owed in receipt.owed:
            sums[owed.share.owner, owed.share.carrier, owed.dapp] += owed.share.amount
    return tuple(Credit(*who, amount) for who, amount in sorted(sums.items()) if amount)


def read_pieces(conn: Connection, number: int, chain_id: int) -> list[Piece]:
    """The Merkle levels of an epoch, computed from its receipts."""
    chosen = select(receipts.c.number, receipts.c.fields).join(members, members.c.receipt == receipts.c.number)
    rows = conn.execute(chosen.where(members.c.epoch == number).order_by(receipts.c.number))
    return list(pieces_of([(place, read_receipt(orjson.loads(text)).digest(chain_id)) for place, text in rows]))


def take(conn: Connection, selection: ClaimSelection) -> tuple[int, list[tuple[int, Receipt]]]:
    """Marks the receipts of a claim as settled; returns what was settled before, and (number, receipt) of each.

    Raises:
        JournalError: `epoch_inexact`.
    """
    identity = selection.voucher.channel_id
    channel = load_channel(conn, identity)
    part = waiting(conn, identity, upto=selection.last_seq)
    # The claim is exactly what its receipts say: from the last settled total, without a hole, to the new one.
    ends = (part[0][1].before, part[-1][1].after) if part else None
    total = sum(receipt.amount for _, receipt in part)
    if channel is None or ends != (channel.settled, selection.total) or total != selection.total - channel.settled:
        raise JournalError("epoch_inexact", f"the receipts of {identity} do not add up to its claim")
    values = {"settled": selection.total, "settled_seq": part[-1][1].seq}
    conn.execute(update(channels).where(channels.c.channel_id == identity).values(**values))
    return channel.settled, part


def insert_epoch(
    conn: Connection, number: int, claims: list[dict[str, object]], taken: list[tuple[int, Receipt]], chain_id: int
) -> None:
    """Writes an epoch with its root and credits.

    Raises:
        JournalError: `epoch_inexact`.
    """
    inside = [receipt for _, receipt in taken]
    credits = credits_of(inside)
    claimed = sum(receipt.amount for receipt in inside)
    receivers = {str(claim["receiver"]) for claim in claims}
    if len(receivers) != 1 or claimed != sum(credit.amount for credit in credits):
        raise JournalError("epoch_inexact", "an epoch has one receiver and credits exactly what it claims")
    conn.execute(
        insert(epochs).values(
            number=number,
            status=PENDING,
            root="0x" + merkle_root([receipt.digest(chain_id) for receipt in inside]).hex(),
            receiver=receivers.pop(),
            claimed=claimed,
            claims=orjson.dumps(claims).decode(),
            credits=orjson.dumps([[part.owner, part.carrier, part.dapp, part.amount] for part in credits]).decode(),
        )
    )


def waiting(
    conn: Connection, channel_id: str, count: int | None = None, upto: int | None = None
) -> list[tuple[int, Receipt]]:
    """(number, receipt) of what a channel has not settled yet, in order; up to `count` rows or the number `upto`."""
    settled = select(channels.c.settled_seq).where(channels.c.channel_id == channel_id).scalar_subquery()
    chosen = select(receipts.c.number, receipts.c.fields).where(
        receipts.c.channel_id == channel_id, receipts.c.seq > settled
    )
    if upto is not None:
        chosen = chosen.where(receipts.c.seq <= upto)
    rows = conn.execute(chosen.order_by(receipts.c.seq).limit(count))
    return [(number, read_receipt(orjson.loads(text))) for number, text in rows]


def claim_json(selection: ClaimSelection, before: int) -> dict[str, object]:
    """A claim as an epoch keeps it."""
    voucher = selection.voucher.to_json()
    return {
        "config": selection.config.to_json(),
        "receiver": selection.config.receiver,
        "voucher": voucher,
        "before": before,
        "total": selection.total,
    }


def select_epoch(conn: Connection, condition: object) -> RowMapping | None:
    """The one row that a condition chooses, or None."""
    return conn.execute(select(epochs).where(condition)).mappings().one_or_none()  # type: ignore[arg-type]


def known_epoch(conn: Connection, number: int) -> Epoch:
    """An epoch by its number.

    Raises:
        JournalError: `epoch_unknown`.
    """
    row = select_epoch(conn, epochs.c.number == number)
    if row is None:
        raise JournalError("epoch_unknown", f"there is no epoch {number}")
    return epoch_of(row)


def epoch_of(row: RowMapping) -> Epoch:
    """A row as an epoch."""
    rows = []
    for claim in orjson.loads(row["claims"]):
        raw = claim["voucher"]
        voucher = Voucher(raw["channelId"], int(raw["maxClaimableAmount"]), bytes.fromhex(raw["signature"][2:]))
        rows.append(ClaimRow(ChannelConfig.from_json(claim["config"]), voucher, claim["total"]))
    return Epoch(
        number=row["number"],
        status=row["status"],
        root=row["root"],
        receiver=row["receiver"],
        claimed=row["claimed"],
        rows=tuple(rows),
        credits=tuple(Credit(*credit) for credit in orjson.loads(row["credits"])),
        transactions=tuple(orjson.loads(row["transactions"])),
        closed_ms=row["closed_ms"],
    )
