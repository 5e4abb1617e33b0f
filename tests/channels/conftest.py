"""A small world of money: payers, owners, a mesh, and charges as the store would journal them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sqlalchemy import text

from channels.journal.journal import Journal
from channels.ledger.ledger import ClaimRow
from channels.ledger.sql_ledger import SqlLedger
from channels.protocol.digests import (
    Domain,
    channel_id,
    claim_digest,
    deposit_digest,
    deposit_nonce,
    finalize_digest,
    initiate_digest,
    refund_digest,
    voucher_digest,
)
from channels.protocol.signer import Signer
from channels.protocol.x402 import ChannelConfig, Deposit, Voucher
from channels.receipts import split_charge
from channels.settlement.settler import SettlePolicy, Settler

MESH, PAYER, OWNER_A, OWNER_B = (Signer(bytes([number] * 32)) for number in (1, 2, 3, 4))
RECEIVER = Signer(bytes([5] * 32)).address
SHARES = (("knowledge", OWNER_A.address, 3_333), ("compute", OWNER_B.address, 6_667))


def word32(number: int) -> str:
    return "0x" + number.to_bytes(32, "big").hex()


@dataclass
class Clock:
    now_s: float = 1_000_000.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class World:
    url: str = "sqlite://"
    journal_url: str = "sqlite://"
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.ledger = SqlLedger.open(self.url, self.clock)
        self.journal = Journal.open(self.journal_url)
        self.token = self.journal.acquire("test")
        self.chain_id = self.ledger.terms.chain_id
        self.charged: dict[str, int] = {}
        self.seq: dict[str, int] = {}
        self.stream = 0
        self.calls = 0

    def close(self) -> None:
        self.ledger.close()
        self.journal.close()

    def fund(self, address: str, amount: int) -> None:
        self.ledger.fund(address, amount)

    def holdings(self) -> dict[str, int]:
        """All money there is, by who holds it."""
        with self.ledger.database.read() as conn:
            return dict(conn.execute(text("SELECT account, amount FROM ledger_balance")).all())

    def claimed(self) -> int:
        """What is claimed for the receiver and not yet split."""
        return self.holdings().get(f"receiver:{RECEIVER}", 0)

    def verify(self) -> None:
        self.ledger.verify()

    def start_withdraw(self, amount: int, nonce: int, signer: Signer = PAYER, salt: int = 0) -> None:
        digest = initiate_digest(self.chain_id, self.identity(salt), amount, nonce)
        self.ledger.initiate_withdraw(self.config(salt), amount, nonce, signer.sign(digest))

    def finish_withdraw(self, nonce: int, salt: int = 0) -> None:
        digest = finalize_digest(self.chain_id, self.identity(salt), nonce)
        self.ledger.finalize_withdraw(self.config(salt), nonce, PAYER.sign(digest))

    def config(self, salt: int = 0) -> ChannelConfig:
        asset = self.ledger.terms.asset
        return ChannelConfig(PAYER.address, PAYER.address, RECEIVER, MESH.address, asset, 900, word32(salt))

    def identity(self, salt: int = 0) -> str:
        return channel_id(self.chain_id, self.config(salt))

    def authorise(self, amount: int, salt: int = 0, once: int = 0, signer: Signer = PAYER, shift_s: int = 0) -> Deposit:
        terms = self.ledger.terms
        token = Domain.of(terms.asset_name, terms.asset_version, terms.chain_id, terms.asset)
        lasts_s = 100 if shift_s else 1_000  # a chain's clock goes on while a busy machine takes its time
        window = int(self.clock.now_s) + shift_s - 10, int(self.clock.now_s) + shift_s + lasts_s
        nonce = deposit_nonce(self.identity(salt), word32(once))
        digest = deposit_digest(token, PAYER.address, amount, *window, nonce)
        return Deposit(amount, *window, word32(once), signer.sign(digest))

    def open_channel(self, amount: int, salt: int = 0) -> ChannelConfig:
        self.fund(PAYER.address, amount)
        self.ledger.deposit(self.config(salt), self.authorise(amount, salt))
        self.journal.remember_channel(self.config(salt), self.identity(salt), self.token)
        return self.config(salt)

    def voucher(self, maximum: int, salt: int = 0, signer: Signer = PAYER) -> Voucher:
        identity = self.identity(salt)
        return Voucher(identity, maximum, signer.sign(voucher_digest(self.chain_id, identity, maximum)))

    def row(self, total: int, salt: int = 0, maximum: int | None = None, signer: Signer = PAYER) -> ClaimRow:
        voucher = self.voucher(total if maximum is None else maximum, salt, signer)
        return ClaimRow(self.config(salt), voucher, total)

    def sign_claim(self, *rows: ClaimRow, signer: Signer = MESH) -> bytes:
        batch = [(row.voucher.channel_id, row.voucher.max_claimable, row.total_claimed) for row in rows]
        return signer.sign(claim_digest(self.chain_id, batch))

    def sign_refund(self, amount: int, nonce: int, salt: int = 0) -> bytes:
        return MESH.sign(refund_digest(self.chain_id, self.identity(salt), nonce, amount))

    def entry(self, amount: int, salt: int = 0, signer: Signer = PAYER, maximum: int | None = None, shares=SHARES):
        """The next charge of a channel, as `charge.lua` journals it."""
        identity = self.identity(salt)
        before = self.charged.get(identity, 0)
        self.charged[identity] = before + amount
        self.seq[identity] = self.seq.get(identity, 0) + 1
        self.stream += 1
        self.calls += 1
        body = {
            "dapp": "chdr",
            "version": "1.0",
            "model": word32(1),
            "request": word32(2),
            "result": word32(3),
            "units": 1,
            "shares": [[part.carrier, part.owner, part.amount] for part in split_charge(amount, shares)],
        }
        voucher = self.voucher(before + amount if maximum is None else maximum, salt, signer)
        call = word32(10_000 + self.calls)
        fields = {
            "channel": identity,
            "incarnation": "1",
            "seq": str(self.seq[identity]),
            "call": call,
            "key": call if self.calls % 2 else "",
            "before": str(before),
            "after": str(before + amount),
            "amount": str(amount),
            "at_ms": str(int(self.clock.now_s * 1000)),
            "proof_max": str(voucher.max_claimable),
            "proof_sig": "0x" + voucher.signature.hex(),
            "digest": word32(7),
            "body": json.dumps(body),
        }
        return f"{self.stream}-0", fields

    def charge(self, *amounts: int, salt: int = 0, **how: object) -> None:
        self.journal.append(0, [self.entry(amount, salt, **how) for amount in amounts], self.token)

    def settler(self, ledger: object = None, **policy: float) -> Settler:
        return Settler(self.journal, ledger or self.ledger, MESH, SettlePolicy(**policy), self.clock)


@pytest.fixture(scope="session")
def make_world() -> Callable[..., World]:
    """Makes worlds in memory; for property tests, which need a fresh one an example."""
    return World


@pytest.fixture
def world(ledger_url: str) -> Iterator[World]:
    """A world on a real database, of each engine in turn: ledger and journal share one."""
    opened = World(ledger_url, ledger_url)
    yield opened
    opened.close()


@pytest.fixture(params=["sqlite", "postgresql", "py-evm", "anvil"])
def anywhere(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    """A world on each kind of ledger there is: the conformance suite's."""
    kind = request.param
    if kind in ("py-evm", "anvil"):
        yield request.getfixturevalue("on_tester" if kind == "py-evm" else "on_anvil")
        return
    server = request.getfixturevalue("postgresql") if kind == "postgresql" else None
    url = server.database() if server else f"sqlite:///{tmp_path / 'any.db'}"
    opened = World(url, url)
    yield opened
    opened.close()
    if server:
        server.drop(url)


@pytest.fixture(scope="session")
def tester_chain() -> Iterator[object]:
    """A chain in this process, contracts placed."""
    from tests.channels.chains import TesterHost

    yield TesterHost()


@pytest.fixture(scope="session")
def anvil_chain() -> Iterator[object]:
    """A real node, contracts placed by `leben chain init`'s own code."""
    from tests.channels.chains import AnvilHost

    host = AnvilHost()
    yield host
    host.close()


@pytest.fixture
def on_tester(tester_chain: object) -> Iterator[World]:
    """A world on the chain in this process, which is as before afterwards."""
    from tests.channels.chains import on

    with on(tester_chain) as world:
        yield world


@pytest.fixture
def on_anvil(anvil_chain: object) -> Iterator[World]:
    """A world on the real node, which is as before afterwards."""
    from tests.channels.chains import on

    with on(anvil_chain) as world:
        yield world
