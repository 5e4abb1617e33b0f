"""Declares the signed requests that move money, and parses their fields.

A field that cannot be parsed is refused with its `description`, never with its value.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field, WithJsonSchema

from channels.errors import ChannelError
from channels.protocol import HEX, checksummed, parse_amount
from serving.control.schemas.base import Body

ADDRESS_PATTERN = "^0x[0-9a-fA-F]{40}$"
SIGNATURE_PATTERN = "^0x[0-9a-fA-F]{130}$"
AMOUNT_PATTERN = "^(0|[1-9][0-9]{0,37})$"


def address(raw: object) -> str:
    """An address, checksummed.

    Raises:
        ValueError: it is none.
    """
    parsed = checksummed(raw) if isinstance(raw, str) else None
    if parsed is None:
        raise ValueError("an address is 0x and 40 hex digits")
    return parsed


def amount(raw: object) -> int:
    """Atomic units, of a decimal string.

    Raises:
        ValueError: it is none, or not below 2^128.
    """
    try:
        return parse_amount(raw, "amount")
    except ChannelError as error:
        raise ValueError(error.message) from error


def signature(raw: object) -> bytes:
    """A signature, 65 bytes.

    Raises:
        ValueError: it is not that many bytes in hex.
    """
    if not isinstance(raw, str) or not HEX.fullmatch(raw) or len(raw) != 132:
        raise ValueError("a signature is 65 bytes in hex")
    return bytes.fromhex(raw[2:])


def _text(pattern: str) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "pattern": pattern})


Address = Annotated[str, BeforeValidator(address), _text(ADDRESS_PATTERN), Field(description="0x and 40 hex digits")]
Amount = Annotated[int, BeforeValidator(amount), _text(AMOUNT_PATTERN), Field(description="a decimal string")]
Signature = Annotated[bytes, BeforeValidator(signature), _text(SIGNATURE_PATTERN), Field(description="65 bytes in hex")]


class PayoutRequest(Body):
    """Moves earnings to a wallet, by the owner's signature."""

    to: Address
    amount: Amount
    nonce: Amount
    signature: Signature


class InitiateRequest(Body):
    """Gives notice of a withdrawal, by the payer's signature."""

    amount: Amount
    nonce: Amount
    signature: Signature


class FinalizeRequest(Body):
    """Finishes a withdrawal, by the payer's signature."""

    nonce: Amount
    signature: Signature
