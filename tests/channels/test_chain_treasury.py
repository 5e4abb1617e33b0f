"""The treasury as it runs, on a real node."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from pydantic import SecretStr

from channels.channel import Outcome
from channels.evm_payer import ChainPayer
from channels.evm_place import mint
from channels.evm_sender import Sender
from channels.ledger import payout_digest
from channels.voucher import Signer, channel_id
from serving.ledgers import ChainSpec
from serving.treasury import Treasury, TreasurySpec
from tests.channels.chains import QUICK, RECEIVER_KEY, STRANGER, EvmWorld
from tests.serving.test_treasury import CAP, KEYS, OWNERS, PAYER, RECEIPTS, Office, refusal, until

COIN = hex(10**18)


class ChainOffice(Office):
    """A treasury on a chain."""

    world: EvmWorld

    def open(self, holder: str = "one", keys: Any = KEYS, retired: Any = ()) -> Any:
        chain = ChainSpec(SecretStr(self.world.host.anvil.url), self.world.facts, SecretStr(RECEIVER_KEY.secret()))
        urls, limits = (SecretStr(self.ledger_url), SecretStr(self.store_url)), (CAP, 10_000.0, 10**9)
        return Treasury.func_or_class(TreasurySpec(*urls, *keys, *limits, holder, retired, chain))

    async def start(self) -> None:
        await super().start()

        self.config = replace(self.config, receiver=str(RECEIVER_KEY.address))
        self.name = channel_id(self.terms.chain_id, self.config)

    async def deposit(self, amount: int) -> None:
        mint(self.world.chain, Sender(self.world.chain, STRANGER, QUICK), PAYER.address, amount)
        moved = await self.treasury.deposit(self.payment(0, amount))
        assert moved.amount == amount, moved


@pytest.fixture
def office(on_anvil: Any, store_url: str, tmp_path: Any) -> ChainOffice:
    on_anvil.host.anvil.ask("anvil_setBalance", PAYER.address, COIN)
    made = ChainOffice(f"sqlite:///{tmp_path / 'journal.db'}", store_url)
    made.world = on_anvil
    return made


def run(office: ChainOffice, scenario: Any) -> None:
    async def whole() -> None:
        await office.start()
        try:
            await scenario()
            await office.treasury._sql(office.treasury._journal.verify)
        finally:
            await office.client.aclose()
            await office.store.close()
            await office.stop()

    asyncio.run(whole())


def test_deposit_calls_settlement_refund_and_payout_are_on_the_chain_and_add_up(office: ChainOffice) -> None:
    async def scenario() -> None:
        await office.deposit(50_000)
        for price in (1_000, 333, 7):
            await office.call(price)
        done = await office.treasury.settle()
        assert done["claimed"] == 1_340 and sum(row["amount"] for row in done["payouts"]) == 1_340
        file = await office.account(PAYER).receipt(office.calls[0])
        root = office.world.ledger.root(file.proof.epoch, str(RECEIVER_KEY.address))
        assert [one.sound for one in file.check(RECEIPTS.address, root)] == [True, True, True]
        back = await office.treasury.refund(office.payment(office.charged))
        assert back.amount == 48_660 == office.wallet(PAYER)
        owner = OWNERS["data"]
        earned = await office.account(owner).earnings()
        taken = await office.account(owner).withdraw_earnings(owner.address, int(earned["available"]))
        assert office.wallet(owner) == int(taken["amount"]) == int(earned["available"]) > 0
        stolen = payout_digest(office.terms.chain_id, owner.address, PAYER.address, 1, 5)
        refused = await office.treasury.payout(owner.address, PAYER.address, 1, 5, STRANGER.sign(stolen))
        assert refused[0] == "payout_signature"

    run(office, scenario)


def test_a_payer_that_withdraws_by_its_own_transaction_stops_service_and_what_it_owes_is_claimed(
    office: ChainOffice,
) -> None:
    async def scenario() -> None:
        await office.deposit(50_000)
        await office.call(4_000)
        payer = ChainPayer(office.world.chain, Signer(bytes([11]) * 32), QUICK)
        await asyncio.to_thread(payer.initiate, office.config, 50_000)

        async def claimed() -> bool:
            return (await office.account(PAYER).channel(office.name))["claimed"] == "4000"

        await until(claimed)
        assert await office.call(10) is Outcome.WITHDRAWING
        with refusal("withdraw_on_chain"):
            await office.account(PAYER).initiate(office.name, 1_000)
        office.world.clock.now_s += 901
        await asyncio.to_thread(payer.finalize, office.config)
        assert office.wallet(PAYER) == 46_000

    run(office, scenario)
