"""Parses and writes the wire types and headers of x402 v2 `batch-settlement`, as x402 2.25 has them.

Holds no keys and no channel state. An amount is a decimal string on the wire and an `int` here. Parsing is strict,
because two readings of one byte string are a double spend.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import orjson
from eth_utils import is_hex_address, to_checksum_address

from channels.errors import X402, MalformedPayment

SCHEME = "batch-settlement"
MAX_HEADER_BYTES = 8_192
"""Longest PAYMENT-SIGNATURE that is parsed: an unbounded header is free CPU. A stock deposit is below 2 000 bytes."""
UINT128_MAX = 2**128 - 1
DECIMAL = re.compile(r"(?:0|[1-9][0-9]{0,38})", re.ASCII)
HASH = re.compile(r"0x[0-9a-f]{64}", re.ASCII)
HEX = re.compile(r"0x(?:[0-9a-fA-F]{2})*", re.ASCII)
ZERO_ADDRESS = "0x" + "00" * 20
STATE_FIELDS = ("channelState", "voucherState")
"""Fields that a corrective 402 adds to `extra`; a client echoes them, and they are no part of the price."""
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ChannelConfig:
    """The seven fields that define a channel; its id is their EIP-712 digest. Addresses are checksummed."""

    payer: str
    payer_authorizer: str
    receiver: str
    receiver_authorizer: str
    token: str
    withdraw_delay: int
    salt: str

    def to_json(self) -> Json:
        """The wire form."""
        return {
            "payer": self.payer,
            "payerAuthorizer": self.payer_authorizer,
            "receiver": self.receiver,
            "receiverAuthorizer": self.receiver_authorizer,
            "token": self.token,
            "withdrawDelay": self.withdraw_delay,
            "salt": self.salt,
        }

    @classmethod
    def from_json(cls, raw: object) -> ChannelConfig:
        """Parses a wire `channelConfig`.

        Raises:
            MalformedPayment: a field is missing or malformed.
        """
        data = _object(raw, "channelConfig")
        delay = data.get("withdrawDelay")
        if type(delay) is not int or not 0 <= delay < 2**40:
            raise _bad("channelConfig.withdrawDelay is a JSON integer of seconds")
        return cls(
            payer=_address(data, "payer"),
            payer_authorizer=_address(data, "payerAuthorizer"),
            receiver=_address(data, "receiver"),
            receiver_authorizer=_address(data, "receiverAuthorizer"),
            token=_address(data, "token"),
            withdraw_delay=delay,
            salt=_hash(data, "channelConfig.salt"),
        )


@dataclass(frozen=True, slots=True)
class Voucher:
    """A payer's signature that up to `max_claimable` cumulative atomic units may be claimed from the channel."""

    channel_id: str
    max_claimable: int
    signature: bytes

    def to_json(self) -> Json:
        """The wire form."""
        return {
            "channelId": self.channel_id,
            "maxClaimableAmount": str(self.max_claimable),
            "signature": "0x" + self.signature.hex(),
        }


@dataclass(frozen=True, slots=True)
class Deposit:
    """An ERC-3009 authorization that moves `amount` from the payer's wallet into the channel; times in Unix seconds."""

    amount: int
    valid_after: int
    valid_before: int
    salt: str
    signature: bytes

    def to_json(self) -> Json:
        """The wire form."""
        authorization = {
            "validAfter": str(self.valid_after),
            "validBefore": str(self.valid_before),
            "salt": self.salt,
            "signature": "0x" + self.signature.hex(),
        }
        return {"amount": str(self.amount), "authorization": {"erc3009Authorization": authorization}}


@dataclass(frozen=True, slots=True)
class Payment:
    """One PAYMENT-SIGNATURE header: the accepted quote, the channel, its voucher, and a deposit or refund if any."""

    kind: Literal["deposit", "voucher", "refund"]
    accepted: Json
    config: ChannelConfig
    voucher: Voucher
    deposit: Deposit | None = None
    refund_amount: int | None = None

    def to_header(self) -> str:
        """Base64 of the wire JSON."""
        payload: Json = {"type": self.kind, "channelConfig": self.config.to_json(), "voucher": self.voucher.to_json()}
        if self.deposit is not None:
            payload["deposit"] = self.deposit.to_json()
        if self.refund_amount is not None:
            payload["amount"] = str(self.refund_amount)
        return encode_header({"x402Version": 2, "accepted": self.accepted, "payload": payload})

    @classmethod
    def from_header(cls, header: str) -> Payment:
        """Parses a PAYMENT-SIGNATURE header.

        Raises:
            MalformedPayment: the message names the field, never its value.
        """
        data = decode_header(header)
        version = data.get("x402Version")
        if type(version) is not int or version != 2:
            raise MalformedPayment("invalid_x402_version", "x402Version is 2")
        payload = _object(data.get("payload"), "payload")
        kind = payload.get("type")
        if kind not in ("deposit", "voucher", "refund"):
            raise MalformedPayment(X402 + "payload_type", "payload.type is deposit, voucher or refund")
        amount = payload.get("amount")
        return cls(
            kind=kind,
            accepted=_object(data.get("accepted"), "accepted"),
            config=ChannelConfig.from_json(payload.get("channelConfig")),
            voucher=_voucher(payload.get("voucher")),
            deposit=_deposit(payload.get("deposit")) if kind == "deposit" else None,
            refund_amount=parse_amount(amount, "payload.amount") if kind == "refund" and amount is not None else None,
        )


