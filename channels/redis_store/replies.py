"""What the store's scripts answer, read into values; and a charged call as they keep it."""

from __future__ import annotations

import orjson

from channels.metering import ChargeRecord, Outcome, StepResult

RECORD = ("digest", "call", "incarnation", "seq", "before", "after", "at_ms", "body")
"""The parts of a record, in their order; numbers are decimal strings, as the journal has them."""


def read_answer(reply: bytes | list[bytes]) -> StepResult:
    """What a step of a call answers, see `scripts/_head.lua`: an outcome alone if there is no channel to tell of."""
    if isinstance(reply, bytes):
        return StepResult(Outcome(reply.decode()))
    outcome = Outcome(reply[0].decode())
    charged, held, usable, claimed, refund_nonce, proof_maximum = (int(part) for part in reply[1:7])
    return StepResult(
        outcome,
        charged,
        held,
        usable,
        claimed,
        refund_nonce,
        proof_maximum,
        bytes.fromhex(reply[7].decode()),
        read_record(reply[8]) if reply[8] else None,
        reply[9] or None,
    )


def read_record(text: bytes) -> ChargeRecord:
    """A charged call as `charge.lua` keeps it."""
    _, call_id, incarnation, seq, before, after, at_ms, body = orjson.loads(text)
    return ChargeRecord(call_id, int(incarnation), int(seq), int(before), int(after), int(at_ms), body)


def read_text(value: bytes) -> str:
    """A name or a number of the store's."""
    return value.decode()


def read_entry(raw: dict[bytes, bytes] | list[bytes]) -> dict[str, str]:
    """The fields of one entry of a journal, in either of the protocol's forms; its record's are beside them."""
    pairs = raw.items() if isinstance(raw, dict) else zip(raw[::2], raw[1::2], strict=True)
    fields = {read_text(name): read_text(value) for name, value in pairs}
    if text := fields.pop("record", ""):
        fields |= dict(zip(RECORD, orjson.loads(text), strict=True))
        fields["amount"] = str(int(fields["after"]) - int(fields["before"]))
        fields["key"] = fields["call"] if fields["key"] else ""
    return fields
