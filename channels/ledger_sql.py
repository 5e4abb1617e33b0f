"""`SqlLedger`: the embedded ledger, x402's settlement contract kept in SQL books.

Checks the same signatures as the contract, under a chain id drawn when the ledger is made, so that no signature is
good on another ledger. Every change is one transaction of `books.py` whose memo carries the channel after it: the
whole state can be recomputed and `verify()` does. Knows no receipt and no store. Next: `settler.py`.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import orjson
from eth_utils import is_hex_address, to_checksum_address
from sqlalchemy import BigInteger, Column, Connection, String, Table, Text, func, insert, select, update
from sqlalchemy.exc import SQLAlchemyError

from channels.books import MINT, BrokenBooks, Entry, balance, books, entries, find, is_empty, post, transactions, verify
from channels.channel import AMOUNT_LIMIT
from channels.database import Database
from channels.errors import X402, ChannelError, LedgerError
from channels.ledger import (
    DELAY_MAX_S,
    DELAY_MIN_S,
    Claimed,
    ClaimRow,
    Credit,
    Ledger,
    LedgerChannel,
    Settled,
    Terms,
    finalize_digest,
    initiate_digest,
    payout_digest,
)
from channels.voucher import (
    Domain,
    Verifier,
    channel_id,
    claim_digest,
    deposit_digest,
    deposit_nonce,
    refund_digest,
    signed_by,
)
from channels.x402 import ZERO_ADDRESS, ChannelConfig, Deposit, Json

STATE = ("balance", "total_claimed", "withdraw_amount", "withdraw_requested_at_s", "refund_nonce", "version")
channels = Table(
    "ledger_channel",
    books,
    Column("channel_id", String(66), primary_key=True),
    Column("config", Text, nullable=False),
    *(Column(name, BigInteger, nullable=False) for name in STATE),
)


class SqlLedger:
    """The ledger in one database; several processes may open it at once."""

    def __init__(self, database: Database, terms: Terms, clock: Callable[[], float]) -> None:
        self._database, self._terms, self._clock = database, terms, clock
        self._verifier = Verifier(terms.chain_id)
        self._token = Domain.of(terms.asset_name, terms.asset_version, terms.chain_id, terms.asset)

    @classmethod
    def open(cls, url: str, clock: Callable[[], float] = time.time) -> SqlLedger:
        """Opens a ledger; where there is none, makes one with a chain id and an asset address of its own."""
        database = Database(url, books, append_only=(transactions, entries))
        try:
            with database.write() as conn:
                if is_empty(conn):
                    post(conn, "genesis", int(clock() * 1000), "genesis", _fresh_terms(), ())
                genesis = find(conn, "genesis")
            if genesis is None:
                raise BrokenBooks("transaction 1 is not what was written")
            terms = Terms(**genesis.memo)
        except (ValueError, TypeError) as error:
            database.close()
            raise BrokenBooks("transaction 1 is not what was written") from error
        except BaseException:
            database.close()
            raise
        return cls(database, terms, clock)

    def close(self) -> None:
        """Closes the database."""
        self._database.close()

    @property
    def terms(self) -> Terms:
        """Which ledger this is."""
        return self._terms

    def wallet(self, address: str) -> int:
        """What an address holds outside channels."""
        with self._database.read() as conn:
            return balance(conn, _wallet(address))

    def earnings(self, owner: str) -> int:
        """What an owner has earned and not yet taken out."""
        with self._database.read() as conn:
            return balance(conn, _owner(owner))

    def earned(self, owner: str) -> list[Credit]:
        """Everything an owner ever earned, by role and DApp."""
        columns = entries.c
        total = func.sum(columns.amount)
        chosen = select(columns.carrier, columns.dapp, total).where(
            columns.account == _owner(owner), columns.carrier != ""
        )
        with self._database.read() as conn:
            rows = conn.execute(chosen.group_by(columns.carrier, columns.dapp).order_by(columns.carrier, columns.dapp))
            return [Credit(_address(owner), carrier, dapp, int(amount)) for carrier, dapp, amount in rows]

    def channel(self, channel_id: str) -> LedgerChannel | None:
        """A channel now, or None if nothing was ever deposited."""
        with self._database.read() as conn:
            return _load(conn, channel_id)

    def fund(self, address: str, amount: int) -> str:
        """Makes money for a wallet: embedded ledgers only, where the operator sells credit."""
        with self._database.write() as conn:
            if amount <= 0 or balance(conn, _wallet(address)) + amount >= AMOUNT_LIMIT:
                raise LedgerError("amount_invalid", "a wallet is funded with more than 0 and holds less than 2^53")
            return self._post(conn, "fund", None, {}, _moves(MINT, _wallet(address), amount))

    def deposit(self, config: ChannelConfig, deposit: Deposit) -> Settled:
        """Moves an authorised amount from the payer's wallet into the channel; once an authorisation."""
        identity = channel_id(self._terms.chain_id, config)
        nonce = deposit_nonce(identity, deposit.salt)
        window = deposit.valid_after, deposit.valid_before
        self._check_config(config)
        digest = deposit_digest(self._token, config.payer, deposit.amount, *window, nonce)
        if not signed_by(digest, deposit.signature, config.payer):
            raise _refused("receive_authorization_signature", "the deposit is not signed by the payer for this ledger")
        reference = f"deposit:{config.payer}:0x{nonce.hex()}"
        with self._database.write() as conn:
            channel = _load(conn, identity) or LedgerChannel(identity, config)
            # First: a retry after a lost reply may come after the window has closed, and must find its deposit.
            done = _find_same(conn, reference, digest)
            if done is not None:
                return Settled(done, channel)
            self._check_deposit(conn, channel, deposit)
            after = replace(channel, balance=channel.balance + deposit.amount, version=channel.version + 1)
            memo = {"digest": digest.hex(), "config": config.to_json(), "authorization": deposit.to_json()}
            moves = _moves(_wallet(config.payer), f"channel:{identity}", deposit.amount)
            return Settled(self._post(conn, "deposit", reference, memo, moves, after), after)

    def simulate_claim(self, rows: Sequence[ClaimRow]) -> None:
        """Raises what `claim` would raise for these rows, and moves nothing."""
        with self._database.read() as conn:
            self._claimable(conn, rows)

    def claim(self, rows: Sequence[ClaimRow], authorizer_signature: bytes) -> Claimed:
        """Moves what vouchers allow from channels to their receivers: all rows or none."""
        batch = [(row.voucher.channel_id, row.voucher.maximum, row.total_claimed) for row in rows]
        digest = claim_digest(self._terms.chain_id, batch)
        for authorizer in {row.config.receiver_authorizer for row in rows}:
            if not signed_by(digest, authorizer_signature, authorizer):
                raise _refused("authorizer_address_mismatch", "the claim is not signed by the receiver's authoriser")
        reference = f"claim:0x{digest.hex()}"
        with self._database.write() as conn:
            after = self._claimable(conn, rows)
            moved = tuple(amount for _, amount in after)
            if not any(moved):
                done = find(conn, reference)
                return Claimed(done.hash if done else "", moved)
            proofs = [[*map(str, batch[place]), row.voucher.signature.hex()] for place, row in enumerate(rows)]
            moves = [
                move
                for channel, amount in after
                if amount
                for move in _moves(f"channel:{channel.channel_id}", f"receiver:{channel.config.receiver}", amount)
            ]
            changed = [channel for channel, amount in after if amount]
            return Claimed(self._post(conn, "claim", reference, {"rows": proofs}, moves, *changed), moved)

    def split(self, epoch: int, root: str, receiver: str, credits: Sequence[Credit]) -> str:
        """Moves claimed money from a receiver to owners and publishes the epoch's root; once an epoch."""
        paid = [credit for credit in credits if credit.amount]
        total = sum(credit.amount for credit in paid)
        if any(credit.amount < 0 for credit in credits):
            raise LedgerError("split_invalid", "a credit is not negative")
        reference = f"split:{_address(receiver)}:{epoch}"
        digest = b"".join(_line(credit) for credit in paid) + root.encode()
        with self._database.write() as conn:
            done = _find_same(conn, reference, digest)
            if done is not None:
                return done
            if balance(conn, _receiver(receiver)) < total:
                raise LedgerError("split_exceeds_claimed", "an epoch pays only what was claimed for its receiver")
            moves = [Entry(_receiver(receiver), -total)] if total else []
            moves += [Entry(_owner(part.owner), part.amount, part.carrier, part.dapp) for part in paid]
            return self._post(conn, "split", reference, {"digest": digest.hex(), "root": root}, moves)

    def root(self, epoch: int, receiver: str) -> str | None:
        """The Merkle root published with an epoch."""
        with self._database.read() as conn:
            done = find(conn, f"split:{_address(receiver)}:{epoch}")
        return None if done is None else str(done.memo["root"])

    def payouts(self, epoch: int, receiver: str | None = None) -> list[Credit]:
        """What an epoch paid, to whom, for what; of every receiver if none is named."""
        whose = "%" if receiver is None else _address(receiver)
        chosen = (
            select(entries)
            .join(transactions)
            .where(transactions.c.reference.like(f"split:{whose}:{epoch}"), entries.c.carrier != "")
        )
        with self._database.read() as conn:
            rows = conn.execute(chosen.order_by(entries.c.transaction_id, entries.c.position)).all()
        return [Credit(row.account.removeprefix("owner:"), row.carrier, row.dapp, row.amount) for row in rows]

    def payout(self, owner: str, to: str, amount: int, nonce: int, signature: bytes) -> str:
        """Moves earnings to a wallet at the owner's signed request; once a nonce."""
        owner, to = _address(owner), _address(to)
        digest = payout_digest(self._terms.chain_id, owner, to, amount, nonce)
        if not signed_by(digest, signature, owner):
            raise LedgerError("payout_signature", "the payout is not signed by the owner for this ledger")
        with self._database.write() as conn:
            reference = f"request:{owner}:{nonce}"
            done = _find_same(conn, reference, digest)
            if done is not None:
                return done
            if not 0 < amount <= balance(conn, _owner(owner)):
                raise LedgerError("payout_amount", "a payout is more than 0 and at most the owner's earnings")
            return self._post(
                conn, "payout", reference, {"digest": digest.hex()}, _moves(_owner(owner), _wallet(to), amount)
            )

    def refund(self, config: ChannelConfig, amount: int, nonce: int, signature: bytes) -> Settled:
        """Gives unclaimed money back to the payer's wallet, signed by the receiver's authoriser; once a nonce."""
        with self._database.write() as conn:
            channel = self._known(conn, config)
            if nonce != channel.refund_nonce:
                raise LedgerError("refund_nonce", f"the channel's next refund has nonce {channel.refund_nonce}")
            digest = refund_digest(self._terms.chain_id, channel.channel_id, nonce, amount)
            if not signed_by(digest, signature, config.receiver_authorizer):
                raise _refused("authorizer_address_mismatch", "the refund is not signed by the receiver's authoriser")
            if channel.left == 0:
                raise _refused("refund_no_balance", "everything in the channel is claimed")
            if not 0 < amount <= channel.left:
                raise _refused("refund_amount_invalid", "a refund is more than 0 and at most what is unclaimed")
            after = replace(
                channel, balance=channel.balance - amount, refund_nonce=nonce + 1, version=channel.version + 1
            )
            moves = _moves(f"channel:{channel.channel_id}", _wallet(config.payer), amount)
            reference = f"refund:{channel.channel_id}:{nonce}"
            return Settled(self._post(conn, "refund", reference, {}, moves, after), after)

    def initiate_withdraw(self, config: ChannelConfig, amount: int, nonce: int, signature: bytes) -> Settled:
        """Starts the payer's withdrawal: its delay is the receiver's time to claim."""
        digest = initiate_digest(self._terms.chain_id, channel_id(self._terms.chain_id, config), amount, nonce)
        with self._database.write() as conn:
            channel, reference, done = self._requested(conn, config, nonce, digest, signature)
            if done is not None:
                return Settled(done, channel)
            if channel.withdraw_amount:
                raise LedgerError("withdraw_pending", "a withdrawal of this channel is pending")
            if not 0 < amount <= channel.left:
                raise LedgerError("withdraw_amount", "a withdrawal is more than 0 and at most what is unclaimed")
            after = replace(
                channel,
                withdraw_amount=amount,
                withdraw_requested_at_s=int(self._clock()),
                version=channel.version + 1,
            )
            return Settled(self._post(conn, "initiate", reference, {"digest": digest.hex()}, (), after), after)

    def finalize_withdraw(self, config: ChannelConfig, nonce: int, signature: bytes) -> Settled:
        """Gives the payer what is left of a withdrawal whose delay has passed."""
        digest = finalize_digest(self._terms.chain_id, channel_id(self._terms.chain_id, config), nonce)
        with self._database.write() as conn:
            channel, reference, done = self._requested(conn, config, nonce, digest, signature)
            if done is not None:
                return Settled(done, channel)
            if not channel.withdraw_amount:
                raise LedgerError("withdraw_not_pending", "no withdrawal of this channel is pending")
            if self._clock() < channel.withdraw_requested_at_s + config.withdraw_delay:
                raise LedgerError("withdraw_too_early", "the withdraw delay has not passed")
            # Claims and refunds may have taken part of it since: the payer gets what is left, never more.
            amount = min(channel.withdraw_amount, channel.left)
            after = replace(
                channel,
                balance=channel.balance - amount,
                withdraw_amount=0,
                withdraw_requested_at_s=0,
                version=channel.version + 1,
            )
            moves = _moves(f"channel:{channel.channel_id}", _wallet(config.payer), amount) if amount else ()
            return Settled(self._post(conn, "finalize", reference, {"digest": digest.hex()}, moves, after), after)

    def verify(self) -> tuple[int, str]:
        """Recomputes every hash, balance and channel; gives the number of transactions and the last hash.

        Raises:
            BrokenBooks: names the first transaction, account or channel that is not what was written.
        """
        expected: dict[str, Json] = {}
        number, head = 0, ""
        try:
            with self._database.read() as conn:
                for posted in verify(conn):
                    number, head = posted.number, posted.hash
                    for state in posted.memo.get("channels", ()):
                        expected[state["channel_id"]] = state
                self._check_channels(conn, expected)
        except SQLAlchemyError as error:
            raise BrokenBooks(f"what follows transaction {number} cannot be read") from error
        return number, head

    def _check_channels(self, conn: Connection, expected: dict[str, Json]) -> None:
        rows = {row["channel_id"]: row for row in conn.execute(select(channels)).mappings()}
        for identity in sorted(rows.keys() | expected.keys()):
            row = rows.get(identity)
            if row is None or {name: row[name] for name in ("channel_id", *STATE)} != expected.get(identity):
                raise BrokenBooks(f"channel {identity} is not what its transactions made it")
            try:
                config = ChannelConfig.from_json(orjson.loads(row["config"]))
                sound = row["config"] == _config_text(config) and channel_id(self._terms.chain_id, config) == identity
            except (ValueError, ChannelError):
                sound = False
            if not sound or balance(conn, f"channel:{identity}") != row["balance"] - row["total_claimed"]:
                raise BrokenBooks(f"channel {identity} does not hold what it says")

    def _post(
        self,
        conn: Connection,
        kind: str,
        reference: str | None,
        memo: Json,
        moves: Sequence[Entry],
        *changed: LedgerChannel,
    ) -> str:
        states = [{name: getattr(channel, name) for name in ("channel_id", *STATE)} for channel in changed]
        for channel in changed:
            _save(conn, channel)
        return post(conn, kind, int(self._clock() * 1000), reference, memo | {"channels": states}, moves)

    def _check_config(self, config: ChannelConfig) -> None:
        if config.token != self._terms.asset:
            raise _refused("token_mismatch", "the channel is in another asset than this ledger")
        if not DELAY_MIN_S <= config.withdraw_delay <= DELAY_MAX_S:
            raise _refused("withdraw_delay_out_of_range", f"withdrawDelay is {DELAY_MIN_S} to {DELAY_MAX_S} seconds")
        if ZERO_ADDRESS in (config.payer, config.receiver, config.receiver_authorizer):
            raise _refused("authorizer_not_configured", "payer, receiver and receiverAuthorizer are not zero")

    def _check_deposit(self, conn: Connection, channel: LedgerChannel, deposit: Deposit) -> None:
        now_s = self._clock()
        if deposit.amount <= 0:
            raise _refused("deposit_payload", "a deposit is more than 0")
        if now_s <= deposit.valid_after:
            raise _refused("payload_authorization_valid_after", "the authorisation is not valid yet")
        if now_s >= deposit.valid_before:
            raise _refused("payload_authorization_valid_before", "the authorisation has expired")
        if channel.balance + deposit.amount >= AMOUNT_LIMIT:
            raise LedgerError("balance_limit", "a channel's balance stays below 2^53")
        if balance(conn, _wallet(channel.config.payer)) < deposit.amount:
            raise _refused("insufficient_balance", "the payer's wallet does not cover the deposit")

    def _claimable(self, conn: Connection, rows: Sequence[ClaimRow]) -> list[tuple[LedgerChannel, int]]:
        if not rows:
            raise _refused("claim_payload", "a claim has at least one row")
        now: dict[str, LedgerChannel] = {}
        result = []
        for row in rows:
            before = now.get(row.voucher.channel_id) or self._known(conn, row.config)
            if before.channel_id != row.voucher.channel_id or before.config != row.config:
                raise _refused("channel_id_mismatch", "the voucher is for another channel")
            amount = max(0, row.total_claimed - before.total_claimed)
            if amount:
                self._check_row(before, row)
            after = replace(
                before, total_claimed=before.total_claimed + amount, version=before.version + (1 if amount else 0)
            )
            now[before.channel_id] = after
            result.append((after, amount))
        return result

    def _check_row(self, channel: LedgerChannel, row: ClaimRow) -> None:
        if row.total_claimed > row.voucher.maximum:
            raise _refused("charge_exceeds_signed_cumulative", "the claim is above the voucher's ceiling")
        if row.total_claimed > channel.balance:
            raise _refused("cumulative_exceeds_balance", "the claim is above the channel's balance")
        if not self._verifier.voucher(row.voucher, row.config):
            raise _refused("voucher_signature", "the voucher is not signed by the payer's authoriser")

    def _known(self, conn: Connection, config: ChannelConfig) -> LedgerChannel:
        channel = _load(conn, channel_id(self._terms.chain_id, config))
        if channel is None:
            raise _refused("channel_not_found", "nothing was ever deposited into this channel")
        return channel

    def _requested(
        self, conn: Connection, config: ChannelConfig, nonce: int, digest: bytes, signature: bytes
    ) -> tuple[LedgerChannel, str, str | None]:
        channel = self._known(conn, config)
        signers = {config.payer, config.payer_authorizer} - {ZERO_ADDRESS}
        if not any(signed_by(digest, signature, signer) for signer in signers):
            raise LedgerError("withdraw_signature", "the withdrawal is not signed by the payer for this ledger")
        reference = f"request:{config.payer}:{nonce}"
        return channel, reference, _find_same(conn, reference, digest)


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


