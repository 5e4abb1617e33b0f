"""Reads channels, receipts, epochs, statements and earnings for one reader, whose signature has proved its address.

Others' accounts look like missing ones: None. Amounts are decimal strings of atomic units.
"""

from __future__ import annotations

from typing import Any

from channels.journal import Journal, Statement, Statements
from channels.ledger import Ledger
from channels.protocol import Signer
from channels.receipts import ReceiptFile, SignedReceipt
from channels.settlement import Epochs

Json = dict[str, Any]


class Accounts:
    """Reads for signed readers.

    Args:
        journal: charges and epochs.
        ledger: money.
        signer: the mesh's receipt key; its address is the operator's and reads everything.
        epochs: of the same journal.
    """

    def __init__(self, journal: Journal, ledger: Ledger, signer: Signer, epochs: Epochs) -> None:
        self._journal, self._ledger, self._signer, self._epochs = journal, ledger, signer, epochs
        self._statements = Statements(journal)

    def channel(self, reader: str, channel: str) -> Json | None:
        """A channel's amounts, as ledger and journal have them, for its payer and its receiver."""
        state, row = self._ledger.channel(channel), self._journal.channel(channel)
        if state is None or row is None or not self._is_among(reader, state.config.payer, state.config.receiver):
            return None
        pending = None
        if state.withdraw_amount:
            ready_s = state.withdraw_requested_at_s + state.config.withdraw_delay
            pending = {"amount": str(state.withdraw_amount), "finalizeFrom": ready_s}
        return {
            "id": channel,
            "payer": state.config.payer,
            "receiver": state.config.receiver,
            "balance": str(state.balance),
            "claimed": str(state.total_claimed),
            "charged": str(row.charged),
            "receipts": row.seq,
            "withdrawal": pending,
            "quarantine": row.quarantine or None,
        }

    def receipt(self, reader: str, call_id: str) -> Json | None:
        """A receipt file, for the payer, the receiver and each owner in it."""
        stored = self._journal.stored(call_id)
        if stored is None:
            return None
        receipt, row = stored.receipt, self._journal.channel(stored.receipt.channel_id)
        owners = [owed.share.owner for owed in receipt.owed]
        if row is None or not self._is_among(reader, row.config.payer, row.config.receiver, *owners):
            return None
        chain_id = self._ledger.terms.chain_id
        signed = SignedReceipt.sign(receipt, chain_id, self._signer)
        proof = self._epochs.proof(call_id, chain_id)
        return ReceiptFile(signed, chain_id, stored.number, stored.before, stored.after, proof).to_json()

    def epoch(self, reader: str, number: int) -> Json | None:
        """A settled epoch: its root for everybody, what it paid for those whom it paid, its sum for its receiver."""
        epoch = self._epochs.epoch(number)
        if epoch is None or epoch.status != "closed":
            return None
        everything = self._is_among(reader, epoch.receiver)
        credits = [
            {"owner": part.owner, "carrier": part.carrier, "dapp": part.dapp, "amount": str(part.amount)}
            for part in epoch.credits
            if everything or part.owner == reader
        ]
        return {
            "epoch": number,
            "root": epoch.root,
            "closedMs": epoch.closed_ms,
            "transactions": list(epoch.transactions),
            "credits": credits,
            "claimed": str(epoch.claimed) if everything else None,
        }

    def statement(self, reader: str, owner: str, from_ms: int, to_ms: int, after: int) -> Statement | None:
        """A page of `owner`'s statement, for that owner and the operator."""
        if not self._is_among(reader, owner):
            return None
        return self._statements.page(owner, from_ms, to_ms, after)

    def earnings(self, reader: str, owner: str) -> Json | None:
        """What an owner earned by DApp and carrier, in all and in the newest epochs, and what can be withdrawn now."""
        if not self._is_among(reader, owner):
            return None
        rows = [
            {"epoch": number, "dapp": part.dapp, "carrier": part.carrier, "amount": str(part.amount)}
            for number, part in self._ledger.earned_by_epoch(owner)
        ]
        sums = [
            {"dapp": part.dapp, "carrier": part.carrier, "amount": str(part.amount)}
            for part in self._ledger.earned(owner)
        ]
        return {"owner": owner, "available": str(self._ledger.earnings(owner)), "totals": sums, "epochs": rows}

    def _is_among(self, reader: str, *parties: str) -> bool:
        return reader in parties or reader == self._signer.address
