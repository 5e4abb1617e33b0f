"""Opens the embedded ledger's database and posts its transactions: what channels and payouts have in common."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from typing import Self

from eth_utils import to_checksum_address
from sqlalchemy import Connection

from channels.errors import LedgerError
from channels.ledger import channel_rows
from channels.ledger.books import BrokenBooks, Entry, Posted, find, is_empty, post
from channels.ledger.ledger import LedgerChannel, Terms
from channels.ledger.rules import refused
from channels.protocol import ChannelConfig, Domain, Json, Verifier, channel_id, checksummed
from channels.sql import EMPTY, Database, DatabaseUnavailable


class SqlBase:
    """A ledger in one database; several processes may open it at once."""

    def __init__(self, database: Database, terms: Terms, clock: Callable[[], float]) -> None:
        self.database, self._terms, self._clock = database, terms, clock
        self._verifier = Verifier(terms.chain_id)
        self._token = Domain.of(terms.asset_name, terms.asset_version, terms.chain_id, terms.asset)

    @classmethod
    def open(
        cls, url: str, clock: Callable[[], float] = time.time, read_only: bool = False, create: bool = True
    ) -> Self:
        """Opens a ledger; `create` gives an empty database one with a chain id and an asset address of its own."""
        database = Database(url, read_only=read_only, create=create)
        try:
            genesis = _genesis(database, clock, create and not read_only)
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
        """The ledger's chain and asset."""
        return self._terms

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


def find_same(conn: Connection, reference: str, digest: bytes) -> str | None:
    """The transaction that did this before; one that did something else under the same reference is refused."""
    done = find(conn, reference)
    if done is None:
        return None
    if done.memo.get("digest") != digest.hex():
        raise LedgerError("already_used", "this nonce or epoch was used for something else")
    return done.hash


def _genesis(database: Database, clock: Callable[[], float], create: bool) -> Posted | None:
    with database.read() as conn:
        if not is_empty(conn):
            return find(conn, "genesis")
    if not create:
        raise DatabaseUnavailable(EMPTY)
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
