"""The treasury as it runs, on a real Valkey and each SQL engine, behind the real routes; only Ray is left out."""

from __future__ import annotations

import asyncio
import json
import secrets
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from pydantic import SecretStr
from sqlalchemy import func, select, text
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from channels.errors import LedgerError, NotReady
from channels.journal.tables import merkle
from channels.metering.channel import Outcome
from channels.metering.store import Attempt, HoldRequest
from channels.payer import Account, AccountRefused, Wallet
from channels.protocol.digests import (
    Domain,
    channel_id,
    deposit_digest,
    deposit_nonce,
    finalize_digest,
    initiate_digest,
    payout_digest,
    read_digest,
    voucher_digest,
)
from channels.protocol.signer import Signer
from channels.protocol.x402 import ChannelConfig, Deposit, Payment, Voucher
from channels.receipts import ReceiptFile, split_charge
from channels.redis_store.store import RedisStore
from serving.control.account_routes import AccountRoutes
from serving.errors import CallError
from serving.protocol.responses import refused
from serving.treasury.deployment import Treasury
from serving.treasury.spec import TreasurySpec

PAYER, AUTHORIZER, RECEIPTS, STRANGER = (Signer(bytes([number]) * 32) for number in (11, 12, 13, 14))
OWNERS = {name: Signer(bytes([20 + place]) * 32) for place, name in enumerate(("knowledge", "data", "compute"))}
POINTS = {"knowledge": 3_333, "data": 1_667, "compute": 5_000}
SHARES = [(name, owner.address, POINTS[name]) for name, owner in OWNERS.items()]
RECEIVER = Signer(bytes([15]) * 32).address
KEYS = tuple(SecretStr(signer.secret()) for signer in (AUTHORIZER, RECEIPTS))
CAP = 100_000


class Handle:
    """Calls a treasury as a deployment handle does, without a process between."""

    def __init__(self, office: Office) -> None:
        self._office = office

    def __getattr__(self, name: str) -> Any:
        office = self._office

        class Method:
            def remote(self, *words: Any) -> Any:
                return getattr(office.treasury, name)(*words)

        return Method()