def _refused(code: str, message: str) -> LedgerError:
    return LedgerError(X402 + code, message)


def _address(raw: str) -> str:
    if not is_hex_address(raw):
        raise LedgerError("address_invalid", "an address is 20 bytes in hex")
    return to_checksum_address(raw)


def _wallet(address: str) -> str:
    return f"wallet:{_address(address)}"


def _owner(address: str) -> str:
    return f"owner:{_address(address)}"


def _receiver(address: str) -> str:
    return f"receiver:{_address(address)}"


def _moves(source: str, target: str, amount: int) -> tuple[Entry, Entry]:
    return Entry(source, -amount), Entry(target, amount)


def _line(credit: Credit) -> bytes:
    return orjson.dumps([_address(credit.owner), credit.carrier, credit.dapp, credit.amount])


def _find_same(conn: Connection, reference: str, digest: bytes) -> str | None:
    """The transaction that did this before; one that did something else under the same name is refused."""
    done = find(conn, reference)
    if done is None:
        return None
    if done.memo.get("digest") != digest.hex():
        raise LedgerError("already_used", "this nonce or epoch was used for something else")
    return done.hash


def _config_text(config: ChannelConfig) -> str:
    return orjson.dumps(config.to_json()).decode()


def _load(conn: Connection, identity: str) -> LedgerChannel | None:
    row = conn.execute(select(channels).where(channels.c.channel_id == identity)).mappings().one_or_none()
    if row is None:
        return None
    config = ChannelConfig.from_json(orjson.loads(row["config"]))
    return LedgerChannel(identity, config, *(int(row[name]) for name in STATE))


def _save(conn: Connection, channel: LedgerChannel) -> None:
    state = {name: getattr(channel, name) for name in STATE}
    if channel.version == 1:
        conn.execute(
            insert(channels).values(channel_id=channel.channel_id, config=_config_text(channel.config), **state)
        )
    else:
        conn.execute(update(channels).where(channels.c.channel_id == channel.channel_id).values(**state))
