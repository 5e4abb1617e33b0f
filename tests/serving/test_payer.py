"""Runs the payer's client against a real replica behind a hostile wire: it signs only what it agreed to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest

from channels.payer import Budget, BudgetExceeded, ChannelAuth, DishonestServer, Wallet, receipt
from channels.payer.channel import PayerChannel
from channels.payer.flow import DEPOSIT_VALID_S
from channels.protocol.signer import Signer
from channels.protocol.x402 import decode_header, encode_header
from channels.receipts import SignedReceipt
from tests.serving.test_http import GOOD

Tamper = Callable[[httpx.Request, httpx.Response], httpx.Response]


class Wire(httpx.AsyncBaseTransport):
    """Carries requests to a replica, records them, and lets a test change or lose the responses."""

    def __init__(self, app: Any) -> None:
        self.inner = httpx.ASGITransport(app, root_path="/v2/models/doubler")
        self.tamper: Tamper = lambda request, response: response
        self.sent: list[httpx.Request] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.sent.append(request)
        response = await self.inner.handle_async_request(request)
        await response.aread()
        return self.tamper(request, response)


class PayingClient(httpx.AsyncClient):
    """A client of one replica that pays; `payer` is its auth."""

    def __init__(self, wire: Wire, payer: ChannelAuth) -> None:
        super().__init__(transport=wire, base_url="http://mesh/v2/models/doubler", auth=payer)
        self.payer = payer

    @property
    def channel(self) -> PayerChannel:
        (channel,) = self.payer.channels.values()
        return channel


def on(bench: Any, wallet: Wallet, mesh: str = "", now: Callable[[], float] = time.time) -> tuple[Wire, PayingClient]:
    wire = Wire(bench.app)
    return wire, PayingClient(wire, ChannelAuth(wallet, mesh=mesh, now=now))


def lose(request: httpx.Request, response: httpx.Response) -> httpx.Response:
    """Loses every response to a paid request, after the mesh has sent it."""
    if "payment-signature" in request.headers:
        raise httpx.ReadError("the connection broke", request=request)
    return response


def changed(name: str, change: Callable[[dict[str, Any]], Any]) -> Tamper:
    """Changes the JSON in one header of a paid response; None removes the header."""

    def tamper(request: httpx.Request, response: httpx.Response) -> httpx.Response:
        if name in response.headers:
            value = change(decode_header(response.headers[name]))
            del response.headers[name]
            if value is not None:
                response.headers[name] = value if isinstance(value, str) else encode_header(value)
        return response

    return tamper


def with_extra(settled: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return settled | {"extra": settled["extra"] | changes}


def with_state(settled: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return with_extra(settled, channelState=settled["extra"]["channelState"] | changes)


def forged(raw: dict[str, Any]) -> dict[str, Any]:
    signed = SignedReceipt.from_json(raw)
    return SignedReceipt.sign(signed.receipt, 31337, Signer(b"\x09" * 32)).to_json()


DISHONEST: dict[str, tuple[str, Tamper]] = {
    "charges more than it quoted": (
        "charged_above_quote",
        changed("payment-response", lambda settled: with_extra(settled, chargedAmount="401")),
    ),
    "lets the cumulative jump": (
        "cumulative_jump",
        changed("payment-response", lambda settled: with_state(settled, chargedCumulativeAmount="9999")),
    ),
    "does not say what it charged": ("no_payment_response", changed("payment-response", lambda settled: None)),
    "says it in no known form": ("bad_payment_response", changed("payment-response", lambda settled: "%%%")),
    "says it as a number": (
        "bad_payment_response",
        changed("payment-response", lambda settled: with_extra(settled, chargedAmount=1)),
    ),
    "says nothing of the charge": (
        "bad_payment_response",
        changed("payment-response", lambda settled: {"success": True}),
    ),
    "gives a receipt of another channel": (
        "bad_receipt",
        changed("leben-receipt", lambda raw: raw | {"channelId": "0x" + "33" * 32}),
    ),
    "gives a receipt of another amount": (
        "bad_receipt",
        changed("leben-receipt", lambda raw: raw | {"before": "0", "after": "0", "amount": "0", "shares": []}),
    ),
    "gives a receipt that someone else signed": ("bad_receipt", changed("leben-receipt", forged)),
    "gives a receipt that is none": ("bad_receipt", changed("leben-receipt", lambda raw: "e30=")),
}


@pytest.mark.parametrize(("code", "tamper"), DISHONEST.values(), ids=DISHONEST)
def test_a_mesh_that_is_found_dishonest_gets_no_further_signature(
    on_replica: Any, wallet: Wallet, code: str, tamper: Tamper
) -> None:
    async def scenario(bench: Any) -> None:
        wire, client = on(bench, wallet, mesh=bench.mesh.address)
        async with client:
            assert (await client.post("/infer", json=GOOD)).status_code == 200
            wire.tamper = tamper
            with pytest.raises(DishonestServer) as error:
                await client.post("/infer", json=GOOD)
            assert error.value.code == code and "refund" in error.value.message
            wire.tamper = lambda request, response: response
            sent = len(wire.sent)
            with pytest.raises(DishonestServer):
                await client.post("/infer", json=GOOD)
            assert len(wire.sent) == sent, "nothing was even sent"
            assert client.channel.max_claimable <= 100 + 400, "what may still be claimed is bounded by what was signed"

    on_replica(scenario)


def test_the_first_signer_of_receipts_is_kept_where_none_was_named(on_replica: Any, wallet: Wallet) -> None:
    async def scenario(bench: Any) -> None:
        wire, client = on(bench, wallet)
        async with client:
            assert (await client.post("/infer", json=GOOD)).status_code == 200
            wire.tamper = changed("leben-receipt", forged)
            with pytest.raises(DishonestServer):
                await client.post("/infer", json=GOOD)

    on_replica(scenario)


def test_a_forged_corrective_402_is_not_believed_and_not_tried_again(on_replica: Any, wallet: Wallet) -> None:
    def forge(request: httpx.Request, response: httpx.Response) -> httpx.Response:
        offer = decode_header(encode_header({"x402Version": 2, "accepts": []}))
        if "payment-signature" in request.headers:
            accepted = decode_header(request.headers["payment-signature"])["accepted"]
            voucher = decode_header(request.headers["payment-signature"])["payload"]["voucher"]
            state = {"channelId": voucher["channelId"], "chargedCumulativeAmount": "3000"}
            proof = {"signedMaxClaimable": "4000", "signature": "0x" + "11" * 65}
            offer["accepts"] = [with_extra(accepted, channelState=state, voucherState=proof)]
            return httpx.Response(402, headers={"payment-required": encode_header(offer)}, json={"error": "no"})
        return response

    async def scenario(bench: Any) -> None:
        wire, client = on(bench, wallet)
        async with client:
            assert (await client.post("/infer", json=GOOD)).status_code == 200
            wire.tamper, before = forge, len(wire.sent)
            with pytest.raises(DishonestServer) as error:
                await client.post("/infer", json=GOOD)
            assert error.value.code == "forged_state" and len(wire.sent) == before + 1

    on_replica(scenario)


def test_a_true_corrective_402_is_followed_once(on_replica: Any, wallet: Wallet) -> None:
    async def scenario(bench: Any) -> None:
        wire, client = on(bench, wallet)
        async with client:
            for _ in range(3):
                await client.post("/infer", json=GOOD)
            client.channel.charged, before = -250, len(wire.sent)
            answer = await client.post("/infer", json=GOOD)
        assert answer.status_code == 200 and len(wire.sent) == before + 2
        assert receipt(answer).receipt.after == 400 == client.channel.charged

    on_replica(scenario)


def test_a_deposit_whose_answer_was_lost_is_sent_again_and_never_made_twice(on_replica: Any, wallet: Wallet) -> None:
    async def scenario(bench: Any) -> None:
        wire, client = on(bench, wallet)
        async with client:
            wire.tamper = lose
            for _ in range(3):
                with pytest.raises(httpx.ReadError):
                    await client.post("/infer", json=GOOD)
            wire.tamper = lambda request, response: response
            assert (await client.post("/infer", json=GOOD)).status_code == 200
        assert len({paid.deposit.salt for paid in bench.deposits}) == 1, "one authorization, however often it was sent"

    on_replica(scenario)


def test_a_deposit_that_lapsed_unanswered_is_looked_for_before_another_is_signed(
    on_replica: Any, wallet: Wallet
) -> None:
    async def scenario(bench: Any) -> None:
        late_s = 0
        wire, client = on(bench, wallet, now=lambda: time.time() + late_s)
        async with client:
            wire.tamper = lose
            with pytest.raises(httpx.ReadError):
                await client.post("/infer", json=GOOD)
            wire.tamper = lambda request, response: response
            assert client.channel.pending is not None
            late_s = DEPOSIT_VALID_S
            assert (await client.post("/infer", json=GOOD)).status_code == 200
            assert len(bench.deposits) == 1
            assert (client.channel.pending, client.channel.deposited) == (None, 4_000)

    on_replica(scenario)


def test_budgets_refuse_before_anything_is_sent(on_replica: Any) -> None:
    async def scenario(bench: Any) -> None:
        for code, budget in {
            "budget_per_call": Budget(per_call=399),
            "budget_per_channel": Budget(per_channel=3_999),
            "budget_per_day": Budget(per_day=399),
            "budget_per_dapp": Budget(per_dapp={"doubler": 399}),
        }.items():
            wire, client = on(bench, Wallet(Signer.generate(), budget))
            async with client:
                for _ in range(2):
                    with pytest.raises(BudgetExceeded) as refused:
                        await client.post("/infer", json=GOOD)
                    assert refused.value.code == code
            assert not any("payment-signature" in request.headers for request in wire.sent)
        wire, client = on(bench, Wallet(Signer.generate(), Budget(per_dapp={"other": 0}, per_day=650)))
        async with client:
            assert [(await client.post("/infer", json=GOOD)).status_code for _ in range(3)] == [200] * 3
            with pytest.raises(BudgetExceeded, match="300 is spent today"):
                await client.post("/infer", json=GOOD)

    on_replica(scenario)


def test_many_calls_in_flight_take_one_deposit_and_one_round_trip_each(on_replica: Any, wallet: Wallet) -> None:
    async def scenario(bench: Any) -> None:
        wallet.budget.deposit = 400 * 65
        wire, client = on(bench, wallet)
        async with client:
            await client.post("/infer", json=GOOD)
            before = len(wire.sent)
            answers = await asyncio.gather(*(client.post("/infer", json=GOOD) for _ in range(64)))
        assert {answer.status_code for answer in answers} == {200} and len(wire.sent) == before + 64
        assert len(bench.deposits) == 1 and bench.charged() == 6_500

    on_replica(scenario)


def test_a_key_that_is_sent_again_is_counted_once(on_replica: Callable[[Any], None], wallet: Wallet) -> None:
    async def scenario(bench: Any) -> None:
        _, client = on(bench, wallet)
        async with client:
            for _ in range(3):
                answer = await client.post("/infer", json=GOOD, headers={"Idempotency-Key": "same"})
                assert receipt(answer).receipt.after == 100
            channel = client.channel
            assert (channel.charged, channel.outstanding, bench.charged()) == (100, {}, 100)
            assert wallet.spending.today() == 100
            twice = (client.post("/infer", json=GOOD, headers={"Idempotency-Key": "twice"}) for _ in range(2))
            first, second = await asyncio.gather(*twice)
            assert receipt(first) == receipt(second)
            assert (channel.charged, channel.outstanding, bench.charged()) == (200, {}, 200)

    on_replica(scenario)


def test_another_payee_on_a_known_route_gets_no_channel(on_replica: Any, wallet: Wallet) -> None:
    def redirect(request: httpx.Request, response: httpx.Response) -> httpx.Response:
        accepted = decode_header(request.headers["payment-signature"])["accepted"]
        other = accepted | {"payTo": Signer(b"\x0b" * 32).address}
        offer = {"x402Version": 2, "accepts": [other]}
        return httpx.Response(402, headers={"payment-required": encode_header(offer)}, json={"error": "no"})

    async def scenario(bench: Any) -> None:
        wire, client = on(bench, wallet)
        async with client:
            assert (await client.post("/infer", json=GOOD)).status_code == 200
            wire.tamper, before = redirect, len(wire.sent)
            with pytest.raises(DishonestServer) as error:
                await client.post("/infer", json=GOOD)
            assert error.value.code == "payee_changed" and len(wire.sent) == before + 1
            assert len(client.payer.channels) == 1

    on_replica(scenario)


def test_when_prices_or_shares_change_an_older_quote_is_not_charged_under_them(on_replica: Any, wallet: Wallet) -> None:
    async def scenario(bench: Any) -> None:
        wire, client = on(bench, wallet)

        def terms(digest: str) -> None:
            bench.live.offer = replace(bench.live.offer, quote=replace(bench.live.offer.quote, terms=digest))

        async with client:
            terms("0123456789abcdef")
            assert (await client.post("/infer", json=GOOD)).status_code == 200
            old = wire.sent[-1].headers["payment-signature"]
            terms("fedcba9876543210")
            headers = {"PAYMENT-SIGNATURE": old, "Idempotency-Key": "quoted before"}
            refused = await client.post("/infer", json=GOOD, headers=headers, auth=None)
            assert (refused.status_code, refused.json()["code"]) == (402, "requirements_mismatch")
            before = len(wire.sent)
            assert (await client.post("/infer", json=GOOD)).status_code == 200, "our client takes the new quote"
            assert len(wire.sent) == before + 2
        assert bench.charged() == 200

    on_replica(scenario)
