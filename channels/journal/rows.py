"""Reads rows of the journal as values: charges, channels and dead letters.

Reading is strict: a misread entry is lost money.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import orjson
from sqlalchemy import Connection, select

from channels.errors import ChannelError
from channels.journal.tables import channels, members, receipts
from channels.metering import ChargeRecord
from channels.protocol import HASH, ChannelConfig, parse_amount
from channels.receipts import Receipt

Fields = Mapping[str, str]
NUMBER_LIMIT = 2**63
SIGNATURE_BYTES = 65


class StaleToken(ChannelError):
    """Another treasury has taken over: nothing was written."""

    def __init__(self) -> None:
        super().__init__("stale_token", "another treasury has taken over")


class JournalError(ChannelError):
    """An entry contradicts what is stored: nothing was written, a person must look."""


@dataclass(frozen=True, slots=True)
class JournalChannel:
    """A channel in the journal, to which a store is raised after a loss. Amounts in atomic units."""

    channel_id: str
    config: ChannelConfig
    incarnation: int
    charged: int
    seq: int
    proof_maximum: int
    proof_signature: bytes = field(repr=False)
    settled: int = 0
    quarantine: str = ""
    settled_seq: int = 0


@dataclass(frozen=True, slots=True)
class Stored:
    """A receipt, its number in the journal, and the journal's chain before and after it."""

    receipt: Receipt
    number: int
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A journal entry that could not be stored as a charge; `code` says why, `at_ms` when."""

    bucket: int
    stream_id: str
    code: str
    at_ms: int
    fields: Fields = field(repr=False)


def read_receipt(fields: Fields) -> Receipt:
    """The receipt in a journal entry's fields.

    Raises:
        JournalError: the fields are not those of a charge.
    """
    try:
        receipt = Receipt.of_charge(
            fields["channel"],
            fields["call"],
            _number(fields, "incarnation"),
            _number(fields, "seq"),
            _number(fields, "before"),
            _number(fields, "after"),
            _number(fields, "at_ms"),
            fields["body"],
        )
        if _number(fields, "amount") != receipt.amount:
            raise ValueError("the amount is not what was charged")
        return receipt
    except (ChannelError, LookupError, TypeError, ValueError) as error:
        raise JournalError("journal_entry_invalid", "the fields are not those of a charge") from error


def read_record(fields: Fields) -> ChargeRecord:
    """The record that the store kept of a charge, from its journal entry's fields."""
    receipt = read_receipt(fields)
    numbers = (receipt.incarnation, receipt.seq, receipt.before, receipt.after, receipt.at_ms)
    return ChargeRecord(receipt.call_id, *numbers, fields["body"])


def read_proof(fields: Fields) -> tuple[int, bytes]:
    """The ceiling and signature that a charge can be claimed with.

    Raises:
        JournalError: they are not those of a charge.
    """
    maximum = parse_amount(fields["proof_max"], "proof_max")
    signature = bytes.fromhex(fields["proof_sig"].removeprefix("0x"))
    if len(signature) > SIGNATURE_BYTES or not (fields["key"] == "" or HASH.fullmatch(fields["key"])):
        raise JournalError("journal_entry_invalid", "a signature has 65 bytes, a key is a keyed digest")
    return maximum, signature


def load_channel(conn: Connection, channel_id: str) -> JournalChannel | None:
    """A channel inside a transaction."""
    row = conn.execute(select(channels).where(channels.c.channel_id == channel_id)).mappings().one_or_none()
    return None if row is None else read_channel(dict(row))


def load_channels(conn: Connection, channel_ids: Iterable[str]) -> dict[str, JournalChannel]:
    """Those of the named channels that the journal has."""
    rows = conn.execute(select(channels).where(channels.c.channel_id.in_(set(channel_ids)))).mappings()
    return {row["channel_id"]: read_channel(dict(row)) for row in rows}


def load_receipts(conn: Connection, channel_id: str | None = None, epoch: int | None = None) -> list[Receipt]:
    """Receipts in journal order inside a transaction."""
    chosen = select(receipts.c.fields).order_by(receipts.c.number)
    if channel_id is not None:
        chosen = chosen.where(receipts.c.channel_id == channel_id)
    if epoch is not None:
        chosen = chosen.join(members, members.c.receipt == receipts.c.number).where(members.c.epoch == epoch)
    return [read_receipt(orjson.loads(text)) for text in conn.scalars(chosen)]


def columns(fields: Fields) -> dict[str, object]:
    """The columns of an entry's row."""
    numbers = {name: _number(fields, name) for name in ("incarnation", "seq", "amount", "at_ms")}
    return numbers | {"channel_id": fields["channel"], "call_id": fields["call"], "key": fields["key"] or None}


def _number(fields: Fields, name: str) -> int:
    value = parse_amount(fields[name], name)
    if value >= NUMBER_LIMIT:
        raise JournalError("journal_entry_invalid", f"{name} is below 2^63")
    return value


def read_channel(row: Mapping[str, object]) -> JournalChannel:
    """A channel from its row."""
    values = {name: row[name] for name in JournalChannel.__slots__}
    values["config"] = ChannelConfig.from_json(orjson.loads(str(values["config"])))
    values["proof_maximum"] = int(str(values["proof_maximum"]))
    values["proof_signature"] = bytes.fromhex(str(values["proof_signature"]))
    return JournalChannel(**values)  # type: ignore[arg-type]


def dump(value: object) -> str:
    """Canonical JSON."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()
