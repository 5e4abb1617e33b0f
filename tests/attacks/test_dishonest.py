"""A mesh that lies to our own client. Cases 37, 38 and 44; `tests/serving/test_payer.py` has the plain lies.

Here: offers and answers of any form at all. Whatever comes, the client raises an error of its own kind, has signed for
no more than what was quoted, and never goes round in a circle.
"""

from __future__ import annotations

import asyncio
import base64
import json
from dataclasses import replace
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from channels.errors import ChannelError
from channels.metering.quote import Payee, Quote
from channels.payer import Budget, BudgetExceeded, ChannelAuth, DishonestServer, Wallet
from channels.payer.budget import DEPOSIT_CALLS
from channels.protocol.digests import voucher_digest
from channels.protocol.signer import Signer
from channels.protocol.x402 import Json, Payment, decode_header, encode_header
from tests.attacks.conftest import OnRing
from tests.attacks.ring import GOOD, Ring
from tests.examples import examples

MESH = Signer(b"\2" * 32).address
QUOTE = Quote(Payee(31337, "0xDe70000000000000000000000000000000000001", "Dev", "1", MESH, MESH, 900), 400, 4_000)


class Liar(httpx.AsyncBaseTransport):
    """A mesh that answers every request with what it is told to, and keeps what it was sent."""

    def __init__(self, *answers: httpx.Response) -> None:
        self.answers, self.sent = answers, list[str]()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.sent.append(request.headers.get("payment-signature", ""))
        return self.answers[min(len(self.sent), len(self.answers)) - 1]

    def vouchers(self) -> list[Payment]:
        """Everything that the client signed."""
        return [Payment.from_header(header) for header in self.sent if header]


def offer(requirement: Any, status: int = 402, **more: Any) -> httpx.Response:
    whole = {"x402Version": 2, "error": "payment_required", "accepts": [requirement], **more}
    return httpx.Response(
        status, headers={"payment-required": lie_of(whole)}, json={"error": "x", "code": "payment_required"}
    )


def lie_of(whole: Any) -> str:
    """A header of any JSON; not by orjson, for a lie may hold a number that it cannot write."""
    return base64.b64encode(json.dumps(whole).encode()).decode()


def call(liar: Liar, wallet: Wallet | None = None) -> httpx.Response | ChannelError:
    """One call of our client to it: its answer, or the error of our kind that it raised."""

    async def run() -> httpx.Response:
        auth = ChannelAuth(wallet or Wallet(Signer(b"\1" * 32), Budget(per_call=400, per_channel=4_000)))
        async with httpx.AsyncClient(transport=liar, base_url="http://mesh", auth=auth) as client:
            return await client.post("/v2/models/x/infer", content=GOOD)

    try:
        return asyncio.run(run())
    except ChannelError as error:
        return error


lies = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=20),
    st.sampled_from(["0x", "0x" + "00" * 20, "eip155:", "eip155:x", "eip155:-1", "eip155:" + "9" * 80, "-1", "1e9"]),
    st.sampled_from([[], {}, [1], ["x"], {"a": 1}, 2**40, -1]),
)
FIELDS = ["scheme", "network", "asset", "amount", "payTo", "maxTimeoutSeconds", "extra"]
RECEIPT = ["channelId", "callId", "seq", "before", "after", "amount", "shares", "signature", "dapp", "atMs", "units"]
EXTRAS = ["name", "version", "receiverAuthorizer", "withdrawDelay", "minDeposit", "channelState", "voucherState"]


@settings(max_examples=examples(200))
@given(
    plain=st.dictionaries(st.sampled_from(FIELDS), lies | st.just(...), max_size=2),
    extra=st.dictionaries(st.sampled_from(EXTRAS), lies | st.just(...), max_size=2),
    missing=st.booleans(),
)
def test_case_37_whatever_an_offer_holds_the_client_signs_within_its_budget_or_refuses(
    plain: Json, extra: Json, missing: bool
) -> None:
    requirement = QUOTE.requirement()
    for whole, changes in ((requirement["extra"], extra), (requirement, plain)):
        for name, value in changes.items():
            if value is ...:
                whole.pop(name, None)
            else:
                whole[name] = value
    liar = Liar(offer(requirement))
    outcome = call(liar)
    assert isinstance(outcome, ChannelError) or outcome.status_code == 402
    assert len(liar.sent) <= 3, "an offer, one payment, at most one more"
    for payment in liar.vouchers():
        assert payment.voucher.max_claimable <= 400
        assert payment.deposit is None or payment.deposit.amount <= 4_000


