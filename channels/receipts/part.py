"""Defines `Part`: what a DApp that another DApp called did for a charge, and who is paid for it.

A call is charged once, at the price of the DApp that the payer called; the DApps that it calls in turn are paid out of
that charge. A receipt's parts stand in depth-first order: a DApp, then the DApps that it called, one deeper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from channels.protocol import Json, hex_bytes, keccak, parse_amount, uint256
from channels.receipts.share import SHARE, BadReceipt, Share, check_spelling, shares_hash, text_hash, typed

MAX_PARTS = 4
"""Of one receipt, which travels in a header of at most 8 KiB."""
MAX_PART_DEPTH = 4
PART = (
    b"Part(uint64 depth,string dapp,string version,bytes32 modelDigest,bytes32 requestDigest,bytes32 resultDigest,"
    b"uint64 units,uint128 amount,Share[] shares)"
)
PART_TYPE = keccak(PART + SHARE)
ROW = ("depth", "dapp", "version", "modelDigest", "requestDigest", "resultDigest", "units", "amount", "shares")
"""The fields of the short form, in order."""


@dataclass(frozen=True, slots=True)
class Part:
    """One DApp's part of a charge; amounts are atomic units.

    Args:
        depth: 1 if the receipt's DApp called it, one more for a DApp that it called itself.
        dapp, version, model_digest: which DApp answered, as in a receipt.
        request_digest, result_digest: keyed digests of the tensors that it got and returned.
        units: items, or microseconds of the device where the price is per second.
        amount: its price: its own `shares` and the amounts of the parts right below it.
        shares: of its own owners.

    Raises:
        BadReceipt: a digest or an address is malformed, or a number out of range.
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
        check_spelling(self, ("model_digest", "request_digest", "result_digest"), self.shares)
        amounts = [self.amount, *(share.amount for share in self.shares)]
        if not 0 < self.depth <= MAX_PART_DEPTH or not 0 <= self.units < 2**64:
            raise BadReceipt(f"a part is 1 to {MAX_PART_DEPTH} deep, and its units are a count below 2^64")
        if min(amounts) < 0 or max(amounts) >= 2**128:
            raise BadReceipt("a part's amounts are not negative, and below 2^128")

    def struct_hash(self) -> bytes:
        """EIP-712 hash of this part."""
        return keccak(
            PART_TYPE
            + uint256(self.depth)
            + text_hash(self.dapp)
            + text_hash(self.version)
            + hex_bytes(self.model_digest)
            + hex_bytes(self.request_digest)
            + hex_bytes(self.result_digest)
            + uint256(self.units)
            + uint256(self.amount)
            + shares_hash(self.shares)
        )

    def to_json(self) -> Json:
        """The public form, with EIP-712's field names."""
        return {
            "depth": self.depth,
            "dapp": self.dapp,
            "version": self.version,
            "modelDigest": self.model_digest,
            "requestDigest": self.request_digest,
            "resultDigest": self.result_digest,
            "units": self.units,
            "amount": str(self.amount),
            "shares": [share.to_json() for share in self.shares],
        }

    @classmethod
    def from_json(cls, raw: object) -> Part:
        """Parses the public form.

        Raises:
            ChannelError: a field is missing or of another type.
        """
        if not isinstance(raw, dict):
            raise BadReceipt("a part is a JSON object")
        shares = tuple(map(Share.from_json, typed(raw, "shares", list)))
        return cls._of(raw, parse_amount(raw.get("amount"), "amount"), shares)

    def to_row(self) -> list[Any]:
        """The short form that is stored with a charge."""
        return [
            self.depth,
            self.dapp,
            self.version,
            self.model_digest,
            self.request_digest,
            self.result_digest,
            self.units,
            self.amount,
            [share.to_row() for share in self.shares],
        ]

    @classmethod
    def from_row(cls, row: object) -> Part:
        """Parses the short form.

        Raises:
            BadReceipt: it is malformed.
        """
        if not isinstance(row, list | tuple) or len(row) != len(ROW):
            raise BadReceipt(f"a part of a charge has {len(ROW)} fields")
        named = dict(zip(ROW, row, strict=True))
        if not isinstance(named["shares"], list | tuple):
            raise BadReceipt("a part's shares are a list")
        return cls._of(named, typed(named, "amount", int), tuple(map(Share.from_row, named["shares"])))

    @classmethod
    def _of(cls, named: Json, amount: int, shares: tuple[Share, ...]) -> Part:
        return cls(
            depth=typed(named, "depth", int),
            dapp=typed(named, "dapp", str),
            version=typed(named, "version", str),
            model_digest=typed(named, "modelDigest", str),
            request_digest=typed(named, "requestDigest", str),
            result_digest=typed(named, "resultDigest", str),
            units=typed(named, "units", int),
            amount=amount,
            shares=shares,
        )


def check_parts(amount: int, own: int, parts: Sequence[Part]) -> None:
    """Holds a tree of parts to its sums: an amount is its own shares and the amounts right below it.

    Args:
        amount: the whole charge.
        own: the sum of the shares of the DApp that the payer called.
        parts: in depth-first order.

    Raises:
        BadReceipt: a sum is another, or there are too many parts or levels.
    """
    if len(parts) > MAX_PARTS:
        raise BadReceipt(f"a receipt has at most {MAX_PARTS} parts")
    levels: list[list[int]] = [[amount, own]]  # of each open level: what it must sum to, and its sum so far
    for part in parts:
        if part.depth > len(levels):
            raise BadReceipt("a part is at most one deeper than the part before it")
        _close(levels, part.depth)
        levels[-1][1] += part.amount
        levels.append([part.amount, sum(share.amount for share in part.shares)])
    _close(levels, 0)


def _close(levels: list[list[int]], depth: int) -> None:
    while len(levels) > depth:
        amount, total = levels.pop()
        if amount != total:
            raise BadReceipt("a receipt's amount is after - before, and the sum of its shares and its parts")
