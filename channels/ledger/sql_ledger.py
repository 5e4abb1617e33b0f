"""`SqlLedger`: the embedded ledger, x402's settlement contract kept in SQL books.

Checks the same signatures as the contract, under a chain id drawn when the ledger is made, so that no signature is
good on another ledger. Every change is one transaction of `books.py` whose memo carries the channel after it: the
whole state can be recomputed and `verify()` does. Knows no receipt and no store.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import orjson
from eth_utils import to_checksum_address
from sqlalchemy import Connection, func, select
from sqlalchemy.exc import SQLAlchemyError

from channels.errors import LedgerError
from channels.ledger import accounts, channel_rows
from channels.ledger.books import (
    MINT,
    BrokenBooks,
    Entry,
    Posted,
    balance,
    entries,
    find,
    is_empty,
    post,
    transactions,
    verify,
)
from channels.ledger.ledger import Claimed, ClaimRow, Credit, Ledger, LedgerChannel, LedgerUpdate, Terms
from channels.ledger.rules import (
    check_config,
    check_deposit,
    check_payer,
    claimable,
    refunded,
    refused,
    withdrawing,
    withdrawn,
)
from channels.metering import AMOUNT_LIMIT
from channels.protocol import (
    ChannelConfig,
    Deposit,
    Domain,
    Json,
    Verifier,
    channel_id,
    checksummed,
    claim_digest,
    deposit_digest,
    deposit_nonce,
    finalize_digest,
    initiate_digest,
    keccak,
    payout_digest,
    signed_by,
)
from channels.sql import Database


class SqlLedger:
    """The ledger in one database; several processes may open it at once."""

    def __init__(self, database: Database, terms: Terms, clock: Callable[[], float]) -> None:
        self.database, self._terms, self._clock = database, terms, clock
        self._verifier = Verifier(terms.chain_id)
        self._token = Domain.of(terms.asset_name, terms.asset_version, terms.chain_id, terms.asset)

    @classmethod
    def open(cls, url: str, clock: Callable[[], float] = time.time, read_only: bool = False) -> SqlLedger:
        """Opens a ledger; where there is none, makes one with a chain id and an asset address of its own."""
        database = Database(url, read_only=read_only)
        try:
            genesis = _genesis(database, clock)
            if genesis is None:
                raise BrokenBooks("transaction 1 is not what was written")
            terms = Terms(**genesis.memo)
            if checksummed(terms.asset) != terms.asset:
                raise ValueError("the asset is not an address")
            return cls(database, terms, clock)
        except (ValueError, TypeError) as error:
            database.close()
            raise BrokenBooks("transaction 1 is not what was written") from error
        except BaseException:
            database.close()
            raise

    def close(self) -> None:
        """Closes the database."""
        self.database.close()

    @property
    def terms(self) -> Terms:
        """Which ledger this is."""
        return self._terms

    def wallet(self, address: str) -> int:
        """What an address holds outside channels."""
        with self.database.read() as conn:
            return balance(conn, accounts.wallet(address))

    def earnings(self, owner: str) -> int:
        """What an owner has earned and not yet taken out."""
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
        """(epoch, what it paid an owner), the newest first, `count` at most."""
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

    def channel(self, channel_id: str) -> LedgerChannel | None:
        """A channel now, or None if nothing was ever deposited."""
        with self.database.read() as conn:
            return channel_rows.load(conn, channel_id)

    def withdrawing(self) -> list[LedgerChannel]:
        """Channels whose payer is withdrawing."""
        with self.database.read() as conn:
            return channel_rows.withdrawing(conn)

    def changed(self) -> list[LedgerChannel]:
        """None: nobody but the treasury changes a channel in these books."""
        return []

    def fund(self, address: str, amount: int) -> str:
        """Makes money for a wallet: embedded ledgers only, where the operator sells credit."""
        with self.database.write() as conn:
            if amount <= 0 or balance(conn, accounts.wallet(address)) + amount >= AMOUNT_LIMIT:
                raise LedgerError("amount_invalid", "a wallet is funded with more than 0 and holds less than 2^53")
            return self._post(conn, "fund", None, {}, accounts.moves(MINT, accounts.wallet(address), amount))

    def deposit(self, config: ChannelConfig, deposit: Deposit) -> LedgerUpdate:
        """Moves an authorised amount from the payer's wallet into the channel; once an authorisation."""
        identity = channel_id(self._terms.chain_id, config)
        nonce = deposit_nonce(identity, deposit.salt)
        window = deposit.valid_after, deposit.valid_before
        check_config(config, self._terms)
        digest = deposit_digest(self._token, config.payer, deposit.amount, *window, nonce)
        if not signed_by(digest, deposit.signature, config.payer):
            raise refused("receive_authorization_signature", "the deposit is not signed by the payer for this ledger")
        reference = f"deposit:{config.payer}:0x{nonce.hex()}"
        with self.database.write() as conn:
            channel = channel_rows.load(conn, identity) or LedgerChannel(identity, config)
            # First: a retry after a lost reply may come after the window has closed, and must find its deposit.
            done = _find_same(conn, reference, digest)
            if done is not None:
                return LedgerUpdate(done, channel)
            check_deposit(channel, deposit, balance(conn, accounts.wallet(config.payer)), self._clock())
            after = replace(channel, balance=channel.balance + deposit.amount, version=channel.version + 1)
            memo = {"digest": digest.hex(), "config": config.to_json(), "authorization": deposit.to_json()}
            moves = accounts.moves(accounts.wallet(config.payer), accounts.channel(identity), deposit.amount)
            return LedgerUpdate(self._post(conn, "deposit", reference, memo, moves, after), after)

    def simulate_claim(self, rows: Sequence[ClaimRow]) -> None:
        """Raises what `claim` would raise for these rows, and moves nothing."""
        with self.database.read() as conn:
            claimable(rows, lambda config: self._known(conn, config), self._verifier)

    def claim(self, rows: Sequence[ClaimRow], authorizer_signature: bytes) -> Claimed:
        """Moves what vouchers allow from channels to their receivers: all rows or none."""
        batch = [(row.voucher.channel_id, row.voucher.max_claimable, row.total_claimed) for row in rows]
        digest = claim_digest(self._terms.chain_id, batch)
        for authorizer in {row.config.receiver_authorizer for row in rows}:
            if not signed_by(digest, authorizer_signature, authorizer):
                raise refused("authorizer_address_mismatch", "the claim is not signed by the receiver's authoriser")
        reference = f"claim:0x{digest.hex()}"
        with self.database.write() as conn:
            after = claimable(rows, lambda config: self._known(conn, config), self._verifier)
            moved = tuple(amount for _, amount in after)
            if not any(moved):
                done = find(conn, reference)
                return Claimed(done.hash if done else "", moved)
            proofs = [[*map(str, batch[place]), row.voucher.signature.hex()] for place, row in enumerate(rows)]
            claimed = [(channel, amount) for channel, amount in after if amount]
            moves: list[Entry] = []
            for channel, amount in claimed:
                target = accounts.receiver(channel.config.receiver)
                moves += accounts.moves(accounts.channel(channel.channel_id), target, amount)
            changed = [channel for channel, _ in claimed]
            return Claimed(self._post(conn, "claim", reference, {"rows": proofs}, moves, *changed), moved)

    def split(self, epoch: int, root: str, receiver: str, credits: Sequence[Credit]) -> str:
        """Moves claimed money from a receiver to owners and publishes the epoch's root; once an epoch."""
        paid = [credit for credit in credits if credit.amount]
        total = sum(credit.amount for credit in paid)
        if any(credit.amount < 0 for credit in credits):
            raise LedgerError("split_invalid", "a credit is not negative")
        reference = f"split:{accounts.address(receiver)}:{epoch}"
        digest = keccak(b"".join(_line(credit) for credit in paid) + root.encode())
        with self.database.write() as conn:
            done = _find_same(conn, reference, digest)
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
        """What an epoch paid, to whom, for what; of every receiver if none is named."""
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
        """Moves earnings to a wallet at the owner's signed request; once a nonce."""
        owner, to = accounts.address(owner), accounts.address(to)
        digest = payout_digest(self._terms.chain_id, owner, to, amount, nonce)
        if not signed_by(digest, signature, owner):
            raise LedgerError("payout_signature", "the payout is not signed by the owner for this ledger")
        with self.database.write() as conn:
            reference = f"request:{owner}:{nonce}"
            done = _find_same(conn, reference, digest)
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

    def refund(self, config: ChannelConfig, amount: int, nonce: int, signature: bytes) -> LedgerUpdate:
        """Gives unclaimed money back to the payer's wallet, signed by the receiver's authoriser; once a nonce."""
        with self.database.write() as conn:
            channel = self._known(conn, config)
            after = refunded(channel, amount, nonce, signature, self._terms.chain_id)
            moves = accounts.moves(accounts.channel(channel.channel_id), accounts.wallet(config.payer), amount)
            reference = f"refund:{channel.channel_id}:{nonce}"
            return LedgerUpdate(self._post(conn, "refund", reference, {}, moves, after), after)

    def initiate_withdraw(self, config: ChannelConfig, amount: int, nonce: int, signature: bytes) -> LedgerUpdate:
        """Starts the payer's withdrawal: its delay is the receiver's time to claim."""
        digest = initiate_digest(self._terms.chain_id, channel_id(self._terms.chain_id, config), amount, nonce)
        with self.database.write() as conn:
            channel, reference, done = self._requested(conn, config, nonce, digest, signature)
            if done is not None:
                return LedgerUpdate(done, channel)
            after = withdrawing(channel, amount, self._clock())
            return LedgerUpdate(self._post(conn, "initiate", reference, {"digest": digest.hex()}, (), after), after)

    def finalize_withdraw(self, config: ChannelConfig, nonce: int, signature: bytes) -> LedgerUpdate:
        """Gives the payer what is left of a withdrawal whose delay has passed."""
        digest = finalize_digest(self._terms.chain_id, channel_id(self._terms.chain_id, config), nonce)
        with self.database.write() as conn:
            channel, reference, done = self._requested(conn, config, nonce, digest, signature)
            if done is not None:
                return LedgerUpdate(done, channel)
            after = withdrawn(channel, self._clock())
            amount = channel.balance - after.balance
            source, target = accounts.channel(channel.channel_id), accounts.wallet(config.payer)
            moves = accounts.moves(source, target, amount) if amount else ()
            return LedgerUpdate(self._post(conn, "finalize", reference, {"digest": digest.hex()}, moves, after), after)

    def verify(self) -> tuple[int, str]:
        """Recomputes every hash, balance and channel; gives the number of transactions and the last hash.

        Raises:
            BrokenBooks: names the first transaction, account or channel that is not what was written.
        """
        expected: dict[str, Json] = {}
        number, head = 0, ""
        try:
            with self.database.read() as conn:
                for posted in verify(conn):
                    number, head = posted.number, posted.hash
                    for state in posted.memo.get("channels", ()):
                        expected[state["channel_id"]] = state
                channel_rows.check_rows(conn, expected, self._terms.chain_id)
        except SQLAlchemyError as error:
            raise BrokenBooks(f"what follows transaction {number} cannot be read") from error
        return number, head

    def _post(
        self,
        conn: Connection,
        kind: str,
        reference: str | None,
        memo: Json,
        moves: Sequence[Entry],
        *changed: LedgerChannel,
    ) -> str:
        for channel in changed:
            channel_rows.save(conn, channel)
        return post(
            conn,
            kind,
            int(self._clock() * 1000),
            reference,
            memo | {"channels": [channel_rows.state(channel) for channel in changed]},
            moves,
        )

    def _known(self, conn: Connection, config: ChannelConfig) -> LedgerChannel:
        channel = channel_rows.load(conn, channel_id(self._terms.chain_id, config))
        if channel is None:
            raise refused("channel_not_found", "nothing was ever deposited into this channel")
        return channel

    def _requested(
        self, conn: Connection, config: ChannelConfig, nonce: int, digest: bytes, signature: bytes
    ) -> tuple[LedgerChannel, str, str | None]:
        channel = self._known(conn, config)
        check_payer(config, digest, signature)
        reference = f"request:{config.payer}:{nonce}"
        return channel, reference, _find_same(conn, reference, digest)


def _genesis(database: Database, clock: Callable[[], float]) -> Posted | None:
    with database.read() as conn:
        if not is_empty(conn):
            return find(conn, "genesis")
    with database.write() as conn:
        if is_empty(conn):  # else another process was first
            post(conn, "genesis", int(clock() * 1000), "genesis", _fresh_terms(), ())
        return find(conn, "genesis")


def _fresh_terms() -> Json:
    return {
        "chain_id": 2**31 + secrets.randbelow(2**52 - 2**31),
        "asset": to_checksum_address(secrets.token_bytes(20)),
        "asset_name": "Leben Credit",
        "asset_version": "1",
        "decimals": 6,
    }


def _fits(ledger: SqlLedger) -> Ledger:
    return ledger


def _line(credit: Credit) -> bytes:
    return orjson.dumps([accounts.address(credit.owner), credit.carrier, credit.dapp, credit.amount])


def _find_same(conn: Connection, reference: str, digest: bytes) -> str | None:
    """The transaction that did this before; one that did something else under the same name is refused."""
    done = find(conn, reference)
    if done is None:
        return None
    if done.memo.get("digest") != digest.hex():
        raise LedgerError("already_used", "this nonce or epoch was used for something else")
    return done.hash
