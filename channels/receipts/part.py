"""`Part`: what one DApp did for another within a call, and who is paid for it: a receipt inside a receipt.

A call is charged once, at the price of the DApp that was asked; what the DApps cost that it asked in turn comes out of
that one charge. The parts of a receipt stand in the order of a walk down the tree: a DApp, then what it asked, one
deeper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

from channels.errors import ChannelError
from channels.protocol import HASH, Json, checksummed, keccak, parse_amount, uint256
from channels.receipts.split import Share

MAX_PARTS = 4
"""Of one receipt, which travels in a header of at most 8 KiB."""
MAX_PART_DEPTH = 4
SHARE = b"Share(string carrier,address owner,uint128 amount)"
SHARE_TYPE = keccak(SHARE)
PART = (
    b"Part(uint64 depth,string dapp,string version,bytes32 modelDigest,bytes32 requestDigest,bytes32 resultDigest,"
    b"uint64 units,uint128 amount,Share[] shares)"
)
PART_TYPE = keccak(PART + SHARE)


class BadReceipt(ChannelError):
    """A receipt that does not add up or is not one."""

    def __init__(self, message: str) -> None:
        super().__init__("invalid_receipt", message)


@dataclass(frozen=True, slots=True)
class Part:
    """One DApp's part of a charge; amounts are atomic units.

    Args:
        depth: 1 if the DApp of the receipt asked for it, one more for what it asked for itself.
        dapp, version, model_digest: which DApp answered, as in a receipt.
        request_digest, result_digest: keyed digests of the tensors that it was given and gave back.
        units: items, or microseconds of the device where that is what is priced.
        amount: its price: `shares`, and the amounts of the parts right below it.
        shares: of its own owners.

    Raises:
        BadReceipt: a digest, an address or a number is none.
    """

    depth: int
    dapp: str
    version: str
    model_digest: str
    request_digest: str
    result_digest: str
    units: int
    amount: int
    shares: tuple[Share, ...]

    def __post_init__(self) -> None:
        check_names(self, ("model_digest", "request_digest", "result_digest"), self.shares)
        amounts = [self.amount, *(share.amount for share in self.shares)]
        if not 0 < self.depth <= MAX_PART_DEPTH or not 0 <= self.units < 2**64:
            raise BadReceipt(f"a part is 1 to {MAX_PART_DEPTH} deep, and its units are a count below 2^64")
        if min(amounts) < 0 or max(amounts) >= 2**128:
            raise BadReceipt("a part's amounts are not negative, and below 2^128")

    def struct_hash(self) -> bytes:
        """EIP-712 hash of this part."""
        digests = b"".join(
            bytes.fromhex(digest[2:]) for digest in (self.model_digest, self.request_digest, self.result_digest)
        )
        head = uint256(self.depth) + text_hash(self.dapp) + text_hash(self.version)
        return keccak(
            PART_TYPE + head + digests + uint256(self.units) + uint256(self.amount) + shares_hash(self.shares)
        )

    def to_json(self) -> Json:
        """The public form, with EIP-712's field names."""
        shares = [{"carrier": part.carrier, "owner": part.owner, "amount": str(part.amount)} for part in self.shares]
        digests = {"modelDigest": self.model_digest, "requestDigest": self.request_digest}
        head = {"depth": self.depth, "dapp": self.dapp, "version": self.version}
        tail = {"resultDigest": self.result_digest, "units": self.units, "amount": str(self.amount), "shares": shares}
        return head | digests | tail

    @classmethod
    def from_json(cls, raw: object) -> Part:
        """Reads the public form.

        Raises:
            ChannelError: a field is missing or of another type.
        """
        if not isinstance(raw, dict) or not isinstance(raw.get("shares"), list):
            raise BadReceipt("a part is a JSON object with shares")
        names = ("depth", "dapp", "version", "modelDigest", "requestDigest", "resultDigest", "units")
        values = [raw.get(name) for name in names]
        shares = tuple(share_from_json(part) for part in raw["shares"])
        return cls._typed(*values, parse_amount(raw.get("amount"), "amount"), shares)

    def to_row(self) -> list[Any]:
        """The short form that is stored with a charge."""
        row = [getattr(self, field.name) for field in fields(self)]
        return [*row[:-1], [[share.carrier, share.owner, share.amount] for share in self.shares]]

    @classmethod
    def from_row(cls, row: Sequence[Any]) -> Part:
        """Reads the short form.

        Raises:
            ChannelError: it is none.
        """
        if not isinstance(row, list | tuple) or len(row) != len(fields(cls)):
            raise BadReceipt("a part of a charge has nine fields")
        return cls._typed(*row[:-1], tuple(charged_share(*share) for share in row[-1]))

    @classmethod
    def _typed(cls, *values: Any) -> Part:
        kinds = (int, str, str, str, str, str, int, int)
        if any(type(value) is not kind for value, kind in zip(values, kinds, strict=False)):
            raise BadReceipt("a field of a part is missing or of another type")
        return cls(*values)


