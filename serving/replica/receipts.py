"""Builds receipts from the values at hand: the fixed part that is stored with a charge, and the signed header.

A receipt of a charge that this process made is signed from its values; only a replay reads the stored text again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import orjson

from channels.metering import ChargeRecord
from channels.protocol import Json, Signer, encode_header
from channels.receipts import Part, Receipt, Share, SignedReceipt, split_charge
from dapps.api import Inputs
from serving.execution import ChildCall, tensor_bytes
from serving.protocol import Request, Result
from serving.replica.offer import Offer

DIGESTED_HEADERS = ("content-type", "inference-header-content-length", "content-encoding")
Digest = Callable[..., str]


@dataclass(frozen=True, slots=True)
class ReceiptBody:
    """The part of a receipt that is fixed before the charge; the store adds the numbers of the channel.

    Attributes:
        dapp, version, model_digest: which DApp answered.
        request_digest, result_digest: keyed digests of what came and what was answered.
        units: items, or microseconds of the device.
        shares: the DApp's own owners' shares of the charge.
        parts: what other DApps did for it.
    """

    dapp: str
    version: str
    model_digest: str
    request_digest: str
    result_digest: str
    units: int
    shares: tuple[Share, ...]
    parts: tuple[Part, ...] = ()

    def to_json(self) -> str:
        """The stored text; `Receipt.of_charge` reads it."""
        parts: Json = {"parts": [part.to_row() for part in self.parts]} if self.parts else {}
        body = parts | {
            "dapp": self.dapp,
            "version": self.version,
            "model": self.model_digest,
            "request": self.request_digest,
            "result": self.result_digest,
            "units": self.units,
            "shares": [[share.carrier, share.owner, share.amount] for share in self.shares],
        }
        return orjson.dumps(body).decode()

    def receipt(self, channel_id: str, record: ChargeRecord) -> Receipt:
        """The whole receipt, with the numbers that the store gave the charge."""
        return Receipt(
            call_id=record.call_id,
            channel_id=channel_id,
            incarnation=record.incarnation,
            seq=record.seq,
            before=record.before,
            after=record.after,
            dapp=self.dapp,
            version=self.version,
            model_digest=self.model_digest,
            request_digest=self.request_digest,
            result_digest=self.result_digest,
            units=self.units,
            amount=record.after - record.before,
            at_ms=record.at_ms,
            shares=self.shares,
            parts=self.parts,
        )


class ReceiptBuilder:
    """Builds and signs the receipts of one DApp.

    Args:
        digest: keyed digest of byte strings, see `Meter.digest`.
        signer: the mesh's receipt key.
        chain_id: the ledger's chain.
    """

    def __init__(self, digest: Digest, signer: Signer, chain_id: int) -> None:
        self._digest, self._signer, self._chain_id = digest, signer, chain_id

    def request_digest(self, request: Request) -> str:
        """The digest that binds a receipt, and an Idempotency-Key, to one request."""
        headers = "\n".join(f"{name}:{request.headers.get(name, '')}" for name in DIGESTED_HEADERS)
        chunks = (request.method.encode(), request.path.encode(), headers.encode(), request.body)
        return self._digest(b"call", *chunks, *([request.query] if request.query else []))

    def body(self, offer: Offer, request_digest: str, result: Result, *, units: int, amount: int) -> ReceiptBody:
        """The fixed part of a call's receipt; parts are paid first, and the DApp's owners share what is left."""
        # The parts were given no more than the price: were it otherwise, `split_charge` fails and nothing is charged.
        own = amount - sum(part.amount for part in result.parts if part.depth == 1)
        return ReceiptBody(
            dapp=offer.name,
            version=offer.release,
            model_digest="0x" + offer.digest,
            request_digest=request_digest,
            result_digest=self._digest(b"result", (result.stored or result.response).body),
            units=units,
            shares=split_charge(own, offer.guideline_shares if result.guideline_only else offer.shares),
            parts=result.parts,
        )

    def parts(
        self, offer: Offer, call: ChildCall, outputs: Inputs, *, units: int, parts: tuple[Part, ...]
    ) -> tuple[Part, ...]:
        """The parts that a child call adds to its caller's receipt: its own, and one deeper those of its own calls.

        Args:
            offer: the DApp that was called.
            call: as it came.
            outputs: arrays [n, *shape] by name, as they go back.
            units: what the call used.
            parts: of the calls that the DApp made in turn.
        """
        amount = offer.price.of(units)
        own = Part(
            depth=1,
            dapp=offer.name,
            version=offer.release,
            model_digest="0x" + offer.digest,
            request_digest=self._digest(b"errand", offer.name.encode(), *tensor_bytes(call.inputs)),
            result_digest=self._digest(b"errand result", *tensor_bytes(outputs)),
            units=units,
            amount=amount,
            shares=split_charge(amount - sum(part.amount for part in parts if part.depth == 1), offer.shares),
        )
        return (own, *(replace(part, depth=part.depth + 1) for part in parts))

    def header(self, channel_id: str, record: ChargeRecord, body: ReceiptBody | None = None) -> str:
        """LEBEN-RECEIPT: the signed receipt.

        Args:
            channel_id: the channel that was charged.
            record: the charge.
            body: the fixed part, if this process made the charge; otherwise it is read from the record.
        """
        if body is not None:
            receipt = body.receipt(channel_id, record)
        else:
            receipt = Receipt.of_charge(
                channel_id,
                record.call_id,
                record.incarnation,
                record.seq,
                record.before,
                record.after,
                record.at_ms,
                record.body,
            )
        return encode_header(SignedReceipt.sign(receipt, self._chain_id, self._signer).to_json())
