"""Pays owners on a chain: an epoch's split and root, earnings, and payouts.

The escrow pays the receiver; the receiver's account moves the epoch's sum into the `Split` contract in one transaction
with the root; owners withdraw by their own transaction or by a signed request sent for them. The contract is
`contracts/Split.vy`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from channels.errors import LedgerError
from channels.evm.chain import Chain, Event, Reverted, first_with
from channels.evm.sender import Sender
from channels.ledger import Credit
from channels.protocol import signed_by

CARRIER_NUMBERS = ("knowledge", "data", "compute", "operator", "guideline")
"""The carriers of `channels.receipts` by their numbers in `Split.vy`: stored on chains, so new ones go last."""
ANY_AMOUNT = 2**256 - 1
MAX_CREDITS = 256


class Owners:
    """The owners' side of one chain.

    Args:
        chain: that holds the money.
        sender: the receiver's account.
    """

    def __init__(self, chain: Chain, sender: Sender) -> None:
        self._chain, self._sender = chain, sender
        self._token = chain.token.address

    def split(self, epoch: int, root: str, receiver: str, credits: Sequence[Credit]) -> str:
        """See `Ledger.split`."""
        paid = [credit for credit in credits if credit.amount]
        total = sum(credit.amount for credit in paid)
        if (
            any(credit.amount < 0 or credit.carrier not in CARRIER_NUMBERS for credit in credits)
            or len(paid) > MAX_CREDITS
        ):
            raise LedgerError("split_invalid", f"a split has at most {MAX_CREDITS} credits, none of them negative")
        if receiver != self._sender.address:
            raise LedgerError("split_receiver", "only the receiver's own account can split its money")
        published = self.root(epoch, receiver)
        if published is not None:
            return self._same(epoch, receiver, published == root, paid)
        claimed, settled = self._chain.read(self._chain.escrow.functions.receivers(receiver, self._token))
        before = self._chain.events(self._chain.split.events.Published, receiver=receiver, token=self._token)
        if claimed - sum(event["args"]["amount"] for event in before) < total:
            raise LedgerError("split_exceeds_claimed", "an epoch pays only what was claimed for its receiver")
        rows = [(part.owner, CARRIER_NUMBERS.index(part.carrier), _dapp_bytes(part.dapp), part.amount) for part in paid]
        try:
            if claimed > settled:
                self._sender.send(self._chain.escrow.functions.settle(receiver, self._token))
            allowed = self._chain.token.functions.allowance(receiver, self._chain.split.address)
            if self._chain.read(allowed) < total:
                self._sender.send(self._chain.token.functions.approve(self._chain.split.address, ANY_AMOUNT))
            key = bytes.fromhex(root[2:])
            receipt = self._sender.send(self._chain.split.functions.split(self._token, epoch, key, rows))
        except Reverted as error:
            raise LedgerError("split_refused", f"the chain refuses the split: {error}") from error
        return str(self._chain.web3.to_hex(receipt["transactionHash"]))

    def root(self, epoch: int, receiver: str) -> str | None:
        """See `Ledger.root`."""
        root = self._chain.read(self._chain.split.functions.roots(receiver, self._token, epoch))
        return "0x" + root.hex() if any(root) else None

    def payouts(self, epoch: int, receiver: str) -> list[Credit]:
        """See `Ledger.payouts`."""
        published = self._published(epoch, receiver)
        return [] if published is None else self._credits(published)

    def earnings(self, owner: str) -> int:
        """See `Ledger.earnings`."""
        return int(self._chain.read(self._chain.split.functions.earnings(self._token, owner)))

    def earned(self, owner: str) -> list[Credit]:
        """See `Ledger.earned`."""
        sums: Counter[tuple[str, str]] = Counter()
        for event in self._credited(owner):
            credit = _credit(event)
            sums[credit.carrier, credit.dapp] += credit.amount
        return [Credit(owner, carrier, dapp, amount) for (carrier, dapp), amount in sorted(sums.items())]

    def earned_by_epoch(self, owner: str, count: int) -> list[tuple[int, Credit]]:
        """See `Ledger.earned_by_epoch`."""
        credited, blocks = self._credited(owner)[-count:], {}
        for event in credited:
            number = event["blockNumber"]
            if number not in blocks:
                blocks[number] = self._chain.events(self._chain.split.events.Published, number, number)
        rows = [(_epoch_of(event, blocks[event["blockNumber"]]), _credit(event)) for event in credited]
        return rows[::-1]

    def payout(self, owner: str, to: str, amount: int, nonce: int, signature: bytes) -> str:
        """See `Ledger.payout`."""
        if not signed_by(self._chain.facts.terms.payout_digest(owner, to, amount, nonce), signature, owner):
            raise LedgerError("payout_signature", "the payout is not signed by the owner for this ledger")
        if self._chain.read(self._chain.split.functions.spent(owner, nonce)):
            return self._paid(owner, to, amount, nonce)
        if not 0 < amount <= self.earnings(owner):
            raise LedgerError("payout_amount", "a payout is more than 0 and at most the owner's earnings")
        see = self._chain.split.functions
        try:
            receipt = self._sender.send(see.withdrawWithSignature(self._token, owner, to, amount, nonce, signature))
        except Reverted as error:
            raise LedgerError("payout_refused", f"the chain refuses the payout: {error}") from error
        return str(self._chain.web3.to_hex(receipt["transactionHash"]))

    def _paid(self, owner: str, to: str, amount: int, nonce: int) -> str:
        withdrawn = self._chain.events(self._chain.split.events.Withdrawn, owner=owner, token=self._token)
        event = first_with(withdrawn, nonce=nonce)
        if event is None or (event["args"]["to"], event["args"]["amount"]) != (to, amount):
            raise LedgerError("already_used", "this nonce was used for something else")
        return str(self._chain.web3.to_hex(event["transactionHash"]))

    def _same(self, epoch: int, receiver: str, same_root: bool, paid: list[Credit]) -> str:
        published = self._published(epoch, receiver)
        if published is None or not same_root or self._credits(published) != paid:
            raise LedgerError("already_used", "this epoch was published with something else")
        return str(self._chain.web3.to_hex(published["transactionHash"]))

    def _published(self, epoch: int, receiver: str) -> Event | None:
        event = self._chain.split.events.Published
        published = self._chain.events(event, receiver=receiver, token=self._token, epoch=epoch)
        return published[0] if published else None

    def _credits(self, published: Event) -> list[Credit]:
        number = published["blockNumber"]
        credited = self._chain.events(self._chain.split.events.Credited, number, number, token=self._token)
        closing = self._chain.events(self._chain.split.events.Published, number, number)
        return [
            _credit(event)
            for event in credited
            if event["transactionHash"] == published["transactionHash"]
            and _closing(event, closing)["logIndex"] == published["logIndex"]
        ]

    def _credited(self, owner: str) -> list[Event]:
        return self._chain.events(self._chain.split.events.Credited, owner=owner, token=self._token)


def _dapp_bytes(name: str) -> bytes:
    raw = name.encode()
    if len(raw) > 32:
        raise LedgerError("split_invalid", "on a chain a DApp's name has at most 32 bytes")
    return raw.ljust(32, b"\0")


def _credit(event: Event) -> Credit:
    fields = event["args"]
    dapp = fields["dapp"].rstrip(b"\0").decode(errors="replace")
    return Credit(fields["owner"], CARRIER_NUMBERS[fields["carrier"]], dapp, fields["amount"])


def _closing(credited: Event, published: Sequence[Event]) -> Any:
    """The event that closes the split which a credit belongs to: the next one in the block."""
    return next(event for event in published if event["logIndex"] > credited["logIndex"])


def _epoch_of(credited: Event, published: Sequence[Event]) -> int:
    return int(_closing(credited, published)["args"]["epoch"])