def encode_header(value: Json) -> str:
    """Base64 of compact JSON, the form of every x402 header."""
    return base64.b64encode(orjson.dumps(value)).decode()


def decode_header(header: str) -> Json:
    """The JSON object inside a base64 x402 header, bounded in size and depth.

    Raises:
        MalformedPayment: too long, not base64, not JSON, not an object, or one object repeats a name.
    """
    if len(header) > MAX_HEADER_BYTES:
        raise MalformedPayment("header_too_large", f"a payment header is at most {MAX_HEADER_BYTES} bytes")
    try:
        text = base64.b64decode(header, validate=True)
        value = orjson.loads(text)
        repeats = _repeats_a_name(text, value)
    except (binascii.Error, ValueError, RecursionError) as error:
        raise MalformedPayment("invalid_payload", "the payment header is not base64 of JSON") from error
    if repeats:
        raise MalformedPayment("invalid_payload", "an object of the payment header repeats a name")
    return _object(value, "the payment header")


def parse_amount(raw: object, name: str, code: str = X402 + "voucher_payload") -> int:
    """A strict decimal string of atomic units, 0 to 2^128-1: no sign, blank, exponent, leading zero or other digit."""
    if not isinstance(raw, str) or not DECIMAL.fullmatch(raw) or int(raw) > UINT128_MAX:
        raise MalformedPayment(code, f"{name} is a decimal string of atomic units below 2^128")
    return int(raw)


def _repeats_a_name(text: bytes, value: object) -> bool:
    """True if an object of this JSON repeats a name: another parser might take the other of the two values.

    Without escapes each string has exactly two quotes, so rewriting the value without its repeats leaves fewer.
    """
    if b"\\" not in text:
        return text.count(b'"') != orjson.dumps(value).count(b'"')
    repeats: list[bool] = []
    json.loads(text, object_pairs_hook=lambda pairs: repeats.append(len(dict(pairs)) != len(pairs)))
    return any(repeats)


@lru_cache(maxsize=4096)
def checksummed(raw: str) -> str | None:
    """An address in its checksummed spelling, or None; cached, because calls name the same few addresses."""
    return to_checksum_address(raw) if raw.startswith("0x") and is_hex_address(raw) else None


def _voucher(raw: object) -> Voucher:
    data = _object(raw, "voucher")
    return Voucher(
        channel_id=_hash(data, "voucher.channelId", X402 + "channel_id_invalid"),
        max_claimable=parse_amount(data.get("maxClaimableAmount"), "voucher.maxClaimableAmount"),
        signature=_signature(data.get("signature"), "voucher.signature", X402 + "voucher_signature"),
    )


def _deposit(raw: object) -> Deposit:
    code, path = X402 + "deposit_payload", "deposit.authorization"
    data = _object(raw, "deposit", code)
    wrapper = _object(data.get("authorization"), path, code)
    path += ".erc3009Authorization"
    authorization = _object(wrapper.get("erc3009Authorization"), path, code)
    signature = authorization.get("signature")
    return Deposit(
        amount=parse_amount(data.get("amount"), "deposit.amount", code),
        valid_after=parse_amount(authorization.get("validAfter"), f"{path}.validAfter", code),
        valid_before=parse_amount(authorization.get("validBefore"), f"{path}.validBefore", code),
        salt=_hash(authorization, f"{path}.salt", code),
        signature=_signature(signature, f"{path}.signature", X402 + "receive_authorization_signature"),
    )


def _object(raw: object, name: str, code: str = X402 + "voucher_payload") -> Json:
    if not isinstance(raw, dict):
        raise MalformedPayment(code, f"{name} is a JSON object")
    return raw


def _address(data: Json, name: str) -> str:
    raw = data.get(name)
    address = checksummed(raw) if isinstance(raw, str) and len(raw) == 42 else None
    if address is None:
        raise _bad(f"channelConfig.{name} is a 20-byte address in hex")
    return address


def _hash(data: Json, path: str, code: str = X402 + "voucher_payload") -> str:
    raw = data.get(path.rpartition(".")[2])
    # Lower-cased here: a second spelling of a channel id would be a second channel with the same money.
    if not isinstance(raw, str) or not HASH.fullmatch(raw.lower()) or not raw.startswith("0x"):
        raise MalformedPayment(code, f"{path} is 32 bytes in hex")
    return raw.lower()


def _signature(raw: object, path: str, code: str) -> bytes:
    if not isinstance(raw, str) or len(raw) != 132 or not HEX.fullmatch(raw):
        raise MalformedPayment(code, f"{path} is 65 bytes in hex")
    return bytes.fromhex(raw[2:])


def _bad(message: str) -> MalformedPayment:
    return MalformedPayment(X402 + "voucher_payload", message)