@dataclass
class Office:
    """A treasury, a replica's store, and a client of the routes."""

    ledger_url: str
    store_url: str
    step_s: float = 0.0
    charged: int = 0
    calls: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)

    def open(self, holder: str = "one", keys: Any = KEYS, retired: Any = ()) -> Any:
        return Treasury.func_or_class(self.spec(holder, keys, retired), clock=self.clock, **self.options)

    def clock(self) -> float:
        return time.time() + self.step_s

    def spec(self, holder: str, keys: Any, retired: Any, chain: Any = None) -> TreasurySpec:
        return TreasurySpec(
            ledger_url=SecretStr(self.ledger_url),
            store_url=SecretStr(self.store_url),
            authorizer_key=keys[0],
            receipt_key=keys[1],
            exposure_cap=CAP,
            settle_interval_s=10_000.0,
            settle_amount=10**9,
            holder=holder,
            retired_keys=retired,
            chain=chain,
        )

    async def start(self) -> None:
        self.treasury = self.open()
        self.store = RedisStore(self.store_url, CAP)
        terms = self.terms = self.treasury.ledger.terms
        app = Starlette(
            routes=AccountRoutes(terms.chain_id, RECEIPTS.address, Handle(self)).routes(),
            exception_handlers={HTTPException: refused, CallError: refused},
        )

        async def catalogue(request: Any) -> Any:
            facts = {"network": terms.network, "receipts": RECEIPTS.address, "asset": terms.asset}
            return JSONResponse({"mesh": facts | ({"split": terms.split} if terms.split else {})})

        app.add_route("/v1/catalogue", catalogue)
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://mesh")
        self.config = ChannelConfig(
            PAYER.address, PAYER.address, RECEIVER, AUTHORIZER.address, terms.asset, 900, "0x" + "07" * 32
        )
        self.name = channel_id(terms.chain_id, self.config)
        await until(self.treasury.ping)

    async def stop(self, treasury: Any = None) -> None:
        await (treasury or self.treasury).close()

    def account(self, signer: Signer) -> Account:
        return Account(self.client, signer)

    def payment(self, ceiling: int, deposit: int = 0) -> Payment:
        signature = PAYER.sign(voucher_digest(self.terms.chain_id, self.name, ceiling))
        voucher = Voucher(self.name, ceiling, signature)
        if not deposit:
            return Payment("refund", {}, self.config, voucher)
        salt, terms = "0x" + secrets.token_hex(32), self.terms
        token = Domain.of(terms.asset_name, terms.asset_version, terms.chain_id, terms.asset)
        digest = deposit_digest(token, PAYER.address, deposit, 0, 2**40, deposit_nonce(self.name, salt))
        return Payment("deposit", {}, self.config, voucher, Deposit(deposit, 0, 2**40, salt, PAYER.sign(digest)))

    async def deposit(self, amount: int) -> None:
        await self.treasury.sql(lambda: self.treasury.ledger.fund(PAYER.address, amount))
        moved = await self.treasury.deposit(self.payment(0, amount))
        assert moved.amount == amount, moved

    def ask(self, price: int) -> HoldRequest:
        call, ceiling = "0x" + secrets.token_hex(32), self.charged + price
        signature = PAYER.sign(voucher_digest(self.terms.chain_id, self.name, ceiling))
        return HoldRequest(Attempt(self.name, call, "t", True, "0x" + "ab" * 32), price, ceiling, signature)

    async def call(self, price: int, actual: int | None = None, held: HoldRequest | None = None) -> Outcome:
        ask = held or self.ask(price)
        if held is None and (charge := await self.store.hold(ask)).outcome is not Outcome.ACCEPTED:
            return charge.outcome
        amount = price if actual is None else actual
        shares = [[part.carrier, part.owner, part.amount] for part in split_charge(amount, SHARES)]
        fixed = {"dapp": "chdr", "version": "1", "model": "0x" + "01" * 32, "request": "0x" + "02" * 32}
        body = json.dumps(fixed | {"result": "0x" + "03" * 32, "units": 1, "shares": shares})
        charge = await self.store.charge(ask, amount, body, b"answer", 60_000)
        assert charge.outcome is Outcome.CHARGED
        self.charged += amount
        self.calls.append(ask.attempt.call_id)
        return charge.outcome

    def wallet(self, signer: Signer) -> int:
        return int(self.treasury.ledger.wallet(signer.address))


async def until(true: Callable[[], Awaitable[Any]]) -> None:
    """Waits for something that must come; the test's own time-out ends a wait for what does not."""
    while not await true():
        await asyncio.sleep(0.02)


@asynccontextmanager
async def opened(ledger_url: str, store_url: str, **options: Any) -> AsyncIterator[Office]:
    office = Office(ledger_url, store_url, options=options)
    await office.start()
    try:
        yield office
        await office.treasury.sql(office.treasury.ledger.verify)
        await office.treasury.sql(office.treasury.journal.verify)
    finally:
        await office.client.aclose()
        await office.store.close()
        await office.stop()


Scenario = Callable[[Office], Awaitable[None]]
AtOffice = Callable[..., None]


@pytest.fixture
def at_office(ledger_url: str, store_url: str) -> AtOffice:
    def run(scenario: Scenario, **options: Any) -> None:
        async def whole() -> None:
            async with opened(ledger_url, store_url, **options) as office:
                await scenario(office)

        asyncio.run(whole())

    return run


def refusal(code: str) -> Any:
    return pytest.raises(AccountRefused, check=lambda error: error.code == code)


async def lines(account: Account, *words: str, **named: str) -> list[tuple[str, str, int | None]]:
    pages = [page async for page in account.statement(*words, **named)]
    return [(line["carrier"], line["amount"], line["epoch"]) for page in pages for line in page["lines"]]