@settings(max_examples=examples(100))
@given(header=st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=40) | st.none(), accepts=lies)
def test_case_37_an_offer_that_is_none_is_an_error_of_ours(header: str | None, accepts: Any) -> None:
    headers = {} if header is None else {"payment-required": header}
    for answer in (httpx.Response(402, headers=headers), offer({}, accepts=accepts)):
        liar = Liar(answer)
        assert isinstance(call(liar), ChannelError) and not liar.vouchers()


@settings(max_examples=examples(150))
@given(
    plain=st.dictionaries(st.sampled_from(["success", "transaction", "network", "amount", "payer", "extra"]), lies),
    extra=st.dictionaries(st.sampled_from(["chargedAmount", "channelState"]), lies),
    state=st.dictionaries(st.sampled_from(["balance", "chargedCumulativeAmount", "channelId"]), lies),
    receipt=st.none() | lies | st.dictionaries(st.sampled_from(RECEIPT), lies),
)
def test_case_38_whatever_an_answer_holds_the_client_books_no_more_than_the_quote(
    plain: Json, extra: Json, state: Json, receipt: Any
) -> None:
    channel_state = {
        "channelId": "0x",
        "balance": "4000",
        "totalClaimed": "0",
        "chargedCumulativeAmount": "100",
    } | state
    settlement = {"success": True, "transaction": "0x1", "network": "eip155:31337", "amount": "4000"}
    settlement |= {"extra": {"chargedAmount": "100", "channelState": channel_state} | extra} | plain
    headers = {"payment-response": lie_of(settlement)} | ({} if receipt is None else {"leben-receipt": lie_of(receipt)})
    liar = Liar(offer(QUOTE.requirement()), httpx.Response(200, headers=headers))
    wallet = Wallet(Signer(b"\1" * 32), Budget(per_call=400, per_channel=4_000))
    answer = call(liar, wallet)
    assert isinstance(answer, DishonestServer) or (not isinstance(answer, ChannelError) and answer.status_code == 200)
    assert len(liar.vouchers()) == 1 and liar.vouchers()[0].voucher.max_claimable == 400
    assert wallet.spending.today() <= 400


def corrective(channel: str, charged: str, maximum: int, signature: str) -> httpx.Response:
    state = {"channelId": channel, "balance": "10000", "totalClaimed": "0", "chargedCumulativeAmount": charged}
    proof = {"signedMaxClaimable": str(maximum), "signature": signature}
    requirement = QUOTE.requirement({"channelState": state, "voucherState": proof})
    return offer(requirement)


@pytest.mark.parametrize("lie", ["another's signature", "another channel", "charged above signed", "charged is no sum"])
def test_case_37_a_forged_corrective_402_closes_the_channel_after_one_payment(lie: str) -> None:
    signer, salt = Signer(b"\1" * 32), "0x" + "07" * 32

    async def run() -> tuple[Liar, ChannelAuth]:
        auth = ChannelAuth(Wallet(signer), salt)
        name = auth.channel_for(QUOTE.requirement()).id
        own = "0x" + signer.sign(voucher_digest(31337, name, 400)).hex()
        thief = "0x" + Signer(b"\x09" * 32).sign(voucher_digest(31337, name, 400)).hex()
        answers = {
            "another's signature": corrective(name, "300", 400, thief),
            "another channel": corrective("0x" + "33" * 32, "300", 400, own),
            "charged above signed": corrective(name, "401", 400, own),
            "charged is no sum": corrective(name, "-1", 400, own),
        }
        liar = Liar(offer(QUOTE.requirement()), answers[lie])
        async with httpx.AsyncClient(transport=liar, base_url="http://mesh", auth=auth) as client:
            for _ in range(2):
                with pytest.raises(ChannelError):
                    await client.post("/v2/models/x/infer", content=GOOD)
        return liar, auth

    liar, auth = asyncio.run(run())
    assert len(liar.vouchers()) == 1, "no second signature, whatever is asked"
    (channel,) = auth.channels.values()
    assert channel.closed is not None


def test_case_37_a_true_corrective_402_that_never_ends_is_followed_once() -> None:
    signer, salt = Signer(b"\1" * 32), "0x" + "07" * 32
    name = ChannelAuth(Wallet(signer), salt).channel_for(QUOTE.requirement()).id
    own = "0x" + signer.sign(voucher_digest(31337, name, 400)).hex()
    liar = Liar(offer(QUOTE.requirement()), corrective(name, "100", 400, own))

    async def run() -> httpx.Response:
        auth = ChannelAuth(Wallet(signer), salt)
        async with httpx.AsyncClient(transport=liar, base_url="http://mesh", auth=auth) as client:
            return await client.post("/v2/models/x/infer", content=GOOD)

    assert asyncio.run(run()).status_code == 402 and len(liar.sent) == 3


