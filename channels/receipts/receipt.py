"""Defines `Receipt`: what one charge binds, its JSON form and its EIP-712 digest, and the mesh's signature over it.

A receipt holds keyed digests only: a plain hash of an image or a report can be guessed from a candidate.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import orjson

from channels.protocol import (
    HEX,
    SETTLEMENT,
    Domain,
    Json,
    Signer,
    hex_bytes,
    keccak,
    parse_amount,
    recover,
    signed_by,
    uint256,
)
from channels.receipts.part import PART, Part, check_parts
from channels.receipts.share import SHARE, BadReceipt, Share, check_spelling, shares_hash, text_hash, typed

RECEIPT = (
    b"Receipt(bytes32 callId,bytes32 channelId,uint64 incarnation,uint64 seq,uint128 before,uint128 after,"
    b"string dapp,string version,bytes32 modelDigest,bytes32 requestDigest,bytes32 resultDigest,uint64 units,"
    b"uint128 amount,uint64 atMs,Share[] shares"
)
RECEIPT_TYPE = keccak(RECEIPT + b")" + SHARE)
PARTS_TYPE = keccak(RECEIPT + b",Part[] parts)" + PART + SHARE)
"""A receipt without parts keeps the type that it had before there were parts, so stored chains and roots stay valid."""


@lru_cache(maxsize=64)
def receipt_domain(chain_id: int) -> Domain:
    """The domain of receipts on one chain."""
    return Domain.of("Leben Mesh Receipt", "1", chain_id, SETTLEMENT)


@dataclass(frozen=True, slots=True)
class Owed:
    """One share of a charge, and the DApp that earned it."""

    dapp: str
    version: str
    units: int
    share: Share


@dataclass(frozen=True, slots=True)
class Receipt:
    """One charge; amounts are atomic units.

    Args:
        call_id: public id of the call.
        channel_id: the channel that was charged.
        incarnation, seq: the channel's life in the store, and the charge's number in it, from 1.
        before, after: the channel's cumulative charge around this one.
        dapp, version, model_digest: which DApp answered.
        request_digest, result_digest: keyed digests of what it got and returned.
        units: items, or microseconds of the device where the price is per second.
        amount: what was charged: the sum of `shares` and of the parts one level below.
        at_ms: Unix time.
        shares: of the DApp's own owners.
        parts: what DApps did that this DApp called, paid out of the same charge.

    Raises:
        BadReceipt: the amounts do not add up, a number is out of range, or a digest or address is malformed.
    """

    call_id: str
    channel_id: str
    incarnation: int
    seq: int
    before: int
    after: int
    dapp: str
    version: str
    model_digest: str
    request_digest: str
    result_digest: str
    units: int
    amount: int
    at_ms: int
    shares: tuple[Share, ...]
    parts: tuple[Part, ...] = ()

    def __post_init__(self) -> None:
        digests = ("call_id", "channel_id", "model_digest", "request_digest", "result_digest")
        check_spelling(self, digests, self.shares)
        amounts = [share.amount for share in self.shares]
        counts = (self.incarnation, self.seq, self.units, self.at_ms)
        if min(counts) < 0 or max(counts) >= 2**64 or min(self.before, *amounts, 0) < 0 or self.after >= 2**128:
            raise BadReceipt("a receipt's numbers are not negative; counts are below 2^64, amounts below 2^128")
        if self.amount < 0 or self.after - self.before != self.amount:
            raise BadReceipt("a receipt's amount is after - before, and the sum of its shares and its parts")
        check_parts(self.amount, sum(amounts), self.parts)

    @classmethod
    def of_charge(
        cls, channel_id: str, call_id: str, incarnation: int, seq: int, before: int, after: int, at_ms: int, body: str
    ) -> Receipt:
        """The receipt of a charge: the numbers that the store gave it, and the JSON body that was stored with it.

        Raises:
            BadReceipt: the body is not that of a charge.
        """
        try:
            stored = orjson.loads(body)
            return cls(
                call_id=call_id,
                channel_id=channel_id,
                incarnation=incarnation,
                seq=seq,
                before=before,
                after=after,
                dapp=typed(stored, "dapp", str),
                version=typed(stored, "version", str),
                model_digest=typed(stored, "model", str),
                request_digest=typed(stored, "request", str),
                result_digest=typed(stored, "result", str),
                units=typed(stored, "units", int),
                amount=after - before,
                at_ms=at_ms,
                shares=tuple(map(Share.from_row, stored["shares"])),
                parts=tuple(map(Part.from_row, stored.get("parts", ()))),
            )
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise BadReceipt("the stored body is not that of a charge") from error

    @property
    def owed(self) -> Iterator[Owed]:
        """The shares of this charge: those of its own owners, then those of its parts."""
        for share in self.shares:
            yield Owed(self.dapp, self.version, self.units, share)
        for part in self.parts:
            for share in part.shares:
                yield Owed(part.dapp, part.version, part.units, share)

    def struct_hash(self) -> bytes:
        """EIP-712 hash of this receipt."""
        fields = (
            hex_bytes(self.call_id)
            + hex_bytes(self.channel_id)
            + uint256(self.incarnation)
            + uint256(self.seq)
            + uint256(self.before)
            + uint256(self.after)
            + text_hash(self.dapp)
            + text_hash(self.version)
            + hex_bytes(self.model_digest)
            + hex_bytes(self.request_digest)
            + hex_bytes(self.result_digest)
            + uint256(self.units)
            + uint256(self.amount)
            + uint256(self.at_ms)
            + shares_hash(self.shares)
        )
        if not self.parts:
            return keccak(RECEIPT_TYPE + fields)
        return keccak(PARTS_TYPE + fields + keccak(b"".join(part.struct_hash() for part in self.parts)))

    def digest(self, chain_id: int) -> bytes:
        """The 32 bytes that the mesh signs, and this receipt's leaf in its epoch's Merkle tree."""
        return receipt_domain(chain_id).digest(self.struct_hash())

    def to_json(self) -> Json:
        """The public form: EIP-712's field names, and `receipt`, the public id."""
        public: Json = {
            "receipt": self.call_id,
            "callId": self.call_id,
            "channelId": self.channel_id,
            "incarnation": self.incarnation,
            "seq": self.seq,
            "before": str(self.before),
            "after": str(self.after),
            "dapp": self.dapp,
            "version": self.version,
            "modelDigest": self.model_digest,
            "requestDigest": self.request_digest,
            "resultDigest": self.result_digest,
            "units": self.units,
            "amount": str(self.amount),
            "atMs": self.at_ms,
            "shares": [share.to_json() for share in self.shares],
        }
        return public | {"parts": [part.to_json() for part in self.parts]} if self.parts else public

    @classmethod
    def from_json(cls, raw: object) -> Receipt:
        """Parses the public form.

        Raises:
            ChannelError: a field is missing, of another type, or the amounts do not add up.
        """
        if not isinstance(raw, dict):
            raise BadReceipt("a receipt is a JSON object")
        parts = raw.get("parts", [])
        if not isinstance(parts, list):
            raise BadReceipt("a receipt's parts are a list")
        return cls(
            call_id=typed(raw, "callId", str),
            channel_id=typed(raw, "channelId", str),
            incarnation=typed(raw, "incarnation", int),
            seq=typed(raw, "seq", int),
            before=parse_amount(raw.get("before"), "before"),
            after=parse_amount(raw.get("after"), "after"),
            dapp=typed(raw, "dapp", str),
            version=typed(raw, "version", str),
            model_digest=typed(raw, "modelDigest", str),
            request_digest=typed(raw, "requestDigest", str),
            result_digest=typed(raw, "resultDigest", str),
            units=typed(raw, "units", int),
            amount=parse_amount(raw.get("amount"), "amount"),
            at_ms=typed(raw, "atMs", int),
            shares=tuple(map(Share.from_json, typed(raw, "shares", list))),
            parts=tuple(map(Part.from_json, parts)),
        )