def test_everyone_sees_theirs_and_nobody_elses(at_office: AtOffice) -> None:
    async def scenario(office: Office) -> None:
        await office.deposit(50_000)
        for price in (1_000, 333, 7):
            await office.call(price)
        payer, stranger = office.account(PAYER), office.account(STRANGER)
        owner, operator = office.account(OWNERS["data"]), office.account(RECEIPTS)
        await office.treasury.settle()
        await office.call(10)
        seen = await payer.channel(office.name)
        assert (seen["charged"], seen["claimed"], seen["balance"]) == ("1350", "1340", "50000")
        for account in (stranger, owner):
            with refusal("not_found"):
                await account.channel(office.name)
        for account in (payer, owner, operator):
            file = await account.receipt(office.calls[0])
            root = (await account.epoch(1))["root"]
            assert [finding.sound for finding in file.check(RECEIPTS.address, root)] == [True, True, True]
        for call in (office.calls[0], "0x" + "99" * 32):
            with refusal("not_found"):
                await stranger.receipt(call)
        waiting = await payer.receipt(office.calls[3])
        assert [finding.sound for finding in waiting.check(RECEIPTS.address, None)] == [True, True, None]

        paid = [("payer", "1000", 1), ("payer", "333", 1), ("payer", "7", 1), ("payer", "10", None)]
        assert await lines(payer) == paid
        shares = [split_charge(price, SHARES)[1].amount for price in (1_000, 333, 7, 10)]
        assert [(carrier, int(amount)) for carrier, amount, _ in await lines(owner)] == [
            ("data", part) for part in shares
        ]
        assert await lines(stranger) == []
        assert await lines(operator, owner=PAYER.address) == paid
        with refusal("not_found"):
            await lines(stranger, owner=PAYER.address)
        assert await lines(payer, "", "2001-01-01") == [] and await lines(payer, "2001-01-01") == paid
        epoch = await owner.epoch(1)
        assert epoch["claimed"] is None and [part["owner"] for part in epoch["credits"]] == [OWNERS["data"].address]
        assert (await stranger.epoch(1))["credits"] == []
        assert (await operator.epoch(1))["claimed"] == "1340"
        with refusal("not_found"):
            await operator.epoch(2)
        chain = [await operator.receipt(call) for call in office.calls]
        assert [file.number for file in chain] == [1, 2, 3, 4]
        assert all(first.chain_after == second.chain_before for first, second in pairwise(chain))
        assert ReceiptFile.from_json(chain[0].to_json()) == chain[0]

    at_office(scenario)


def signed(signer: Signer, digest: bytes) -> dict[str, str]:
    return {"signature": "0x" + signer.sign(digest).hex()}


