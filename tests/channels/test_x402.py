"""Parses wire types strictly: what is written is read back equal, and any other bytes raise MalformedPayment."""

from __future__ import annotations

import base64
import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from channels.errors import MalformedPayment
from channels.metering.quote import Payee, Quote
from channels.protocol.signer import Signer
from channels.protocol.x402 import ChannelConfig, Deposit, Payment, Voucher, decode_header, encode_header, parse_amount

A = Signer(b"\1" * 32).address
CONFIG = ChannelConfig(A, A, A, A, A, 900, "0x" + "00" * 32)
PAYMENT = Payment(
    "deposit",
    {"scheme": "batch-settlement"},
    CONFIG,
    Voucher("0x" + "ab" * 32, 1000, bytes(65)),
    Deposit(5000, 0, 4_102_444_800, "0x" + "5a" * 32, bytes(65)),
)


def test_a_payment_survives_its_header() -> None:
    assert Payment.from_header(PAYMENT.to_header()) == PAYMENT


@pytest.mark.parametrize("kind", ["voucher", "refund"])
def test_other_kinds_survive_too(kind: Any) -> None:
    payment = Payment(kind, {}, CONFIG, PAYMENT.voucher, None, 7 if kind == "refund" else None)
    assert Payment.from_header(payment.to_header()) == payment


NOT_AMOUNTS = ["-1", "+1", " 1", "1 ", "1e3", "0x10", "1.0", "01", "", "\u0661", "1_0", "1\n", str(2**128), str(2**256)]


@pytest.mark.parametrize("raw", [*NOT_AMOUNTS, 5, 5.0, None, True])
def test_amounts_that_are_not_strict_decimals_are_refused(raw: object) -> None:
    with pytest.raises(MalformedPayment):
        parse_amount(raw, "amount")


@given(value=st.integers(0, 2**128 - 1))
def test_every_amount_below_2_128_is_read_exactly(value: int) -> None:
    assert parse_amount(str(value), "amount") == value


@given(raw=st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_no_header_breaks_the_reader(raw: bytes) -> None:
    for header in (raw.decode("latin-1"), base64.b64encode(raw).decode()):
        with pytest.raises(MalformedPayment):
            Payment.from_header(header)


def damaged(path: list[str], value: object) -> str:
    tree = decode_header(PAYMENT.to_header())
    spot: Any = tree
    for name in path[:-1]:
        spot = spot[name]
    spot[path[-1]] = value
    return encode_header(tree)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        pytest.param(["x402Version"], 1, id="version 1"),
        pytest.param(["payload"], [], id="payload a list"),
        pytest.param(["payload", "type"], "claim", id="a claim"),
        pytest.param(["payload", "voucher"], None, id="no voucher"),
        pytest.param(["payload", "voucher", "channelId"], "0x12", id="short id"),
        pytest.param(["payload", "voucher", "channelId"], " 0x" + "ab" * 32, id="blank before the id"),
        pytest.param(["payload", "voucher", "channelId"], "0X" + "ab" * 32, id="0X"),
        pytest.param(["payload", "voucher", "signature"], "0x" + "00" * 64, id="64 bytes"),
        pytest.param(["payload", "voucher", "signature"], "00" * 66, id="no 0x"),
        pytest.param(["payload", "voucher", "signature"], "0x" + "zz" * 65, id="not hex"),
        pytest.param(["payload", "voucher", "maxClaimableAmount"], 1000, id="a JSON number"),
        pytest.param(["payload", "channelConfig", "withdrawDelay"], "900", id="delay a string"),
        pytest.param(["payload", "channelConfig", "withdrawDelay"], True, id="delay a bool"),
        pytest.param(["payload", "channelConfig", "payer"], "0x12", id="short address"),
        pytest.param(["payload", "deposit", "authorization"], {}, id="no authorization"),
    ],
)
def test_damaged_payments_are_refused(path: list[str], value: object) -> None:
    with pytest.raises(MalformedPayment):
        Payment.from_header(damaged(path, value))


@pytest.mark.parametrize(
    "text",
    [
        pytest.param('{"a":1,"a":2}', id="plainly"),
        pytest.param('{"b":[{"a":{"c":1,"d":2,"c":1}}]}', id="deep inside, the same value"),
        pytest.param('{"a":1,"\\u0061":2}', id="once escaped"),
        pytest.param('{"":"\\"", "":0}', id="with a quote in a value"),
    ],
)
def test_a_repeated_name_is_refused(text: str) -> None:
    with pytest.raises(MalformedPayment, match="repeats a name"):
        decode_header(base64.b64encode(text.encode()).decode())


trees = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)


@given(value=st.dictionaries(st.text(), trees, max_size=4), ascii=st.booleans())
def test_what_json_writes_repeats_no_name(value: Any, ascii: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii).encode("utf-8", "replace")
    if len(text) < 6_000:
        assert decode_header(base64.b64encode(text).decode()) == value


def test_one_channel_id_has_one_spelling() -> None:
    header = damaged(["payload", "voucher", "channelId"], "0x" + "AB" * 32)
    assert Payment.from_header(header).voucher.channel_id == "0x" + "ab" * 32


def test_a_quote_is_accepted_only_as_it_was_made() -> None:
    quote = Quote(Payee(31337, A, "Dev Dollar", "1", A, A, 900), 1000, 10_000)
    wire = decode_header(quote.required_header("http://x/", "why"))
    (requirement,) = wire["accepts"]
    assert quote.accepted_by(requirement)
    state = {"channelState": {"x": 1}, "voucherState": {}}
    assert quote.accepted_by(requirement | {"extra": requirement["extra"] | state})
    for name, value in {
        "amount": "1",
        "network": "eip155:1",
        "payTo": "0x",
        "maxTimeoutSeconds": 1,
        "extra": None,
    }.items():
        assert not quote.accepted_by(requirement | {name: value}), name
    assert not quote.accepted_by(requirement | {"more": 1})
    assert orjson.loads(orjson.dumps(requirement))["extra"]["withdrawDelay"] == 900