@dataclass(frozen=True, slots=True)
class SignedReceipt:
    """A receipt and the mesh's signature over it."""

    receipt: Receipt
    signature: bytes

    @classmethod
    def sign(cls, receipt: Receipt, chain_id: int, signer: Signer) -> SignedReceipt:
        """Signs; the same receipt always gives the same bytes, so signatures need not be stored."""
        return cls(receipt, signer.sign(receipt.digest(chain_id)))

    def signer(self, chain_id: int) -> str:
        """The address that signed this receipt, or an empty text if the signature is malformed."""
        key = recover(self.receipt.digest(chain_id), self.signature)
        return key.to_checksum_address() if key else ""

    def verify(self, chain_id: int, address: str) -> bool:
        """True if `address` signed this receipt for this chain."""
        return signed_by(self.receipt.digest(chain_id), self.signature, address)

    def to_json(self) -> Json:
        """The receipt's public form with its signature."""
        return self.receipt.to_json() | {"signature": "0x" + self.signature.hex()}

    @classmethod
    def from_json(cls, raw: object) -> SignedReceipt:
        """Parses the public form.

        Raises:
            ChannelError: the receipt or the signature is malformed.
        """
        receipt = Receipt.from_json(raw)
        signature = raw.get("signature") if isinstance(raw, dict) else None
        if not isinstance(signature, str) or not HEX.fullmatch(signature):
            raise BadReceipt("signature is hex")
        return cls(receipt, hex_bytes(signature))