def test_foreign_expired_and_malformed_reads_show_nothing(at_office: AtOffice) -> None:
    async def scenario(office: Office) -> None:
        await office.deposit(50_000)
        await office.call(1_000)
        chain, now, path = office.terms.chain_id, int(time.time()), f"/v1/channels/{office.name}"

        def read(issued: object, signature: object) -> dict[bytes, bytes]:
            values = {"leben-read-issued": str(issued), "leben-read-signature": str(signature)}
            values["leben-read-mesh"] = RECEIPTS.address
            return {name.encode(): value.encode() for name, value in values.items()}

        def by_payer(
            path: str, issued: int, chain_id: int = chain, mesh: str = RECEIPTS.address, query: str = ""
        ) -> str:
            digest = read_digest(chain_id, mesh=mesh, path=path, query=query, issued_s=issued)
            return signed(PAYER, digest)["signature"]

        good = read(now, by_payer(path, now))
        assert (await office.client.get(path, headers=good)).status_code == 200
        bad = {
            "no signature": {},
            "another path": read(now, by_payer("/v1/channels/0x00", now)),
            "another chain": read(now, by_payer(path, now, chain + 1)),
            "another mesh": read(now, by_payer(path, now, mesh=AUTHORIZER.address)),
            "another query": read(now, by_payer(path, now, query="owner=0x12")),
            "expired": read(now - 301, by_payer(path, now - 301)),
            "from the future": read(now + 120, by_payer(path, now + 120)),
            "another time": read(now - 1, by_payer(path, now)),
            "no number": read("now", by_payer(path, now)),
            "unicode digits": read("١٢٣", by_payer(path, now)),
            "a number too long": read("9" * 40, by_payer(path, now)),
            "short": read(now, "0x1234"),
            "not hex": read(now, "signature"),
            "high s": read(now, "0x" + "ff" * 65),
        }
        for name, headers in bad.items():
            answer = await office.client.get(path, headers=headers)
            # A signature over something else is some other address's: a stranger to this channel.
            assert answer.status_code in (401, 404) and office.name not in answer.text, name
        replayed = await office.client.get(f"/v1/channels/0x{'00' * 32}", headers=good)
        assert replayed.status_code == 404
        for wrong in ("/v1/channels/nonsense", "/v1/receipts/0x12", "/v1/epochs/one", "/v1/epochs/99999999999"):
            answer = await office.client.get(wrong, headers=read(now, by_payer(wrong, now)))
            assert answer.status_code == 404 and answer.json()["code"] == "not_found"
        for query in ("from=yesterday", "after=-1", "owner=0x12", "after=1e9"):
            headers = read(now, by_payer("/v1/statements", now, query=query))
            answer = await office.client.get(f"/v1/statements?{query}", headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (400, "bad_request"), query
        headers = read(now, by_payer("/v1/statements", now, query="format=csv"))
        table = await office.client.get("/v1/statements?format=csv", headers=headers)
        assert table.headers["content-type"].startswith("text/csv") and table.text.count("\r\n") == 2

    at_office(scenario)


def test_a_read_is_for_its_query_and_the_client_checks_which_mesh_it_signs_for(at_office: AtOffice) -> None:
    async def scenario(office: Office) -> None:
        wallet, now = Wallet(PAYER), int(time.time())
        url = f"/v1/statements?from={now - 60}&format=csv&to=2100-01-01T00:00:00%2B02:00"
        headers = wallet.read_headers(url, office.terms.chain_id, RECEIPTS.address.lower())
        assert (await office.client.get(url, headers=headers)).headers["content-type"].startswith("text/csv")
        longer = await office.client.get(url.replace(str(now - 60), "0"), headers=headers)
        assert PAYER.address not in longer.text, "a signed read shows no more than what it was signed for"
        account = Account(office.client, PAYER, mesh=RECEIPTS.address)
        assert (await account.mesh()).receipts == RECEIPTS.address
        with pytest.raises(AccountRefused) as refused:
            await Account(office.client, PAYER, mesh=STRANGER.address).earnings()
        assert refused.value.code == "bad_mesh"

    at_office(scenario)


def test_foreign_replayed_and_malformed_withdrawals_move_nothing(at_office: AtOffice) -> None:
    async def scenario(office: Office) -> None:
        await office.deposit(50_000)
        await office.call(1_000)
        await office.treasury.settle()
        chain, owner, to = office.terms.chain_id, OWNERS["data"], STRANGER.address
        earned = office.treasury.ledger.earnings(owner.address)

        def payout(amount: int, nonce: int, signer: Signer, chain_id: int = chain) -> dict[str, str]:
            digest = payout_digest(chain_id, owner.address, to, amount, nonce)
            return {"to": to, "amount": str(amount), "nonce": str(nonce)} | signed(signer, digest)

        moves: list[tuple[Any, int, str]] = [
            (payout(1, 1, STRANGER), 401, "payout_signature"),
            (payout(1, 1, owner, chain + 1), 401, "payout_signature"),
            (payout(1, 1, owner) | {"amount": "2"}, 401, "payout_signature"),
            (payout(1, 1, owner) | {"nonce": "2"}, 401, "payout_signature"),
            (payout(1, 1, owner) | {"to": PAYER.address}, 401, "payout_signature"),
            (payout(earned + 1, 1, owner), 400, "payout_amount"),
            (payout(0, 1, owner), 400, "payout_amount"),
            (payout(1, 1, owner) | {"amount": 1}, 400, "bad_request"),
            (payout(1, 1, owner) | {"amount": "1e3"}, 400, "bad_request"),
            (payout(1, 1, owner) | {"to": "nobody"}, 400, "bad_request"),
            (payout(1, 1, owner) | {"signature": "0x12"}, 400, "bad_request"),
            ([], 400, "bad_request"),
            ({}, 400, "bad_request"),
            ({"x": "y" * 5_000}, 413, "body_too_large"),
        ]
        for body, status, code in moves:
            answer = await office.client.post(f"/v1/earnings/{owner.address}/withdraw", json=body)
            assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
        assert (await office.client.post(f"/v1/earnings/{owner.address}/withdraw", content=b"{")).status_code == 400
        assert office.treasury.ledger.earnings(owner.address) == earned and office.wallet(STRANGER) == 0

        path, other = f"/v1/channels/{office.name}/withdraw", f"/v1/channels/0x{'00' * 32}/withdraw"
        begin = {"amount": "5", "nonce": "3"}
        digest = initiate_digest(chain, office.name, 5, 3)
        end = {"nonce": "4"} | signed(STRANGER, finalize_digest(chain, office.name, 4))
        for where, body, status, code in (
            (f"{path}/initiate", begin | signed(STRANGER, digest), 401, "withdraw_signature"),
            (f"{path}/initiate", begin | signed(PAYER, digest) | {"amount": "6"}, 401, "withdraw_signature"),
            (f"{path}/finalize", end, 401, "withdraw_signature"),
            (f"{other}/initiate", begin | signed(PAYER, digest), 404, "not_found"),
            (f"{other}/finalize", end, 404, "not_found"),
        ):
            answer = await office.client.post(where, json=body)
            assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
        assert await office.call(10) is Outcome.CHARGED, "no foreign request stops a channel"

    at_office(scenario)


def test_owners_take_out_exactly_what_they_earned_once(at_office: AtOffice) -> None:
    async def scenario(office: Office) -> None:
        await office.deposit(50_000)
        prices = (1_000, 333, 1)
        for price in prices:
            await office.call(price)
        await office.treasury.settle()
        total = 0
        for place, (name, owner) in enumerate(OWNERS.items()):
            account, due = office.account(owner), sum(split_charge(price, SHARES)[place].amount for price in prices)
            earned = await account.earnings()
            assert earned["available"] == str(due) and earned["totals"][0]["carrier"] == name
            assert [(row["epoch"], row["amount"]) for row in earned["epochs"]] == [(1, str(due))]
            done = await account.withdraw_earnings(owner.address, due - 1)
            assert done["available"] == "1" and office.wallet(owner) == due - 1
            with refusal("payout_amount"):
                await account.withdraw_earnings(owner.address, 2)
            total += due
        assert total == sum(prices)
        owner, where = OWNERS["data"], f"/v1/earnings/{OWNERS['data'].address}/withdraw"
        digest = payout_digest(office.terms.chain_id, owner.address, PAYER.address, 1, 77)
        body = {"to": PAYER.address, "amount": "1", "nonce": "77"} | signed(owner, digest)
        answers = [await office.client.post(where, json=body) for _ in range(3)]
        assert len({answer.json()["transaction"] for answer in answers}) == 1
        assert office.treasury.ledger.earnings(owner.address) == 0 and office.wallet(PAYER) == 1
        digest = payout_digest(office.terms.chain_id, owner.address, STRANGER.address, 1, 77)
        answer = await office.client.post(where, json=body | {"to": STRANGER.address} | signed(owner, digest))
        assert (answer.status_code, answer.json()["code"]) == (409, "nonce_used")
        with refusal("not_found"):
            await office.account(STRANGER).read(f"/v1/earnings/{owner.address}")

    at_office(scenario)


def test_a_withdrawal_stops_calls_claims_at_once_and_gives_the_exact_rest(at_office: AtOffice) -> None:
    async def scenario(office: Office) -> None:
        await office.deposit(50_000)
        await office.call(1_000)
        running = office.ask(400)
        assert (await office.store.hold(running)).outcome is Outcome.ACCEPTED
        payer = office.account(PAYER)
        await payer.initiate(office.name, 50_000)
        assert await office.call(10) is Outcome.WITHDRAWING, "not one more call after the notice was taken"

        async def claimed(amount: int) -> bool:
            return (await payer.channel(office.name))["claimed"] == str(amount)

        await until(lambda: claimed(1_000))  # nobody asked for a settlement: the notice made it due
        assert await office.call(400, 350, running) is Outcome.CHARGED, "a call that was running is still paid"
        await until(lambda: claimed(1_350))
        with refusal("withdraw_pending"):
            await payer.initiate(office.name, 1)
        with refusal("withdraw_too_early"):
            await payer.finalize(office.name)
        pending = (await payer.channel(office.name))["withdrawal"]
        assert pending["amount"] == "50000" and 890 < pending["finalizeFrom"] - time.time() < 910
        office.step_s = 901
        done = await payer.finalize(office.name)
        assert office.wallet(PAYER) == 50_000 - 1_350
        assert (done["balance"], done["claimed"]) == ("1350", "1350")
        with refusal("withdraw_not_pending"):
            await payer.finalize(office.name)
        assert await office.call(10) is Outcome.EXCEEDS_BALANCE
        assert sum(office.treasury.ledger.earnings(owner.address) for owner in OWNERS.values()) == 1_350

    at_office(scenario)


def test_what_was_charged_is_claimed_before_a_withdrawal_is_finalized(at_office: AtOffice) -> None:
    async def scenario(office: Office) -> None:
        await office.deposit(5_000)
        running = office.ask(4_000)
        assert (await office.store.hold(running)).outcome is Outcome.ACCEPTED
        payer = office.account(PAYER)
        await payer.initiate(office.name, 5_000)
        office.step_s = 901
        await office.call(4_000, 4_000, running)
        await payer.finalize(office.name)
        assert office.wallet(PAYER) == 1_000
        assert sum(office.treasury.ledger.earnings(owner.address) for owner in OWNERS.values()) == 4_000

    at_office(scenario)


@pytest.mark.parametrize("first", ["refund", "initiate"])
def test_a_refund_and_a_withdrawal_at_once_give_back_what_there_is(at_office: AtOffice, first: str) -> None:
    async def scenario(office: Office) -> None:
        await office.deposit(5_000)
        await office.call(1_000)
        payer = office.account(PAYER)

        async def refund() -> Any:
            return await office.treasury.refund(office.payment(1_000))

        async def initiate() -> Any:
            return await payer.initiate(office.name, 5_000)

        both = [refund(), initiate()] if first == "refund" else [initiate(), refund()]
        await asyncio.gather(*both, return_exceptions=True)
        office.step_s = 901
        for _ in range(2):
            try:
                await payer.finalize(office.name)
            except AccountRefused as error:
                assert error.code == "withdraw_not_pending"
        await office.treasury.settle()
        state = office.treasury.ledger.channel(office.name)
        assert office.wallet(PAYER) == 4_000 and (state.left, state.total_claimed) == (0, 1_000)

    at_office(scenario)


async def ended(task: asyncio.Task[Any]) -> None:
    """Cancels until the task has ended: Python 3.11's `wait_for`, in the store's client, may swallow a cancellation."""
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=0.1)