def test_case_44_what_is_signed_never_passes_a_budget_however_the_mesh_answers(on_ring: OnRing) -> None:
    async def scenario(ring: Ring) -> None:
        wallet = Wallet(Signer.generate(), Budget(per_call=400, per_channel=5_000, per_day=1_500))
        ring.ledger.fund(wallet.address, 1_000_000)
        seen: list[int] = []
        async with ring.client(wallet) as client:
            for _ in range(20):
                try:
                    answer = await client.post("/infer", content=GOOD)
                except ChannelError as error:
                    assert error.code == "budget_per_day"
                    break
                assert answer.status_code == 200
                seen.append(int(decode_header(answer.headers["payment-response"])["extra"]["chargedAmount"]))
        assert seen == [100] * 12, "of 1 500 a day the thirteenth call's quote of 400 does not fit"
        channel = ring.ledger.channel(next(iter(client.auth.channels)))  # type: ignore[union-attr]
        assert channel is not None and channel.balance <= 5_000

    on_ring(scenario)


@pytest.mark.parametrize(
    ("quote", "code"),
    [
        pytest.param(replace(QUOTE, amount=50_000_000), "budget_per_call", id="a quote of 50.00"),
        pytest.param(
            replace(QUOTE, payee=replace(QUOTE.payee, withdraw_delay_s=2_592_000)),
            "budget_notice",
            id="30 days' notice",
        ),
    ],
)
def test_case_44_a_payer_who_sets_no_limits_has_limits(quote: Quote, code: str) -> None:
    liar = Liar(offer(quote.requirement()))
    error = call(liar, Wallet(Signer(b"\1" * 32)))
    assert isinstance(error, BudgetExceeded) and error.code == code and "Budget(" in error.message
    assert not liar.vouchers(), "nothing was signed"
    lifted = Wallet(Signer(b"\1" * 32), Budget(per_call=None, notice_s=None))
    assert not isinstance(call(liar, lifted), ChannelError) and liar.vouchers(), "the way out is the payer's own word"


@given(suggested=st.integers(0, 2**52), price=st.integers(1, 1_000_000))
def test_case_44_a_suggested_deposit_is_bounded_by_calls(suggested: int, price: int) -> None:
    liar = Liar(offer(replace(QUOTE, amount=price, minimum_deposit=suggested).requirement()))
    call(liar, Wallet(Signer(b"\1" * 32)))
    (payment, *_) = liar.vouchers()
    assert payment.deposit is not None
    assert payment.deposit.amount == max(price, min(suggested, DEPOSIT_CALLS * price))


OTHER_ORIGINS = ["http://mesh.example/v2/models/x/infer", "https://mesh/v2/models/x/infer", "http://mesh:81/"]


@pytest.mark.parametrize("location", OTHER_ORIGINS)
@pytest.mark.parametrize("quoted", [False, True], ids=["the first call", "a route whose quote is known"])
def test_case_44_a_redirect_to_another_origin_is_not_paid(location: str, quoted: bool) -> None:
    redirects = not quoted
    sent: list[httpx.Request] = []

    def mesh(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        if redirects and str(request.url) != location:
            return httpx.Response(307, headers={"location": location})
        return offer(QUOTE.requirement())

    auth = ChannelAuth(Wallet(Signer(b"\1" * 32)))
    transport = httpx.MockTransport(mesh)
    with httpx.Client(transport=transport, base_url="http://mesh", auth=auth, follow_redirects=True) as client:
        if quoted:
            client.post("/v2/models/x/infer", content=GOOD)
            redirects = True
            sent.clear()
        with pytest.raises(BudgetExceeded) as refused:
            client.post("/v2/models/x/infer", content=GOOD)
    assert refused.value.code == "other_origin" and httpx.URL(location).host in refused.value.message
    assert len(sent) == 2, "nothing is sent after the answer from elsewhere"
    assert quoted == bool(auth.channels), "no channel for whoever was redirected to"


def test_a_redirect_within_the_mesh_is_paid() -> None:
    def mesh(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/old":
            return httpx.Response(307, headers={"location": "http://mesh:80/new"})
        return offer(QUOTE.requirement())

    auth = ChannelAuth(Wallet(Signer(b"\1" * 32)))
    transport = httpx.MockTransport(mesh)
    with httpx.Client(transport=transport, base_url="http://mesh", auth=auth, follow_redirects=True) as client:
        assert client.post("/old", content=GOOD).status_code == 402
    assert len(auth.channels) == 1


def test_case_37_an_honest_header_survives_this_files_own_writing() -> None:
    whole = decode_header(offer(QUOTE.requirement()).headers["payment-required"])
    assert whole["accepts"] == [QUOTE.requirement()] and encode_header(whole)
