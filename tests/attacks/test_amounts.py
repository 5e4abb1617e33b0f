"""Sums that are none, too large, or not the ones that pay. Cases 2, 5, 6, 20, 21 and 22 of `docs/attacks.md`."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.attacks.conftest import OnRing, code_of, opened, refused
from tests.attacks.payer import MARK, Payer, bent, unsigned
from tests.attacks.ring import Ring

NOT_AMOUNTS = {
    "negative": "-1",
    "exponent": "1e3",
    "hex": "0x10",
    "fraction": "1.0",
    "blank before": " 400",
    "blank after": "400 ",
    "line end": "400\n",
    "plus": "+400",
    "leading zero": "0400",
    "underscore": "4_00",
    "comma": "4,00",
    "Arabic digits": "\u0664\u0660\u0660",
    "full-width digits": "\uff14\uff10\uff10",
    "superscript": "4\u00b2",
    "2^128": str(2**128),
    "2^256": str(2**256),
    "40 digits": "1" * 40,
    "2 000 digits": "1" * 2_000,
    "nothing": "",
    "words": MARK,
    "a JSON number": 400,
    "a fraction as JSON": 400.0,
    "true": True,
    "null": None,
    "a list": ["400"],
    "missing": ...,
}
FIELDS = {
    "payload.voucher.maxClaimableAmount": ("voucher_payload", "voucher.maxClaimableAmount"),
    "payload.deposit.amount": ("deposit_payload", "deposit.amount"),
    "payload.deposit.authorization.erc3009Authorization.validAfter": (
        "deposit_payload",
        "deposit.authorization.erc3009Authorization.validAfter",
    ),
    "payload.deposit.authorization.erc3009Authorization.validBefore": (
        "deposit_payload",
        "deposit.authorization.erc3009Authorization.validBefore",
    ),
}


@pytest.mark.parametrize("path", FIELDS)
def test_case_20_what_is_no_decimal_is_refused_by_its_name_before_any_signature(on_ring: OnRing, path: str) -> None:
    code, named = FIELDS[path]

    async def scenario(ring: Ring) -> None:
        # Both signatures are nobody's: a refusal by another name comes before them.
        payment = unsigned(Payer(ring.quote).deposit(400, 4_000))
        for value in NOT_AMOUNTS.values():
            await refused(ring, bent(payment, path, value), code, says=f"{named} is a decimal string")

    on_ring(scenario)


def test_case_20_a_refunds_amount_is_a_decimal_too(on_ring: OnRing) -> None:
    async def scenario(ring: Ring) -> None:
        payment = unsigned(Payer(ring.quote).refund(400, 10))
        for value in NOT_AMOUNTS.values():
            if value is not ... and value is not None:
                header = bent(payment, "payload.amount", value)
                await refused(ring, header, "voucher_payload", says="payload.amount is a decimal string", method="GET")

    on_ring(scenario)


@pytest.mark.parametrize("maximum", [2**53, 2**53 + 1, 2**64, 2**127, 2**128 - 1], ids=lambda value: f"{value:.4g}")
def test_case_20_ceilings_beyond_what_lua_counts_exactly_are_refused_before_their_signature(
    on_ring: OnRing, maximum: int
) -> None:
    async def scenario(ring: Ring) -> None:
        payer = await opened(ring)
        for payment in (payer.voucher(maximum), unsigned(payer.voucher(maximum)), payer.deposit(maximum, 2**53)):
            for key in (None, "a-key"):
                await refused(ring, payment, "cumulative_exceeds_balance", key=key)

    on_ring(scenario)


def test_case_20_the_largest_ceiling_that_is_exact_is_kept_exactly(on_ring: OnRing) -> None:
    async def scenario(ring: Ring) -> None:
        payer = await opened(ring)
        assert (await ring.send(payer.voucher(2**53 - 1), key="high")).status_code == 200
        (name,) = [name for name in await ring.redis.keys("*:channel:*")]
        stored = await ring.redis.hgetall(name)
        assert (stored[b"highest"], stored[b"proof_max"]) == (b"9007199254740991", b"9007199254740991")

    on_ring(scenario)


def test_case_20_a_deposit_that_would_reach_2_53_is_refused(on_ring: OnRing) -> None:
    async def scenario(ring: Ring) -> None:
        payer = await opened(ring)
        for number, amount in enumerate((2**53, 2**53 + 1, 2**128 - 1)):
            stranger = Payer(ring.quote)
            await refused(ring, stranger.deposit(400, amount, salt=number), "balance_limit")
            await refused(ring, payer.deposit(20_000, amount, salt=9 + number), "balance_limit", key="more")

    on_ring(scenario)


def test_case_2_a_lower_ceiling_buys_nothing_and_the_highest_is_kept(on_ring: OnRing) -> None:
    async def scenario(ring: Ring) -> None:
        payer = await opened(ring)
        assert (await ring.send(payer.voucher(500))).status_code == 200
        for maximum in (0, 100, 199, 400, 499, 599, 601):
            await refused(ring, payer.voucher(maximum), "cumulative_amount_mismatch")
        for maximum in (0, 100, 599):
            await refused(ring, payer.voucher(maximum), "cumulative_amount_mismatch", key=f"low-{maximum}")
        assert (await ring.send(payer.voucher(600))).status_code == 200

    on_ring(scenario)


def test_case_5_a_ceiling_buys_exactly_the_calls_that_it_covers(on_ring: OnRing) -> None:
    async def scenario(ring: Ring) -> None:
        payer = await opened(ring)
        hold = asyncio.Event()
        submit = ring.dapp.forward

        def slowly(**tensors: Any) -> Any:
            asyncio.run_coroutine_threadsafe(hold.wait(), loop).result(20)
            return submit(**tensors)

        loop = asyncio.get_running_loop()
        ring.dapp.forward = slowly
        # 100 is charged; each call holds 400, so 1 700 covers four of ten that are in flight at once.
        calls = [asyncio.create_task(ring.send(payer.voucher(1_700), key=f"k{number}")) for number in range(10)]
        while sum(call.done() for call in calls) < 6:
            await asyncio.sleep(0.01)
        hold.set()
        answers = await asyncio.gather(*calls)
        assert sorted(answer.status_code for answer in answers) == [200] * 4 + [402] * 6
        for answer in answers:
            assert answer.status_code == 200 or code_of(answer) == "cumulative_amount_mismatch"
        assert await ring.charged(payer.channel) == 500

    on_ring(scenario)


def test_case_6_a_call_is_never_charged_more_than_was_held_for_it(on_ring: OnRing) -> None:
    async def scenario(ring: Ring) -> None:
        payer = await opened(ring)
        four = b'{"inputs": [{"name": "X", "datatype": "FP32", "shape": [4, 2], "data": [1, 2, 1, 2, 1, 2, 1, 2]}]}'
        five = four.replace(b"[4, 2]", b"[5, 2]").replace(b"1, 2]}", b"1, 2, 1, 2]}")
        assert (await ring.send(payer.voucher(500), body=four)).status_code == 200
        assert await ring.charged(payer.channel) == 500, "four items: the whole quote"
        answer = await ring.send(payer.voucher(900), body=five)
        assert (answer.status_code, code_of(answer)) == (400, "invalid_tensor")
        assert await ring.charged(payer.channel) == 500

    on_ring(scenario)


def test_case_21_a_ceiling_above_the_balance_is_refused_with_and_without_a_deposit(on_ring: OnRing) -> None:
    async def scenario(ring: Ring) -> None:
        payer = await opened(ring, amount=400)
        await refused(ring, payer.voucher(500), "cumulative_exceeds_balance")
        await refused(ring, payer.voucher(500), "cumulative_exceeds_balance", key="k")
        await refused(ring, payer.deposit(500, 99, salt=2), "cumulative_exceeds_balance")
        await refused(ring, payer.deposit(500, 99, salt=2), "cumulative_exceeds_balance", key="k")
        stranger = Payer(ring.quote)
        await refused(ring, stranger.deposit(400, 399), "cumulative_exceeds_balance")
        assert (await ring.send(payer.deposit(500, 100, salt=2))).status_code == 200

    on_ring(scenario)


def test_case_22_a_call_needs_more_than_was_claimed_and_a_refund_exactly_what_was_charged(on_ring: OnRing) -> None:
    async def scenario(ring: Ring) -> None:
        payer = await opened(ring)
        await ring.treasury.settle()
        for key in (None, "k"):
            await refused(ring, payer.voucher(100), "cumulative_amount_mismatch", key=key)
        for maximum in (99, 101, 0):
            answer = await refused(ring, payer.refund(maximum), "cumulative_amount_mismatch", method="GET")
            assert answer.headers["payment-required"]
        answer = await ring.send(payer.refund(100), method="GET")
        assert answer.status_code == 200 and answer.json()["refunded"] == "9900"

    on_ring(scenario)