def test_one_treasury_works_and_another_takes_over_when_it_is_gone(at_office: AtOffice) -> None:
    async def scenario(office: Office) -> None:
        await office.deposit(50_000)
        first, second = office.treasury, office.open("two")
        await office.call(500)
        assert (await first.settle())["claimed"] == 500
        assert not await second.ping(), "it stands by while the first renews its lease"
        await ended(first.maintenance)  # gone without a word: its lease runs out
        await first.sql(lambda: first.journal.renew(first.keeper.token, 0.2))
        await until(second.ping)
        office.treasury = second
        await office.call(700)
        assert (await second.settle())["claimed"] == 700
        with pytest.raises(NotReady, check=lambda error: error.code == "not_ready"):
            await first.refund(office.payment(1_200))  # whoever was replaced moves nothing
        await office.stop(first)

    at_office(scenario)


def test_a_store_that_was_emptied_is_rebuilt_before_anything_is_served(at_office: AtOffice) -> None:
    async def scenario(office: Office) -> None:
        await office.deposit(50_000)
        await office.call(500)
        await office.account(PAYER).channel(office.name)  # drained
        await office.store.client.execute_command("FLUSHALL")

        async def served() -> bool:
            try:
                return await office.call(100) is Outcome.CHARGED
            except Exception as error:
                assert getattr(error, "code", "") == "not_ready", error
                return False

        await until(served)
        assert (await office.account(PAYER).channel(office.name))["charged"] == "600"

    at_office(scenario)


