"""Defines `Share`: the amount of one charge that one owner gets, with its JSON, stored and signed forms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

from channels.errors import ChannelError
from channels.protocol import HASH, Json, checksummed, hex_bytes, keccak, parse_amount, uint256

CARRIERS = ("knowledge", "guideline", "data", "compute", "operator")
"""In the order of a receipt's shares, which its digest covers and by which ties are rounded: never reordered."""
SHARE = b"Share(string carrier,address owner,uint128 amount)"
SHARE_TYPE = keccak(SHARE)
T = TypeVar("T")


class BadReceipt(ChannelError):
    """A receipt is malformed, or its amounts do not add up."""

    def __init__(self, message: str) -> None:
        super().__init__("invalid_receipt", message)


@dataclass(frozen=True, slots=True)
class Share:
    """What one owner gets of one charge: `amount` in atomic units, to `owner`'s address, for its `carrier`."""

    carrier: str
    owner: str
    amount: int

    def to_json(self) -> Json:
        """The public form."""
        return {"carrier": self.carrier, "owner": self.owner, "amount": str(self.amount)}

    @classmethod
    def from_json(cls, raw: object) -> Share:
        """Parses the public form.

        Raises:
            ChannelError: it is malformed.
        """
        if not isinstance(raw, dict):
            raise BadReceipt("a share is a JSON object with a carrier and an owner")
        return cls(
            typed(raw, "carrier", str), typed(raw, "owner", str), parse_amount(raw.get("amount"), "share.amount")
        )

    def to_row(self) -> list[str | int]:
        """The short form that is stored with a charge."""
        return [self.carrier, self.owner, self.amount]

    @classmethod
    def from_row(cls, row: object) -> Share:
        """Parses the short form.

        Raises:
            BadReceipt: it is malformed.
        """
        carrier, owner, amount = row if isinstance(row, list | tuple) and len(row) == 3 else (None, None, None)
        address = checksummed(owner) if isinstance(owner, str) else None
        if type(amount) is not int or not isinstance(carrier, str) or address is None:
            raise BadReceipt("a share is a carrier, an owner's address and a whole amount")
        return cls(carrier, address, amount)


def shares_hash(shares: Sequence[Share]) -> bytes:
    """EIP-712 hash of an array of shares."""
    return keccak(
        b"".join(
            keccak(SHARE_TYPE + text_hash(share.carrier) + bytes(12) + hex_bytes(share.owner) + uint256(share.amount))
            for share in shares
        )
    )


@lru_cache(maxsize=256)
def text_hash(text: str) -> bytes:
    """EIP-712 hash of a string; cached, because carriers, names and versions are few."""
    return keccak(text.encode())


def typed(raw: Json, name: str, kind: type[T]) -> T:
    """A field of exactly this type.

    Raises:
        BadReceipt: it is missing or of another type.
    """
    value = raw.get(name)
    if type(value) is not kind:
        raise BadReceipt(f"{name} is missing or of another type")
    return value


def check_spelling(record: object, digests: Sequence[str], shares: Sequence[Share]) -> None:
    """Holds a record's digests and owners to one spelling: a second one would be another digest of the same charge.

    Raises:
        BadReceipt: a digest is not 32 bytes in lower-case hex, or an owner not a checksummed address.
    """
    for name in digests:
        if not HASH.fullmatch(getattr(record, name)):
            raise BadReceipt(f"{name} is 32 bytes in lower-case hex")
    if not all(checksummed(share.owner) == share.owner for share in shares):
        raise BadReceipt("an owner is a checksummed address")
