"""Decodes the replies of the scripts and the journal's entries.

The two orders that Python and Lua share are named here and nowhere else: `Reply` is what `reply` in `scripts/_head.lua`
builds, and `RECORD` what `scripts/charge.lua` encodes.
"""

from __future__ import annotations

from typing import NamedTuple

import orjson

from channels.metering import ChargeRecord, Outcome, StepResult

RECORD = ("digest", "call", "incarnation", "seq", "before", "after", "at_ms", "body")
"""The parts of a charged call's record; numbers are decimal strings, as in the journal."""


class Reply(NamedTuple):
    """A step's reply; amounts in atomic units, `proof_signature` in hexadecimal, absent values empty."""

    outcome: bytes
    charged: int
    held: int
    usable: int
    claimed: int
    refund_nonce: int
    proof_maximum: int
    proof_signature: bytes
    record: bytes
    stored: bytes


def read_result(raw: bytes | list[bytes]) -> StepResult:
    """Decodes a step's reply; an outcome alone means that the channel's amounts are not known."""
    if isinstance(raw, bytes):
        return StepResult(Outcome(raw.decode()))
    reply = Reply(*raw)  # type: ignore[arg-type]
    return StepResult(
        outcome=Outcome(reply.outcome.decode()),
        charged=reply.charged,
        held=reply.held,
        usable=reply.usable,
        claimed=reply.claimed,
        refund_nonce=reply.refund_nonce,
        proof_maximum=reply.proof_maximum,
        proof_signature=bytes.fromhex(reply.proof_signature.decode()),
        record=read_record(reply.record) if reply.record else None,
        stored=reply.stored or None,
    )


def read_record(text: bytes) -> ChargeRecord:
    """Decodes a charged call's record."""
    fields = dict(zip(RECORD, orjson.loads(text), strict=True))
    return ChargeRecord(
        call_id=fields["call"],
        incarnation=int(fields["incarnation"]),
        seq=int(fields["seq"]),
        before=int(fields["before"]),
        after=int(fields["after"]),
        at_ms=int(fields["at_ms"]),
        body=fields["body"],
    )


def read_text(value: bytes) -> str:
    """Decodes a name or number."""
    return value.decode()


def read_entry(raw: dict[bytes, bytes] | list[bytes]) -> dict[str, str]:
    """Decodes a journal entry, in either of the protocol's forms; the parts of its record become fields."""
    pairs = raw.items() if isinstance(raw, dict) else zip(raw[::2], raw[1::2], strict=True)
    fields = {read_text(name): read_text(value) for name, value in pairs}
    if text := fields.pop("record", ""):
        fields |= dict(zip(RECORD, orjson.loads(text), strict=True))
        fields["amount"] = str(int(fields["after"]) - int(fields["before"]))
        fields["key"] = fields["call"] if fields["key"] else ""
    return fields