def test_a_lease_is_kept_up_while_the_store_is_rebuilt(at_office: AtOffice) -> None:
    async def scenario(office: Office) -> None:
        await office.deposit(50_000)
        treasury, journal, leased = office.treasury, office.treasury.journal, []
        restore, mirror = treasury.store.restore, treasury.store.mirror

        async def slow(copy: Any, token: int) -> None:
            await restore(copy, token)
            await treasury.sql(lambda: journal.renew(token, 0))  # as if it had taken longer than a lease lasts

        async def noted(*words: Any) -> None:
            leased.append(await treasury.sql(journal.leased))
            await mirror(*words)

        treasury.store.restore, treasury.store.mirror = slow, noted
        await office.store.client.execute_command("FLUSHALL")

        async def rebuilt() -> bool:
            return bool(leased)

        await until(rebuilt)
        assert leased == ["one"]

    at_office(scenario, renew_s=0.0)  # renewed at every occasion


def test_a_retired_authorizer_still_claims_and_a_lost_receipt_key_stops_nothing(at_office: AtOffice) -> None:
    async def scenario(office: Office) -> None:
        await office.deposit(50_000)
        await office.call(500)
        await office.account(PAYER).channel(office.name)  # drained
        first = office.treasury
        await office.stop(first)
        new = Signer.generate()
        secret = [SecretStr(key.secret()) for key in (new, Signer.generate())]
        office.treasury = office.open("one", secret, (SecretStr(AUTHORIZER.secret()),))

        async def claimed() -> bool:
            return bool(office.treasury.ledger.channel(office.name).total_claimed == 500)

        await until(claimed)  # due at once, because its key has been retired
        moved = await office.treasury.refund(office.payment(500))
        assert moved.amount == 49_500 and office.wallet(PAYER) == 49_500
        file = await office.account(PAYER).receipt(office.calls[0])
        assert file.check(RECEIPTS.address, None)[0].sound is False, "the new key signs from now on"

    at_office(scenario)


