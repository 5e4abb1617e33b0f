"""Declares the answers about money: channels, receipts, epochs, statements and earnings.

Amounts are decimal strings of atomic units.
"""

from __future__ import annotations

from pydantic import Field

from serving.control.schemas.base import CamelSchema, Schema


class PendingWithdrawal(CamelSchema):
    """A withdrawal under notice; `finalizeFrom` is in seconds since 1970."""

    amount: str
    finalize_from: int


class Channel(Schema):
    """A channel, as ledger and journal have it."""

    id: str
    payer: str
    receiver: str
    balance: str
    claimed: str
    charged: str
    receipts: int
    withdrawal: PendingWithdrawal | None
    quarantine: str | None


class Paid(Schema):
    """What one owner got for one carrier."""

    carrier: str
    owner: str
    amount: str


class ReceiptPart(CamelSchema):
    """What another DApp did for a call."""

    depth: int
    dapp: str
    version: str
    model_digest: str
    request_digest: str
    result_digest: str
    units: int
    amount: str
    shares: list[Paid]


class JournalLink(Schema):
    """A receipt's place in the journal's hash chain."""

    number: int
    before: str
    after: str


class MerkleProof(Schema):
    """A proof that a receipt is in a settled epoch; each step is a side and a hash."""

    epoch: int
    root: str
    steps: list[str]


class ReceiptFile(CamelSchema):
    """A signed receipt with everything that is needed to check it offline; `atMs` is in milliseconds since 1970."""

    receipt: str
    call_id: str
    channel_id: str
    incarnation: int
    seq: int
    before: str
    after: str
    dapp: str
    version: str
    model_digest: str
    request_digest: str
    result_digest: str
    units: int
    amount: str
    at_ms: int
    shares: list[Paid]
    parts: list[ReceiptPart] = Field(default_factory=list)
    signature: str
    chain_id: int
    chain: JournalLink
    proof: MerkleProof | None


class Credit(Schema):
    """What an epoch paid one owner for one carrier of a DApp."""

    owner: str
    carrier: str
    dapp: str
    amount: str


class Epoch(CamelSchema):
    """A settled epoch; `claimed` is for its receiver, `closedMs` in milliseconds since 1970."""

    epoch: int
    root: str
    closed_ms: int
    transactions: list[str]
    credits: list[Credit]
    claimed: str | None


class StatementLine(Schema):
    """One charge as it concerns one address: `carrier` is `payer`, or what the address was paid for.

    `role` repeats `carrier` until 0.3.
    """

    number: int
    at_ms: int
    carrier: str
    dapp: str
    version: str
    units: int
    amount: str
    epoch: int | None
    channel: str
    seq: int
    receipt: str
    role: str


class Statement(Schema):
    """A page of a statement; `next` continues it as `after`."""

    owner: str
    lines: list[StatementLine]
    charged: str
    earned: str
    next: int | None


class Earned(Schema):
    """What an owner earned with one DApp for one carrier."""

    dapp: str
    carrier: str
    amount: str


class EarnedInEpoch(Earned):
    """The same, in one epoch."""

    epoch: int


class Earnings(Schema):
    """What an owner earned, and what can be withdrawn now."""

    owner: str
    available: str
    totals: list[Earned]
    epochs: list[EarnedInEpoch]


class Payout(Schema):
    """Earnings that were moved, and what is left."""

    transaction: str
    amount: str
    available: str


class Withdrawal(Schema):
    """A channel after a step of its withdrawal."""

    transaction: str
    balance: str
    claimed: str
