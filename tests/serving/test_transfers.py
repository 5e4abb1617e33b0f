"""Deposits and refunds, with a crash at every step: nothing is lost and nothing moves twice."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from channels.errors import LedgerError, NotReady
from channels.journal.journal import Journal
from channels.ledger.sql_ledger import SqlLedger
from channels.metering.channel import Outcome
from channels.metering.memory_store import MemoryStore
from channels.metering.store import Attempt, HoldRequest, LedgerSnapshot
from channels.protocol.digests import Domain, channel_id, deposit_digest, deposit_nonce, initiate_digest, voucher_digest
from channels.protocol.signer import Signer
from channels.protocol.x402 import ChannelConfig, Deposit, Payment, Voucher
from serving.treasury.transfers import ChannelTransfers

PAYER, MESH = Signer(b"\1" * 32), Signer(b"\2" * 32)
FUNDS = 10_000


class Crash(Exception):
    """The process ends here."""


class Bank:
    """A transfers on a real ledger and journal, and a store in memory that can be made to fail."""

    def __init__(self, folder: Path) -> None:
        url = f"sqlite:///{folder / 'books.db'}"
        self.ledger, self.journal = SqlLedger.open(url), Journal.open(url)
        self.store: Any = MemoryStore(exposure_cap=10_000)
        terms = self.ledger.terms
        self.config = ChannelConfig(
            PAYER.address, PAYER.address, MESH.address, MESH.address, terms.asset, 900, "0x" + "00" * 32
        )
        self.name = channel_id(terms.chain_id, self.config)
        self.ledger.fund(PAYER.address, FUNDS)
        self.restart()

    def restart(self) -> None:
        """A new process on the same books."""

        async def sql(step: Callable[[], Any]) -> Any:
            return step()

        self.token = self.journal.acquire("test")
        self.transfers = ChannelTransfers(self.store, self.ledger, self.journal, MESH, sql)

    def payment(self, ceiling: int, deposit: int = 0, refund: int | None = None) -> Payment:
        terms = self.ledger.terms
        signature = PAYER.sign(voucher_digest(terms.chain_id, self.name, ceiling))
        voucher = Voucher(self.name, ceiling, signature)
        if not deposit:
            return Payment("refund", {}, self.config, voucher, None, refund)
        salt = "0x" + f"{deposit:064x}"
        token = Domain.of(terms.asset_name, terms.asset_version, terms.chain_id, terms.asset)
        digest = deposit_digest(token, PAYER.address, deposit, 0, 2**40, deposit_nonce(self.name, salt))
        return Payment("deposit", {}, self.config, voucher, Deposit(deposit, 0, 2**40, salt, PAYER.sign(digest)))

    async def usable(self) -> int | Outcome:
        ask = HoldRequest(Attempt(self.name, "probe", "p", True, "d"), 0, 0, bytes(65))
        held = await self.store.hold(ask, dry=True)
        return held.outcome if held.outcome is Outcome.UNKNOWN_CHANNEL else int(held.usable)


Scenario = Callable[[Bank], Awaitable[None]]


@pytest.fixture
def at_bank(tmp_path: Path) -> Callable[[Scenario], None]:
    def run(scenario: Scenario) -> None:
        async def whole() -> None:
            bank = Bank(tmp_path)
            await bank.store.open_for_service(1)
            try:
                await scenario(bank)
                bank.ledger.verify()
            finally:
                bank.ledger.close()
                bank.journal.close()

        asyncio.run(whole())

    return run


def test_a_deposit_moves_once_however_often_it_is_sent(at_bank: Callable[[Scenario], None]) -> None:
    async def scenario(bank: Bank) -> None:
        for _ in range(3):
            moved = await bank.transfers.deposit(bank.payment(100, deposit=1_000), bank.token)
            assert moved.amount == 1_000
        assert bank.ledger.wallet(PAYER.address) == FUNDS - 1_000 and await bank.usable() == 1_000

    at_bank(scenario)


def test_a_refused_deposit_leaves_no_row_of_its_channel_and_a_channel_with_money_keeps_its_own(
    at_bank: Callable[[Scenario], None],
) -> None:
    async def scenario(bank: Bank) -> None:
        too_much = bank.payment(100, deposit=FUNDS + 1)
        with pytest.raises(LedgerError):
            await bank.transfers.deposit(too_much, bank.token)
        assert bank.journal.channel(bank.name) is None
        await bank.transfers.deposit(bank.payment(100, deposit=1_000), bank.token)
        with pytest.raises(LedgerError):
            await bank.transfers.deposit(too_much, bank.token)
        assert bank.journal.channel(bank.name) is not None

    at_bank(scenario)


def test_a_deposit_whose_mirror_fails_is_mirrored_by_the_keeper(at_bank: Callable[[Scenario], None]) -> None:
    async def scenario(bank: Bank) -> None:
        mirror = bank.store.mirror

        async def broken(_: LedgerSnapshot, token: int) -> None:
            raise NotReady("store_unavailable", "gone")

        bank.store.mirror = broken
        assert (await bank.transfers.deposit(bank.payment(100, deposit=1_000), bank.token)).amount == 1_000
        assert await bank.usable() is Outcome.UNKNOWN_CHANNEL
        bank.store.mirror = mirror
        await bank.transfers.watch(bank.token)
        assert await bank.usable() == 1_000

    at_bank(scenario)


@pytest.mark.parametrize("step", ["store.reserve_refund", "ledger.refund", "store.mirror"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_refund_that_crashes_is_finished_and_moves_once(
    at_bank: Callable[[Scenario], None], step: str, when: str
) -> None:
    async def scenario(bank: Bank) -> None:
        await bank.transfers.deposit(bank.payment(100, deposit=1_000), bank.token)
        owner, verb = getattr(bank, step.split(".")[0]), step.split(".")[1]
        real = getattr(owner, verb)

        async def crash_async(*words: Any) -> Any:
            if when == "after":
                await real(*words)
            raise Crash

        def crash(*words: Any) -> Any:
            if when == "after":
                real(*words)
            raise Crash

        setattr(owner, verb, crash if step == "ledger.refund" else crash_async)
        with pytest.raises(Crash):
            await bank.transfers.refund(bank.payment(0, refund=400), bank.token)
        setattr(owner, verb, real)
        bank.restart()
        for _ in range(2):
            await bank.transfers.resume(bank.token)
            assert bank.ledger.wallet(PAYER.address) == FUNDS - 600
            assert await bank.usable() == 600
        again = await bank.transfers.refund(bank.payment(0, refund=600), bank.token)
        assert again.amount == 600 and bank.ledger.wallet(PAYER.address) == FUNDS

    at_bank(scenario)


def test_no_refund_of_what_is_charged_or_held(at_bank: Callable[[Scenario], None]) -> None:
    async def scenario(bank: Bank) -> None:
        await bank.transfers.deposit(bank.payment(100, deposit=1_000), bank.token)
        ask = HoldRequest(Attempt(bank.name, "call", "t", True, "d"), 300, 300, bytes(65))
        assert (await bank.store.hold(ask)).outcome is Outcome.ACCEPTED
        with pytest.raises(NotReady):
            await bank.transfers.refund(bank.payment(0, refund=100), bank.token)
        await bank.store.charge(ask, 300, "{}", b"", 1_000)
        with pytest.raises(NotReady):
            await bank.transfers.refund(bank.payment(0, refund=100), bank.token)
        assert (await bank.transfers.refund(bank.payment(300), bank.token)).amount == 700
        assert bank.ledger.wallet(PAYER.address) == FUNDS - 300

    at_bank(scenario)


def test_a_withdrawal_ends_service_at_once(at_bank: Callable[[Scenario], None]) -> None:
    async def scenario(bank: Bank) -> None:
        await bank.transfers.deposit(bank.payment(100, deposit=1_000), bank.token)
        digest = initiate_digest(bank.ledger.terms.chain_id, bank.name, 1_000, 1)
        bank.ledger.initiate_withdraw(bank.config, 1_000, 1, PAYER.sign(digest))
        await bank.transfers.watch(bank.token)
        ask = HoldRequest(Attempt(bank.name, "call", "t", True, "d"), 300, 300, bytes(65))
        assert (await bank.store.hold(ask)).outcome is Outcome.WITHDRAWING

    at_bank(scenario)
