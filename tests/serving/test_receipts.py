"""A receipt that is signed from the values of its charge is the one that the stored text gives."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from channels.metering import ChargeRecord
from channels.protocol import Signer
from channels.receipts import Part, Share, split_charge
from serving.replica.receipts import ReceiptBody, ReceiptBuilder

SIGNER = Signer(b"\7" * 32)
OWNERS = (("knowledge", Signer(b"\5" * 32).address, 6_000), ("compute", Signer(b"\6" * 32).address, 4_000))
HEX = st.integers(0, 2**256 - 1).map(lambda value: f"0x{value:064x}")
NAME = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=12)


@st.composite
def parts(draw: st.DrawFn) -> tuple[Part, ...]:
    amounts = draw(st.lists(st.integers(0, 2**60), max_size=3))
    return tuple(
        Part(
            depth=1,
            dapp=draw(NAME),
            version=draw(NAME),
            model_digest=draw(HEX),
            request_digest=draw(HEX),
            result_digest=draw(HEX),
            units=draw(st.integers(0, 2**40)),
            amount=amount,
            shares=(Share("remote", OWNERS[0][1], amount),),
        )
        for amount in amounts
    )


@given(
    parts(), NAME, NAME, HEX, HEX, HEX, HEX, HEX, st.integers(0, 2**60), st.integers(0, 2**60), st.integers(0, 2**40)
)
def test_from_the_values_or_from_the_stored_text_it_is_the_same(
    children: tuple[Part, ...],
    dapp: str,
    version: str,
    model: str,
    request: str,
    result: str,
    channel: str,
    call: str,
    own: int,
    before: int,
    number: int,
) -> None:
    body = ReceiptBody(dapp, version, model, request, result, number, split_charge(own, OWNERS), children)
    amount = own + sum(part.amount for part in children)
    record = ChargeRecord(call, 1, number, before, before + amount, number, body.to_json())
    builder = ReceiptBuilder(lambda *chunks: "", SIGNER, 31337)
    assert builder.header(channel, record, body) == builder.header(channel, record)
