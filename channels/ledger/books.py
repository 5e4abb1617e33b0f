"""Keeps double-entry books: append-only transactions in a hash chain, and the balances they add up to.

A transaction's hash covers its entries, its memo and the hash before it: a changed byte anywhere is found, and the last
hash stands for all.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import orjson
from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Connection,
    ForeignKey,
    Integer,
    MetaData,
    Row,
    String,
    Table,
    Text,
    func,
    insert,
    select,
    update,
)

from channels.errors import LedgerError
from channels.protocol import Json, keccak

LINE = ("account", "amount", "carrier", "dapp")
MINT = "mint"
"""The source of money: the only account below zero."""
GENESIS = "0x" + "00" * 32

books = MetaData()
Number = Integer().with_variant(BigInteger(), "postgresql")
Name = String(80).with_variant(Text(), "postgresql")
transactions = Table(
    "ledger_transaction",
    books,
    Column("id", Number, primary_key=True, autoincrement=False),
    Column("kind", String(20), nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("reference", String(200), unique=True),
    Column("memo", Text, nullable=False),
    Column("prev_hash", String(66), nullable=False),
    Column("hash", String(66), nullable=False, unique=True),
)
entries = Table(
    "ledger_entry",
    books,
    Column("transaction_id", Number, ForeignKey("ledger_transaction.id"), primary_key=True),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("account", String(80), nullable=False, index=True),
    Column("amount", BigInteger, nullable=False),
    Column("carrier", Name, nullable=False),
    Column("dapp", Name, nullable=False),
)
balances = Table(
    "ledger_balance",
    books,
    Column("account", String(80), primary_key=True),
    Column("amount", BigInteger, nullable=False),
    CheckConstraint(f"amount >= 0 OR account = '{MINT}'"),
)


class BrokenBooks(LedgerError):
    """The books were changed from outside: the message names the first transaction or account that is wrong."""

    def __init__(self, message: str) -> None:
        super().__init__("ledger_tampered", message)


@dataclass(frozen=True, slots=True)
class Entry:
    """A move on one account in atomic units; the entries of a transaction sum to 0."""

    account: str
    amount: int
    carrier: str = ""
    dapp: str = ""


@dataclass(frozen=True, slots=True)
class Posted:
    """A transaction in the books."""

    number: int
    kind: str
    hash: str
    memo: Json


def balance(conn: Connection, account: str) -> int:
    """The amount that an account holds."""
    return int(conn.scalar(select(balances.c.amount).where(balances.c.account == account)) or 0)


def is_empty(conn: Connection) -> bool:
    """True if nothing was ever written."""
    return conn.scalar(select(func.count()).select_from(transactions)) == 0


def find(conn: Connection, reference: str) -> Posted | None:
    """The transaction with a reference, or None."""
    table = transactions.c
    row = conn.execute(
        select(table.id, table.kind, table.hash, table.memo).where(table.reference == reference)
    ).one_or_none()
    return None if row is None else Posted(row.id, row.kind, row.hash, orjson.loads(row.memo))


def post(conn: Connection, kind: str, at_ms: int, reference: str | None, memo: Json, moves: Sequence[Entry]) -> str:
    """Appends a transaction and moves its balances; returns its hash, which names it.

    Raises:
        ValueError: the moves do not sum to 0; nothing unbalanced is ever written.
    """
    if sum(move.amount for move in moves) != 0:
        raise ValueError("the entries of a transaction sum to 0")
    table = transactions.c
    last = conn.execute(select(table.id, table.hash).order_by(table.id.desc()).limit(1)).one_or_none()
    number, previous = (last.id + 1, last.hash) if last else (1, GENESIS)
    text = orjson.dumps(memo, option=orjson.OPT_SORT_KEYS).decode()
    lines = [(move.account, move.amount, move.carrier, move.dapp) for move in moves]
    own = _hash(number, kind, at_ms, reference, text, previous, lines)
    head = {"id": number, "kind": kind, "at_ms": at_ms, "reference": reference, "memo": text}
    conn.execute(insert(transactions).values(**head, prev_hash=previous, hash=own))
    rows = [
        {"transaction_id": number, "position": place} | dict(zip(LINE, line, strict=True))
        for place, line in enumerate(lines)
    ]
    if rows:
        conn.execute(insert(entries), rows)
    net: dict[str, int] = defaultdict(int)
    for account, amount, _, _ in lines:
        net[account] += amount
    for account, amount in net.items():
        _move(conn, account, amount)
    return own


def verify(conn: Connection) -> Iterator[Posted]:
    """Recomputes the chain and every balance; yields each transaction once it is verified.

    Raises:
        BrokenBooks: at the first that differs.
    """
    previous, count, seen = GENESIS, 0, 0
    totals: dict[str, int] = defaultdict(int)
    for row in conn.execute(select(transactions).order_by(transactions.c.id)):
        lines = _lines(conn, row.id)
        count, seen = count + 1, seen + len(lines)
        if not _is_sound(row, lines, count, previous):
            raise BrokenBooks(f"transaction {count} is not what was written")
        for account, amount, _, _ in lines:
            totals[account] += amount
        previous = row.hash
        yield Posted(row.id, row.kind, row.hash, orjson.loads(row.memo))
    if conn.scalar(select(func.count()).select_from(entries)) != seen:
        raise BrokenBooks("there are entries without a transaction")
    stored = {row.account: row.amount for row in conn.execute(select(balances))}
    for account in sorted(stored.keys() | totals.keys()):
        if stored.get(account) != totals.get(account):
            raise BrokenBooks(f"the balance of {account} is not the sum of its entries")


def _move(conn: Connection, account: str, amount: int) -> None:
    # Added here, not in SQL: past 64 bits SQLite would turn the sum into a float.
    held = conn.scalar(select(balances.c.amount).where(balances.c.account == account))
    if held is None:
        conn.execute(insert(balances).values(account=account, amount=amount))
    else:
        conn.execute(update(balances).where(balances.c.account == account).values(amount=int(held) + amount))


def _lines(conn: Connection, number: int) -> list[tuple[str, int, str, str]]:
    columns = entries.c
    chosen = select(columns.position, columns.account, columns.amount, columns.carrier, columns.dapp)
    rows = conn.execute(chosen.where(columns.transaction_id == number).order_by(columns.position)).all()
    if [row.position for row in rows] != list(range(len(rows))):
        raise BrokenBooks(f"entries of transaction {number} are missing or renumbered")
    return [(row.account, row.amount, row.carrier, row.dapp) for row in rows]


def _is_sound(row: Row[tuple[object, ...]], lines: list[tuple[str, int, str, str]], number: int, previous: str) -> bool:
    try:
        own = _hash(number, row.kind, row.at_ms, row.reference, row.memo, previous, lines)
        return (row.id, row.prev_hash, row.hash) == (number, previous, own) and sum(line[1] for line in lines) == 0
    except TypeError:  # a value of another type than was written
        return False


def _hash(
    number: int,
    kind: str,
    at_ms: int,
    reference: str | None,
    memo: str,
    previous: str,
    lines: list[tuple[str, int, str, str]],
) -> str:
    return "0x" + keccak(orjson.dumps([number, kind, at_ms, reference, memo, previous, lines])).hex()