def test_a_lost_authorizer_stops_its_own_channels_alone(at_office: AtOffice, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(office: Office) -> None:
        await office.deposit(50_000)
        await office.call(500)
        await office.account(PAYER).channel(office.name)
        await office.stop()
        office.treasury = office.open("one", [SecretStr(Signer.generate().secret())] * 2)
        await until(office.treasury.ping)
        assert (await office.treasury.settle())["claimed"] == 0
        seen = await office.account(PAYER).channel(office.name)
        assert (seen["quarantine"], seen["claimed"]) == ("receiver_authorizer_mismatch", "0")
        assert "quarantined: receiver_authorizer_mismatch" in caplog.text

    at_office(scenario)


def test_payers_of_a_dropped_authorizer_withdraw_what_is_left(at_office: AtOffice) -> None:
    async def scenario(office: Office) -> None:
        await office.deposit(50_000)
        await office.call(500)
        assert (await office.treasury.settle())["claimed"] == 500
        await office.stop()
        office.treasury = office.open("one", [SecretStr(Signer.generate().secret()) for _ in range(2)])
        await until(office.treasury.ping)
        with pytest.raises(LedgerError, match="withdraw instead"):
            await office.treasury.refund(office.payment(500))
        payer = office.account(PAYER)
        await payer.initiate(office.name, 49_500)
        office.step_s = 901
        await payer.finalize(office.name)
        assert office.wallet(PAYER) == 49_500

    at_office(scenario)


def test_a_store_that_loses_charges_is_opened_once_it_is_put_right(store_url: str, tmp_path: Path) -> None:
    async def run() -> None:
        office = Office(f"sqlite:///{tmp_path / 'books.db'}", store_url)
        office.treasury, office.store = office.open(), RedisStore(store_url, CAP)
        await until(lambda: office.treasury.sql(lambda: office.treasury.keeper.token))
        await asyncio.sleep(0.3)
        assert not await office.treasury.ping()
        with pytest.raises(NotReady):
            await office.store.hold(HoldRequest(Attempt("0x" + "ab" * 32, "0x01", "t", True, "d"), 1, 1, bytes(65)))
        client.config_set("appendonly", "yes")
        await until(office.treasury.ping)
        await office.store.close()
        await office.stop()

    with redis.Redis.from_url(store_url) as client:
        client.config_set("appendonly", "no")
        try:
            asyncio.run(run())
        finally:
            client.config_set("appendonly", "yes")


class Held:
    """The reads of a treasury that anybody may ask for, made to wait until they are let go."""

    def __init__(self, treasury: Any, events: list[str]) -> None:
        self._read, self._events, self._go = treasury.reads.journal.read, events, threading.Event()
        treasury.reads.journal.read = self.read

    @contextmanager
    def read(self) -> Iterator[Any]:
        thread = threading.current_thread().name.rstrip("_0123456789")
        if thread != "treasury-reads":  # the treasury's own
            assert self._go.wait(60)
            self._events.append(f"read on {thread}")
        with self._read() as conn:
            yield conn

    def let_go(self) -> None:
        self._go.set()


def test_a_thousand_signed_reads_by_strangers_delay_no_drain_no_deposit_and_no_settlement(at_office: AtOffice) -> None:
    async def scenario(office: Office) -> None:
        await office.deposit(50_000)
        events: list[str] = []
        held, append = Held(office.treasury, events), office.treasury.journal.append

        def noted(*words: Any) -> int:
            events.append(f"drained on {threading.current_thread().name.rstrip('_0123456789')}")
            return int(append(*words))

        office.treasury.journal.append = noted
        strangers = [office.account(Signer.generate()) for _ in range(10)]
        reads = [asyncio.create_task(attempt(lines(stranger))) for _ in range(100) for stranger in strangers]
        await asyncio.sleep(0)
        await office.call(1_000)
        assert (await office.treasury.settle())["claimed"] == 1_000
        await office.deposit(1_000)
        assert events == ["drained on ledger"], "every read still waits"
        held.let_go()
        outcomes = Counter(await asyncio.gather(*reads))
        assert outcomes == {"": 1_000}
        assert set(events[1:]) == {"read on accounts"}, "no read takes the thread that moves money"

    at_office(scenario, max_waiting_reads=1_000)


async def attempt(step: Awaitable[Any]) -> str:
    """The code of a refusal, or nothing."""
    try:
        await step
        return ""
    except AccountRefused as error:
        return str(error.code)


def test_reads_beyond_the_bound_are_refused_and_calls_can_be_read_again_afterwards(at_office: AtOffice) -> None:
    async def scenario(office: Office) -> None:
        await office.deposit(50_000)
        held = Held(office.treasury, [])
        reads = [asyncio.create_task(attempt(lines(office.account(PAYER)))) for _ in range(5)]
        await until(lambda: any_done(reads, 2))
        response = await office.client.get("/v1/epochs/1", headers=read_headers(office, "/v1/epochs/1"))
        assert (response.status_code, response.json()["code"]) == (503, "accounts_busy")
        held.let_go()
        assert sorted(await asyncio.gather(*reads)) == ["", "", "", "accounts_busy", "accounts_busy"]
        assert await lines(office.account(PAYER)) == []

    at_office(scenario, max_waiting_reads=3)


async def any_done(tasks: list[asyncio.Task[str]], count: int) -> bool:
    return sum(task.done() for task in tasks) == count


def read_headers(office: Office, path: str) -> dict[str, str]:
    now = int(time.time())
    digest = read_digest(office.terms.chain_id, mesh=RECEIPTS.address, path=path, query="", issued_s=now)
    signature = signed(PAYER, digest)["signature"]
    return {
        "leben-read-issued": str(now),
        "leben-read-mesh": RECEIPTS.address,
        "leben-read-signature": signature,
    }


def test_readers_who_wait_at_the_same_time_share_one_drain(at_office: AtOffice) -> None:
    async def scenario(office: Office) -> None:
        await office.deposit(50_000)
        await office.call(1_000)
        keeper, positions, drains = office.treasury.keeper, office.treasury.journal.positions, []
        office.treasury.journal.positions = lambda: drains.append(0) or positions()
        await ended(office.treasury.maintenance)  # so that only readers drain
        await asyncio.gather(*(keeper.drained() for _ in range(1_000)))
        assert len(drains) == 1
        assert len(await lines(office.account(PAYER))) == 1

    at_office(scenario)


def test_the_levels_of_an_epoch_closed_by_an_older_version_are_stored_once_it_is_proved(at_office: AtOffice) -> None:
    async def scenario(office: Office) -> None:
        await office.deposit(50_000)
        await office.call(1_000)
        await office.treasury.settle()
        journal = office.treasury.journal
        with journal.write_unfenced() as conn:
            where = " ON journal_merkle" if conn.dialect.name == "postgresql" else ""
            conn.execute(text(f"DROP TRIGGER journal_merkle_no_delete{where}"))
            conn.execute(merkle.delete())

        async def stored() -> bool:
            with journal.read() as conn:
                return bool(conn.scalar(select(func.count()).select_from(merkle)))

        file = await office.account(PAYER).receipt(office.calls[0])
        assert file.proof.epoch == 1
        await until(stored)
        assert await office.account(PAYER).receipt(office.calls[0]) == file

    at_office(scenario)
