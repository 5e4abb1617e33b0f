"""Receipts of charged calls: what one binds, its EIP-712 digest, and its Merkle proof in a settlement epoch.

A receipt holds keyed digests only: a plain hash of an image or a report can be guessed from a candidate. Anyone checks
one offline with the mesh's address and the root on the ledger.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cache, lru_cache
from typing import TypeVar

import orjson

from channels.protocol import HEX, SETTLEMENT, Domain, Json, Signer, keccak, parse_amount, recover, signed_by, uint256
from channels.receipts.part import (
    PART,
    SHARE,
    BadReceipt,
    Part,
    charged_share,
    check_names,
    check_parts,
    share_from_json,
    shares_hash,
    text_hash,
)
from channels.receipts.split import Share

RECEIPT = (
    b"Receipt(bytes32 callId,bytes32 channelId,uint64 incarnation,uint64 seq,uint128 before,uint128 after,"
    b"string dapp,string version,bytes32 modelDigest,bytes32 requestDigest,bytes32 resultDigest,uint64 units,"
    b"uint128 amount,uint64 atMs,Share[] shares"
)
RECEIPT_TYPE = keccak(RECEIPT + b")" + SHARE)
PARTS_TYPE = keccak(RECEIPT + b",Part[] parts)" + PART + SHARE)
"""Of a receipt with parts: one without is what it always was, so no stored chain or root changes."""
LEAF, INNER = b"\x00", b"\x01"
LEFT, RIGHT = b"\x00", b"\x01"
T = TypeVar("T")


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
    """One charge. Amounts are atomic units; `before` and `after` are the channel's cumulative charge around it.

    Raises:
        BadReceipt: the numbers do not add up, or a digest is not 32 bytes in lower-case hex.
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
    """What DApps did that this one asked in turn; paid out of the same charge."""

    def __post_init__(self) -> None:
        digests = ("call_id", "channel_id", "model_digest", "request_digest", "result_digest")
        check_names(self, digests, self.shares)
        parts = [share.amount for share in self.shares]
        counts = (self.incarnation, self.seq, self.units, self.at_ms)
        if min(counts) < 0 or max(counts) >= 2**64 or min(self.before, *parts, 0) < 0 or self.after >= 2**128:
            raise BadReceipt("a receipt's numbers are not negative; counts are below 2^64, amounts below 2^128")
        if self.amount < 0 or self.after - self.before != self.amount:
            raise BadReceipt("a receipt's amount is after - before, and the sum of its shares and its parts")
        check_parts(self.amount, sum(parts), self.parts)

    @classmethod
    def of_charge(
        cls, channel_id: str, call_id: str, incarnation: int, seq: int, before: int, after: int, at_ms: int, body: str
    ) -> Receipt:
        """The receipt of a charge: the numbers that the store gave it, and the fixed part that was stored with it.

        Raises:
            BadReceipt: the parts are not those of a charge.
        """
        try:
            fixed = orjson.loads(body)
            return cls(
                call_id=call_id,
                channel_id=channel_id,
                incarnation=incarnation,
                seq=seq,
                before=before,
                after=after,
                dapp=_typed(fixed, "dapp", str),
                version=_typed(fixed, "version", str),
                model_digest=_typed(fixed, "model", str),
                request_digest=_typed(fixed, "request", str),
                result_digest=_typed(fixed, "result", str),
                units=_typed(fixed, "units", int),
                amount=after - before,
                at_ms=at_ms,
                shares=tuple(charged_share(*part) for part in fixed["shares"]),
                parts=tuple(map(Part.from_row, fixed.get("parts", ()))),
            )
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise BadReceipt("the parts are not those of a charge") from error

    @property
    def owed(self) -> Iterator[Owed]:
        """Whom this charge pays, for what: its own owners and those of its parts."""
        for share in self.shares:
            yield Owed(self.dapp, self.version, self.units, share)
        for part in self.parts:
            for share in part.shares:
                yield Owed(part.dapp, part.version, part.units, share)

    def struct_hash(self) -> bytes:
        """EIP-712 hash of this receipt."""
        head = _bytes(self.call_id) + _bytes(self.channel_id) + uint256(self.incarnation) + uint256(self.seq)
        head += uint256(self.before) + uint256(self.after) + text_hash(self.dapp) + text_hash(self.version)
        digests = _bytes(self.model_digest) + _bytes(self.request_digest) + _bytes(self.result_digest)
        tail = uint256(self.units) + uint256(self.amount) + uint256(self.at_ms) + shares_hash(self.shares)
        if not self.parts:
            return keccak(RECEIPT_TYPE + head + digests + tail)
        parts = keccak(b"".join(part.struct_hash() for part in self.parts))
        return keccak(PARTS_TYPE + head + digests + tail + parts)

    def digest(self, chain_id: int) -> bytes:
        """What the mesh signs, and this receipt's leaf in its epoch's Merkle tree."""
        return receipt_domain(chain_id).digest(self.struct_hash())

    def to_json(self) -> Json:
        """The public form: EIP-712's field names, and `receipt`, its public id."""
        shares = [{"carrier": part.carrier, "owner": part.owner, "amount": str(part.amount)} for part in self.shares]
        values = {public: getattr(self, name) for name, public in _public_names()}
        amounts = {name: str(values[name]) for name in ("before", "after", "amount")}
        del values["parts"]
        parts = {"parts": [part.to_json() for part in self.parts]} if self.parts else {}
        return {"receipt": self.call_id} | values | amounts | {"shares": shares} | parts

    @classmethod
    def from_json(cls, raw: object) -> Receipt:
        """Reads the public form.

        Raises:
            ChannelError: a field is missing, of another type, or the numbers do not add up.
        """
        if not isinstance(raw, dict) or not isinstance(raw.get("shares"), list):
            raise BadReceipt("a receipt is a JSON object with shares")
        if not isinstance(raw.get("parts", []), list):
            raise BadReceipt("a receipt's parts are a list")
        return cls(
            call_id=_typed(raw, "callId", str),
            channel_id=_typed(raw, "channelId", str),
            incarnation=_typed(raw, "incarnation", int),
            seq=_typed(raw, "seq", int),
            before=parse_amount(raw.get("before"), "before"),
            after=parse_amount(raw.get("after"), "after"),
            dapp=_typed(raw, "dapp", str),
            version=_typed(raw, "version", str),
            model_digest=_typed(raw, "modelDigest", str),
            request_digest=_typed(raw, "requestDigest", str),
            result_digest=_typed(raw, "resultDigest", str),
            units=_typed(raw, "units", int),
            amount=parse_amount(raw.get("amount"), "amount"),
            at_ms=_typed(raw, "atMs", int),
            shares=tuple(share_from_json(part) for part in raw["shares"]),
            parts=tuple(map(Part.from_json, raw.get("parts", ()))),
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
        """The address that signed this receipt, or nothing if the signature is none."""
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
        """Reads the public form."""
        receipt = Receipt.from_json(raw)
        signature = raw.get("signature") if isinstance(raw, dict) else None
        if not isinstance(signature, str) or not HEX.fullmatch(signature):
            raise BadReceipt("signature is hex")
        return cls(receipt, bytes.fromhex(signature[2:]))


def merkle_root(leaves: Sequence[bytes]) -> bytes:
    """Root over 32-byte leaves in order, as RFC 6962 builds it, with keccak.

    Leaves and inner nodes are hashed apart (no inner node passes for a leaf), and an odd leaf is carried up, never
    doubled: lists [a, b, c] and [a, b, c, c] have different roots (CVE-2012-2459).

    Raises:
        ValueError: no leaves; an epoch of nothing is never published.
    """
    if not leaves:
        raise ValueError("a Merkle tree has at least one leaf")
    level = [keccak(LEAF + leaf) for leaf in leaves]
    while len(level) > 1:
        level = _above(level)
    return level[0]


def merkle_proof(leaves: Sequence[bytes], index: int) -> tuple[bytes, ...]:
    """The siblings of leaf `index`, from the bottom: each is a side byte (0 left, 1 right) and 32 bytes."""
    if not 0 <= index < len(leaves):
        raise ValueError("no such leaf")
    proof = []
    level = [keccak(LEAF + leaf) for leaf in leaves]
    while len(level) > 1:
        sibling = index ^ 1
        if sibling < len(level):
            proof.append((LEFT if sibling < index else RIGHT) + level[sibling])
        level, index = _above(level), index // 2
    return tuple(proof)


def verify_proof(leaf: bytes, proof: Sequence[bytes], root: bytes) -> bool:
    """True if the proof leads from the leaf to the root."""
    node = keccak(LEAF + leaf)
    for step in proof:
        if len(step) != 33 or step[:1] not in (LEFT, RIGHT):
            return False
        node = keccak(INNER + step[1:] + node) if step[:1] == LEFT else keccak(INNER + node + step[1:])
    return node == root


def _above(level: list[bytes]) -> list[bytes]:
    pairs = [keccak(INNER + level[place] + level[place + 1]) for place in range(0, len(level) - 1, 2)]
    return pairs + level[len(pairs) * 2 :]


def _typed(raw: Json, name: str, kind: type[T]) -> T:
    value = raw.get(name)
    if type(value) is not kind:
        raise BadReceipt(f"{name} is missing or of another type")
    return value


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)


@cache
def _public_names() -> tuple[tuple[str, str], ...]:
    return tuple((field.name, _camel(field.name)) for field in fields(Receipt))


def _bytes(hexadecimal: str) -> bytes:
    return bytes.fromhex(hexadecimal[2:])
