"""The treasury as it runs, on a real node that can be cut off: nothing is lost or served beyond the cap."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from pydantic import SecretStr

from channels.errors import LedgerError, NotReady
from channels.evm.deploy import mint
from channels.evm.payer import ChainPayer
from channels.evm.sender import Sender
from channels.metering.channel import Outcome
from channels.protocol.digests import channel_id, payout_digest
from channels.protocol.signer import Signer
from serving.treasury.deployment import Treasury
from serving.treasury.ledgers import ChainSpec
from tests.channels.chains import QUICK, RECEIVER_KEY, STRANGER, EvmWorld
from tests.serving.test_treasury import KEYS, OWNERS, PAYER, RECEIPTS, Office, refusal, until

COIN = hex(10**18)


class Line:
    """The way to the node; what comes while it is cut is not answered, and the rest after `delay_s`."""

    def __init__(self, to: str) -> None:
        self.cut, self.delay_s = False, 0.0
        line, port = self, int(to.rpartition(":")[2])

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if line.cut:
                    self.close_connection = True
                    return
                time.sleep(line.delay_s)
                far = HTTPConnection("127.0.0.1", port)
                far.request("POST", "/", body, {"Content-Type": "application/json"})
                answer = far.getresponse().read()
                far.close()
                with suppress(OSError):  # who asked may have given up
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(answer)))
                    self.end_headers()
                    self.wfile.write(answer)

            def log_message(self, *words: Any) -> None:
                """Silent."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class ChainOffice(Office):
    """A treasury on a chain."""

    world: EvmWorld
    line: Line

    def open(self, holder: str = "one", keys: Any = KEYS, retired: Any = ()) -> Any:
        chain = ChainSpec(SecretStr(self.line.url), self.world.facts, SecretStr(RECEIVER_KEY.secret()))
        return Treasury.func_or_class(self.spec(holder, keys, retired, chain))

    async def start(self) -> None:
        await super().start()

        self.config = replace(self.config, receiver=str(RECEIVER_KEY.address))
        self.name = channel_id(self.terms.chain_id, self.config)

    async def deposit(self, amount: int) -> None:
        mint(self.world.chain, Sender(self.world.chain, STRANGER, QUICK), PAYER.address, amount)
        moved = await self.treasury.deposit(self.payment(0, amount))
        assert moved.amount == amount, moved


@pytest.fixture
def office(on_anvil: Any, store_url: str, tmp_path: Any) -> Iterator[ChainOffice]:
    on_anvil.host.anvil.ask("anvil_setBalance", PAYER.address, COIN)
    opened = ChainOffice(f"sqlite:///{tmp_path / 'journal.db'}", store_url)
    opened.world, opened.line = on_anvil, Line(on_anvil.host.anvil.url)
    yield opened
    opened.line.close()


def run(office: ChainOffice, scenario: Any) -> None:
    async def whole() -> None:
        await office.start()
        try:
            await scenario()
            await office.treasury.sql(office.treasury.journal.verify)
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
        assert [finding.sound for finding in file.check(RECEIPTS.address, root)] == [True, True, True]
        back = await office.treasury.refund(office.payment(office.charged))
        assert back.amount == 48_660 == office.wallet(PAYER)
        owner = OWNERS["data"]
        earned = await office.account(owner).earnings()
        taken = await office.account(owner).withdraw_earnings(owner.address, int(earned["available"]))
        assert office.wallet(owner) == int(taken["amount"]) == int(earned["available"]) > 0
        stolen = payout_digest(office.terms.chain_id, owner.address, PAYER.address, 1, 5)
        with pytest.raises(LedgerError, check=lambda error: error.code == "payout_signature"):
            await office.treasury.payout(owner.address, PAYER.address, 1, 5, STRANGER.sign(stolen))

    run(office, scenario)


def test_while_the_node_is_away_calls_go_on_to_the_exposure_cap_and_then_everything_is_paid_once(
    office: ChainOffice,
) -> None:
    async def scenario() -> None:
        await office.deposit(500_000)
        await office.call(10_000)
        office.line.cut = True
        top_up = office.payment(0, 1_000)
        mint(office.world.chain, Sender(office.world.chain, STRANGER, QUICK), PAYER.address, 1_000)
        with pytest.raises(NotReady, check=lambda error: error.code == "not_ready"):
            await office.treasury.deposit(top_up)
        outcomes = []
        while (outcome := await office.call(30_000)) is Outcome.CHARGED:
            outcomes.append(outcome)
        assert outcome is Outcome.EXPOSURE and len(outcomes) == 3  # 10 000 + 3 x 30 000 is the cap
        journal = office.treasury.journal

        async def drained() -> bool:
            copies = await office.treasury.sql(lambda: list(journal.channels()))
            return sum(copy.charged for copy in copies) == 100_000

        await until(drained)  # a loss of the store would lose nothing
        assert office.world.ledger.wallet(PAYER.address) == 1_000
        office.line.cut = False
        moved = await office.treasury.deposit(top_up)
        assert moved.amount == 1_000
        again = await office.treasury.deposit(top_up)
        assert again == moved and office.wallet(PAYER) == 0
        assert (await office.treasury.settle())["claimed"] in (0, 100_000)  # the keeper may have been first

        async def paid() -> bool:
            state = await office.account(PAYER).channel(office.name)
            return state["claimed"] == "100000" and state["balance"] == "501000"

        await until(paid)
        assert await office.call(30_000) is Outcome.CHARGED

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