def check_names(record: object, digests: Sequence[str], shares: Sequence[Share]) -> None:
    """Holds a record's digests and its owners to their one spelling.

    Raises:
        BadReceipt: a digest is not 32 bytes in lower-case hex, or an owner no checksummed address.
    """
    for name in digests:
        if not HASH.fullmatch(getattr(record, name)):
            raise BadReceipt(f"{name} is 32 bytes in lower-case hex")
    if not all(checksummed(share.owner) == share.owner for share in shares):
        raise BadReceipt("an owner is a checksummed address")


def check_parts(amount: int, own: int, parts: Sequence[Part]) -> None:
    """Holds a tree of parts to its sums: each amount is its own shares and what stands right below it.

    Args:
        amount: of the whole charge.
        own: the sum of the shares of the DApp that was asked.
        parts: in the order of a walk.

    Raises:
        BadReceipt: a sum is another, or there are too many or too deep.
    """
    if len(parts) > MAX_PARTS:
        raise BadReceipt(f"a receipt has at most {MAX_PARTS} parts")
    open_: list[list[int]] = [[amount, own]]  # for each level: what it must come to, and what it comes to so far
    for part in parts:
        if part.depth > len(open_):
            raise BadReceipt("a part is one deeper than what it belongs to")
        _close(open_, part.depth)
        open_[-1][1] += part.amount
        open_.append([part.amount, sum(share.amount for share in part.shares)])
    _close(open_, 0)


def _close(open_: list[list[int]], depth: int) -> None:
    while len(open_) > depth:
        wanted, found = open_.pop()
        if wanted != found:
            raise BadReceipt("a receipt's amount is after - before, and the sum of its shares and its parts")


def shares_hash(shares: Sequence[Share]) -> bytes:
    """EIP-712 hash of an array of shares."""
    return keccak(
        b"".join(
            keccak(
                SHARE_TYPE
                + text_hash(share.carrier)
                + bytes.fromhex(share.owner[2:]).rjust(32, b"\0")
                + uint256(share.amount)
            )
            for share in shares
        )
    )


@lru_cache(maxsize=256)
def text_hash(text: str) -> bytes:
    """EIP-712 hash of a string; names and versions are few."""
    return keccak(text.encode())


def share_from_json(raw: object) -> Share:
    """A share in its public form."""
    if not isinstance(raw, dict) or not isinstance(raw.get("carrier"), str) or not isinstance(raw.get("owner"), str):
        raise BadReceipt("a share is a JSON object with a carrier and an owner")
    return Share(raw["carrier"], raw["owner"], parse_amount(raw.get("amount"), "share.amount"))


def charged_share(carrier: object, owner: object, amount: object) -> Share:
    """A share in its short form."""
    address = checksummed(owner) if isinstance(owner, str) else None
    if type(amount) is not int or not isinstance(carrier, str) or address is None:
        raise BadReceipt("a share is a carrier, an owner's address and a whole amount")
    return Share(carrier, address, amount)
