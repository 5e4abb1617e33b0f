"""Runs the unmodified x402 client through a channel's whole life: it shows whether the wire format is x402's."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from eth_account import Account
from eth_account.signers.local import LocalAccount
from x402 import x402Client
from x402.http.clients import x402_httpx_transport
from x402.mechanisms.evm.batch_settlement.client import (
    BatchSettlementEvmScheme,
    BatchSettlementEvmSchemeOptions,
    RefundOptions,
)
from x402.mechanisms.evm.signers import EthAccountSigner, EthAccountSignerWithRPC

from channels.payer import receipt
from channels.protocol.x402 import decode_header
from dapps.packages import registry
from tests.conftest import RunningMesh

CHDR, STROKEDR = "/v2/models/chdr/diagnose", "/v2/models/strokedr/diagnose"
BODIES = {CHDR: registry.load("chdr").sample().data, STROKEDR: registry.load("strokedr").sample().data}
BAD = (STROKEDR, b"not a scan")


@dataclass
class Stock:
    """One stock client object on one account; a new one has lost all state."""

    mesh: RunningMesh
    account: LocalAccount
    salt: int = 0
    rpc: bool = False
    headers: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        signer = EthAccountSigner(self.account)
        if self.rpc:
            signer = EthAccountSignerWithRPC(self.account, f"{self.mesh.url}/v1/rpc")
        options = BatchSettlementEvmSchemeOptions(salt=f"0x{self.salt:064x}")
        self.scheme = BatchSettlementEvmScheme(signer, options)
        self.client = x402Client()
        self.client.register("eip155:*", self.scheme)
        self.client.set_spend_controls(False)

    async def calls(self, requests: Sequence[tuple[str, bytes]]) -> list[httpx.Response]:
        transport = x402_httpx_transport(self.client)
        async with httpx.AsyncClient(transport=transport, base_url=self.mesh.url, timeout=60) as http:
            return [await http.post(path, content=body) for path, body in requests]

    def pay(self, *requests: tuple[str, bytes]) -> list[httpx.Response]:
        return asyncio.run(self.calls(requests))

    def held(self) -> int:
        return int(self.mesh.leben("wallet", "show", self.account.address))


@pytest.fixture
def account(mesh: RunningMesh) -> LocalAccount:
    account: LocalAccount = Account.create()
    mesh.leben("wallet", "fund", account.address, "100000000")
    return account


def good(count: int, path: str = CHDR) -> list[tuple[str, bytes]]:
    return [(path, BODIES[path])] * count


def settled(answer: httpx.Response) -> dict[str, Any]:
    """The PAYMENT-RESPONSE of an answer, or nothing."""
    return decode_header(answer.headers["payment-response"]) if "payment-response" in answer.headers else {}


def sequence(answers: Sequence[httpx.Response]) -> list[int]:
    assert [answer.status_code for answer in answers] == [200] * len(answers), [a.text for a in answers]
    return [receipt(answer).receipt.seq for answer in answers]


def test_deposit_calls_a_failure_two_prices_and_a_top_up(mesh: RunningMesh, account: LocalAccount) -> None:
    stock = Stock(mesh, account)
    requests = [*good(3), BAD, *good(1), *good(4, STROKEDR), BAD, BAD, *good(1)]
    answers = stock.pay(*requests)
    expected = [422 if request == BAD else 200 for request in requests]
    assert [a.status_code for a in answers] == expected, [a.text for a in answers]
    paid = [a for a in answers if a.status_code == 200]
    assert sequence(paid) == list(range(1, len(paid) + 1))
    assert {a.request.url.path for a in paid} == {CHDR, STROKEDR}
    assert len({receipt(a).receipt.channel_id for a in paid}) == 1, "both routes were paid from one channel"
    deposits = [int(settled(a)["amount"]) for a in answers if settled(a).get("amount")]
    assert stock.held() == 100_000_000 - sum(deposits), "every deposit is reported, and none was made twice"
    charged = [int(settled(a)["extra"]["chargedAmount"]) for a in paid]
    assert all(0 < amount == receipt(a).receipt.amount for amount, a in zip(charged, paid, strict=True))
    assert receipt(paid[-1]).receipt.after == sum(charged)


def test_a_first_call_that_fails_after_its_deposit_leads_to_no_second_deposit(
    mesh: RunningMesh, account: LocalAccount
) -> None:
    stock = Stock(mesh, account)
    failed, paid = stock.pay(BAD, *good(1))
    assert failed.status_code == 422 and settled(failed)["extra"]["chargedAmount"] == "0"
    assert sequence([paid]) == [1] and not settled(paid).get("amount")
    assert stock.held() == 100_000_000 - int(settled(failed)["amount"])


def test_a_channel_is_topped_up_when_a_voucher_passes_its_balance(mesh: RunningMesh, account: LocalAccount) -> None:
    stock = Stock(mesh, account)
    (first,) = stock.pay(*good(1))
    opened, charged = int(settled(first)["amount"]), receipt(first).receipt.amount
    dearest = int(decode_header(httpx.get(f"{mesh.url}{STROKEDR}").headers["payment-required"])["accepts"][0]["amount"])
    stock.scheme.refund(f"{mesh.url}{CHDR}", RefundOptions(amount=str(opened - charged - dearest)))
    answers = stock.pay(*good(3, STROKEDR))
    assert sequence(answers) == [2, 3, 4]
    topped = [int(settled(answer).get("amount") or 0) for answer in answers]
    assert topped[0] == 0 < topped[1] and topped[2] == 0, "only when the charges and one more quote pass the balance"
    assert stock.held() == 100_000_000 - charged - dearest - topped[1]


def test_money_comes_back_in_part_then_whole(mesh: RunningMesh, account: LocalAccount) -> None:
    stock = Stock(mesh, account)
    (first,) = stock.pay(*good(1))
    before, price = stock.held(), receipt(first).receipt.amount
    stock.scheme.refund(f"{mesh.url}{CHDR}", RefundOptions(amount="700"))
    assert stock.held() == before + 700
    (second,) = stock.pay(*good(1))
    assert sequence([second]) == [2]
    stock.scheme.refund(f"{mesh.url}{CHDR}")
    assert stock.held() == 100_000_000 - 2 * price


def test_a_client_that_lost_its_state_recovers_over_rpc_and_signs_no_new_deposit(
    mesh: RunningMesh, account: LocalAccount
) -> None:
    assert sequence(Stock(mesh, account).pay(*good(3))) == [1, 2, 3]
    held = Stock(mesh, account).held()
    cold = Stock(mesh, account, rpc=True)
    assert sequence(cold.pay(*good(2))) == [4, 5], "read from the ledger, corrected by a 402 with its own signature"
    assert cold.held() == held
    mesh.leben("settle")
    assert sequence(Stock(mesh, account, rpc=True).pay(*good(2))) == [6, 7], "the same after a claim"
    lost = Stock(mesh, account).pay(*good(1))[0]
    assert lost.status_code == 402 and Stock(mesh, account).held() == held, "without RPC it is refused, not charged"


def test_a_client_with_rpc_goes_on_after_a_full_refund(mesh: RunningMesh, account: LocalAccount) -> None:
    stock = Stock(mesh, account, rpc=True)
    (first,) = stock.pay(*good(1))
    stock.scheme.refund(f"{mesh.url}{CHDR}")
    assert stock.held() == 100_000_000 - receipt(first).receipt.amount
    (again,) = stock.pay(*good(1))
    assert sequence([again]) == [2] and receipt(again).receipt.before == receipt(first).receipt.amount
    stock.scheme.refund(f"{mesh.url}{CHDR}")
    assert stock.held() == 100_000_000 - 2 * receipt(first).receipt.amount


def test_eight_clients_with_salts_of_their_own_pay_in_parallel(mesh: RunningMesh, account: LocalAccount) -> None:
    lanes = [Stock(mesh, account, salt) for salt in range(1, 9)]

    async def run() -> list[list[httpx.Response]]:
        return list(await asyncio.gather(*(lane.calls(good(4)) for lane in lanes)))

    answers = asyncio.run(run())
    assert [sequence(lane) for lane in answers] == [[1, 2, 3, 4]] * 8
    assert len({receipt(lane[0]).receipt.channel_id for lane in answers}) == 8
