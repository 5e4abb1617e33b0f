"""Pays owners from the embedded ledger: splits of claimed money, earnings and signed payouts."""

from __future__ import annotations

from collections.abc import Sequence

import orjson
from sqlalchemy import func, select

from channels.errors import LedgerError
from channels.ledger import accounts
from channels.ledger.books import Entry, balance, entries, find, transactions
from channels.ledger.ledger import Credit
from channels.ledger.sql_base import SqlBase, find_same
from channels.protocol import keccak, payout_digest, signed_by


class SqlPayouts(SqlBase):
    """What owners earn and take out."""

    def earnings(self, owner: str) -> int:
        """The amount that an owner has earned and not yet taken out."""
        with self.database.read() as conn:
            return balance(conn, accounts.owner(owner))

    def earned(self, owner: str) -> list[Credit]:
        """Everything an owner ever earned, by carrier and DApp."""
        columns = entries.c
        total = func.sum(columns.amount)
        chosen = (
            select(columns.carrier, columns.dapp, total)
            .join(transactions)
            .where(columns.account == accounts.owner(owner), transactions.c.kind == "split")
        )
        with self.database.read() as conn:
            rows = conn.execute(chosen.group_by(columns.carrier, columns.dapp).order_by(columns.carrier, columns.dapp))
            return [Credit(accounts.address(owner), carrier, dapp, int(amount)) for carrier, dapp, amount in rows]

    def earned_by_epoch(self, owner: str, count: int = 1_000) -> list[tuple[int, Credit]]:
        """(epoch, credit) of an owner, the newest first, at most `count`."""
        columns = entries.c
        chosen = (
            select(transactions.c.reference, columns.carrier, columns.dapp, columns.amount)
            .join(transactions)
            .where(columns.account == accounts.owner(owner), transactions.c.kind == "split")
            .order_by(columns.transaction_id.desc(), columns.position)
            .limit(count)
        )
        with self.database.read() as conn:
            return [
                (int(reference.rpartition(":")[2]), Credit(accounts.address(owner), carrier, dapp, int(amount)))
                for reference, carrier, dapp, amount in conn.execute(chosen)
            ]

    def split(self, epoch: int, root: str, receiver: str, credits: Sequence[Credit]) -> str:
        """Moves claimed money from a receiver to owners and publishes the epoch's root, once per epoch."""
        paid = [credit for credit in credits if credit.amount]
        total = sum(credit.amount for credit in paid)
        if any(credit.amount < 0 for credit in credits):
            raise LedgerError("split_invalid", "a credit is not negative")
        reference = f"split:{accounts.address(receiver)}:{epoch}"
        digest = keccak(b"".join(_line(credit) for credit in paid) + root.encode())
        with self.database.write() as conn:
            done = find_same(conn, reference, digest)
            if done is not None:
                return done
            if balance(conn, accounts.receiver(receiver)) < total:
                raise LedgerError("split_exceeds_claimed", "an epoch pays only what was claimed for its receiver")
            moves = [Entry(accounts.receiver(receiver), -total)] if total else []
            moves += [Entry(accounts.owner(part.owner), part.amount, part.carrier, part.dapp) for part in paid]
            return self._post(conn, "split", reference, {"digest": digest.hex(), "root": root}, moves)

    def root(self, epoch: int, receiver: str) -> str | None:
        """The Merkle root published with an epoch."""
        with self.database.read() as conn:
            done = find(conn, f"split:{accounts.address(receiver)}:{epoch}")
        return None if done is None else str(done.memo["root"])

    def payouts(self, epoch: int, receiver: str | None = None) -> list[Credit]:
        """The credits of an epoch; of every receiver if none is named."""
        whose = "%" if receiver is None else accounts.address(receiver)
        chosen = (
            select(entries)
            .join(transactions)
            .where(transactions.c.reference.like(f"split:{whose}:{epoch}"), entries.c.amount > 0)
        )
        with self.database.read() as conn:
            rows = conn.execute(chosen.order_by(entries.c.transaction_id, entries.c.position)).all()
        return [Credit(row.account.removeprefix("owner:"), row.carrier, row.dapp, row.amount) for row in rows]

    def payout(self, owner: str, to: str, amount: int, nonce: int, signature: bytes) -> str:
        """Moves earnings to a wallet at the owner's signed request, once per nonce."""
        owner, to = accounts.address(owner), accounts.address(to)
        digest = payout_digest(self._terms.chain_id, owner, to, amount, nonce)
        if not signed_by(digest, signature, owner):
            raise LedgerError("payout_signature", "the payout is not signed by the owner for this ledger")
        with self.database.write() as conn:
            reference = f"request:{owner}:{nonce}"
            done = find_same(conn, reference, digest)
            if done is not None:
                return done
            if not 0 < amount <= balance(conn, accounts.owner(owner)):
                raise LedgerError("payout_amount", "a payout is more than 0 and at most the owner's earnings")
            return self._post(
                conn,
                "payout",
                reference,
                {"digest": digest.hex()},
                accounts.moves(accounts.owner(owner), accounts.wallet(to), amount),
            )


def _line(credit: Credit) -> bytes:
    return orjson.dumps([accounts.address(credit.owner), credit.carrier, credit.dapp, credit.amount])
