"""Deposits that should not be made, and money that comes or goes in mid-call. Cases 25 to 28 of `docs/attacks.md`."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from channels.errors import LedgerError
from channels.protocol.digests import Domain, finalize_digest, initiate_digest
from channels.protocol.signer import Signer
from channels.protocol.x402 import decode_header
from tests.attacks.conftest import OnRing, code_of, opened, refused
from tests.attacks.payer import MARK, WRONG, Payer, bent
from tests.attacks.ring import Ring
from tests.attacks.test_identity import running, stopped


def funded(ring: Ring, amount: int = 100_000) -> Payer:
    payer = Payer(ring.quote)
    ring.ledger.fund(payer.signer.address, amount)
    return payer


def test_case_25_a_deposit_outside_its_time_or_signed_for_another_token_moves_nothing(on_ring: OnRing) -> None:
    async def scenario(ring: Ring) -> None:
        payer, payee, now_s = funded(ring), ring.quote.payee, int(time.time())
        names = (payee.asset_name, payee.asset_version, payee.chain_id, payee.asset)
        other = Signer(b"\x09" * 32)
        cases: list[tuple[str, dict[str, Any]]] = [
            ("payload_authorization_valid_before", {"valid_before": now_s}),
            ("payload_authorization_valid_before", {"valid_before": 0}),
            ("payload_authorization_valid_after", {"valid_after": now_s + 60}),
            ("payload_authorization_valid_after", {"valid_after": 2**128 - 1, "valid_before": 2**128 - 1}),
            ("receive_authorization_signature", {"signer": other}),
            ("receive_authorization_signature", {"token": Domain.of(names[0], "9", *names[2:])}),
            ("receive_authorization_signature", {"token": Domain.of("Other Dollar", *names[1:])}),
            ("receive_authorization_signature", {"token": Domain.of(*names[:2], 1, names[3])}),
            ("receive_authorization_signature", {"token": Domain.of(*names[:3], other.address)}),
        ]
        for code, how in cases:
            for key in (None, "k"):
                await refused(ring, payer.deposit(400, 4_000, **how), code, key=key)
        assert ring.ledger.wallet(payer.signer.address) == 100_000

    on_ring(scenario)


def test_case_25_a_deposit_that_was_altered_after_it_was_signed_moves_nothing(on_ring: OnRing) -> None:
    async def scenario(ring: Ring) -> None:
        payer = funded(ring)
        way = "payload.deposit.authorization.erc3009Authorization"
        for path, value in (
            ("payload.deposit.amount", "4001"),
            (f"{way}.validAfter", "1"),
            (f"{way}.validBefore", str(2**40)),
            (f"{way}.salt", "0x" + "77" * 32),
            (f"{way}.signature", "0x" + WRONG.hex()),
        ):
            await refused(ring, bent(payer.deposit(400, 4_000), path, value), "receive_authorization_signature")
        # A deposit for one channel cannot pay into another: its nonce is bound to the channel's name.
        elsewhere = Payer(ring.quote, payer.signer, salt="0x" + "01" * 32)
        header = bent(elsewhere.deposit(400, 4_000), "payload.deposit", payer.deposit(400, 4_000).deposit.to_json())  # type: ignore[union-attr]
        await refused(ring, header, "receive_authorization_signature")

    on_ring(scenario)


@pytest.mark.parametrize("path", ["deposit", "deposit.authorization", "deposit.authorization.erc3009Authorization"])
@pytest.mark.parametrize("value", [None, [], "x", 5, {}, ..., {"permit2Authorization": {"from": MARK}}])
def test_case_25_what_is_no_deposit_is_named(on_ring: OnRing, path: str, value: Any) -> None:
    async def scenario(ring: Ring) -> None:
        payment = Payer(ring.quote).deposit(400, 4_000)
        await refused(ring, bent(payment, f"payload.{path}", value), "deposit_payload", says=path)

    on_ring(scenario)


def test_case_25_what_is_no_deposit_salt_or_signature_is_named(on_ring: OnRing) -> None:
    async def scenario(ring: Ring) -> None:
        payment = Payer(ring.quote).deposit(400, 4_000)
        way = "deposit.authorization.erc3009Authorization"
        for value in ("", "0x12", "zz" * 33, None, 5, MARK):
            says = f"{way}.salt is 32 bytes in hex"
            await refused(ring, bent(payment, f"payload.{way}.salt", value), "deposit_payload", says=says)
            says = f"{way}.signature is 65 bytes in hex"
            header = bent(payment, f"payload.{way}.signature", value)
            await refused(ring, header, "receive_authorization_signature", says=says)

    on_ring(scenario)


def test_case_25_a_deposit_below_what_the_call_needs_or_above_the_wallet_moves_nothing(on_ring: OnRing) -> None:
    async def scenario(ring: Ring) -> None:
        payer = funded(ring, 5_000)
        await refused(ring, payer.deposit(400, 0), "cumulative_exceeds_balance")
        await refused(ring, payer.deposit(400, 399), "cumulative_exceeds_balance")
        await refused(ring, payer.deposit(400, 5_001), "insufficient_balance")
        assert ring.ledger.wallet(payer.signer.address) == 5_000

    on_ring(scenario)


def test_case_25_one_authorisation_moves_once_whoever_repeats_it(on_ring: OnRing) -> None:
    async def scenario(ring: Ring) -> None:
        payer = funded(ring)
        answers = await asyncio.gather(
            *(ring.send(payer.deposit(400 * (n + 1), 4_000), key=f"k{n}", door=n % 2) for n in range(6))
        )
        assert {answer.status_code for answer in answers} <= {200, 402}
        assert ring.ledger.wallet(payer.signer.address) == 96_000
        before = await ring.state()
        again = await ring.send(payer.deposit(400, 4_000), key="k0")
        assert again.status_code == 200 and await ring.state() == before
        # Its nonce is spent: the same authorisation does not move even when its money would be needed.
        spent = ring.ledger.channel(payer.channel)
        assert spent is not None and spent.balance == 4_000
        await ring.send(payer.deposit(4_400, 4_000), key="more")
        assert ring.ledger.wallet(payer.signer.address) == 96_000

    on_ring(scenario, replicas=2)


def test_case_25_a_deposit_that_is_not_needed_is_not_taken(on_ring: OnRing) -> None:
    async def scenario(ring: Ring) -> None:
        payer = await opened(ring)
        before = ring.ledger.wallet(payer.signer.address)
        answer = await ring.send(payer.deposit(500, 4_000, salt=5))
        assert answer.status_code == 200 and ring.ledger.wallet(payer.signer.address) == before
        assert decode_header(answer.headers["payment-response"])["amount"] == ""

    on_ring(scenario)


def test_case_26_a_top_up_in_mid_call_raises_the_balance_and_leaves_the_call_alone(on_ring: OnRing) -> None:
    async def scenario(ring: Ring) -> None:
        payer = await opened(ring, amount=500)
        with stopped(ring) as go:
            first = asyncio.create_task(ring.send(payer.voucher(500), key="first"))
            await running(ring, payer)
            await refused(ring, payer.voucher(900), "cumulative_exceeds_balance", key="second")
            await refused(ring, payer.deposit(900, 399, salt=2), "cumulative_exceeds_balance", key="second")
            second = asyncio.create_task(ring.send(payer.deposit(900, 400, salt=3), key="second"))
            while (channel := ring.ledger.channel(payer.channel)) is None or channel.balance != 900:
                await asyncio.sleep(0.01)
            assert not first.done()
            go.set()
            answers = [await first, await second]
        assert [answer.status_code for answer in answers] == [200, 200]
        assert await ring.charged(payer.channel) == 300

    on_ring(scenario)


async def withdrawing(ring: Ring, payer: Payer, amount: int) -> None:
    digest = initiate_digest(ring.quote.payee.chain_id, payer.channel, amount, 1)
    withdrawal = await ring.treasury.initiate(payer.channel, amount, 1, payer.signer.sign(digest))
    assert isinstance(withdrawal, dict), withdrawal
    await ring.treasury.settle()  # as the keeper would at once


def test_case_27_a_withdrawal_in_mid_call_stops_service_and_what_was_served_is_claimed_first(on_ring: OnRing) -> None:
    async def scenario(ring: Ring) -> None:
        payer = await opened(ring)
        with stopped(ring) as go:
            call = asyncio.create_task(ring.send(payer.voucher(500), key="in-flight"))
            await running(ring, payer)
            await withdrawing(ring, payer, 9_900)
            for payment in (payer.voucher(900), payer.deposit(900, 4_000, salt=4)):
                for key in (None, "next"):
                    await refused(ring, payment, "withdrawal_pending", key=key)
            go.set()
            answer = await call
        assert answer.status_code == 200, "its money was set aside before"
        await ring.treasury.settle()
        settled = ring.ledger.channel(payer.channel)
        assert settled is not None and (settled.total_claimed, settled.left) == (200, 9_800)
        await refused(ring, payer.voucher(600), "withdrawal_pending")

    on_ring(scenario)


def test_case_27_a_withdrawal_before_its_time_or_by_another_is_refused(on_ring: OnRing) -> None:
    async def scenario(ring: Ring) -> None:
        payer, thief = await opened(ring), Signer(b"\x09" * 32)
        chain = ring.quote.payee.chain_id
        stolen = thief.sign(initiate_digest(chain, payer.channel, 100, 1))
        with pytest.raises(LedgerError) as refused_thief:
            await ring.treasury.initiate(payer.channel, 100, 1, stolen)
        assert refused_thief.value.code == "withdraw_signature"
        await withdrawing(ring, payer, 9_900)
        early = payer.signer.sign(finalize_digest(chain, payer.channel, 2))
        with pytest.raises(LedgerError) as refused_early:
            await ring.treasury.finalize(payer.channel, 2, early)
        assert refused_early.value.code == "withdraw_too_early"
        channel = ring.ledger.channel(payer.channel)
        assert channel is not None and channel.balance == 10_000

    on_ring(scenario)


def test_case_28_a_refund_races_a_call_and_the_call_wins(on_ring: OnRing) -> None:
    async def scenario(ring: Ring) -> None:
        payer = await opened(ring)
        with stopped(ring) as go:
            call = asyncio.create_task(ring.send(payer.voucher(500), key="k"))
            await running(ring, payer)
            answer = await refused(ring, payer.refund(100), "in_progress", method="GET")
            assert answer.status_code == 409 and answer.headers["retry-after"]
            go.set()
            assert (await call).status_code == 200
        assert (await ring.send(payer.refund(200), method="GET")).json()["refunded"] == "9800"

    on_ring(scenario)


def test_case_28_two_refunds_at_once_pay_once(on_ring: OnRing) -> None:
    async def scenario(ring: Ring) -> None:
        payer = await opened(ring)
        before = ring.ledger.wallet(payer.signer.address)
        answers = await asyncio.gather(*(ring.send(payer.refund(100), method="GET", door=n % 2) for n in range(6)))
        assert sorted(answer.status_code for answer in answers) == [200] + [402] * 5
        assert {code_of(answer) for answer in answers if answer.status_code == 402} == {"refund_no_balance"}
        assert ring.ledger.wallet(payer.signer.address) == before + 9_900
        parts = [ring.send(payer.refund(100, 1), method="GET") for _ in range(2)]
        assert {code_of(answer) for answer in await asyncio.gather(*parts)} == {"refund_no_balance"}
        ring.ledger.verify()

    on_ring(scenario, replicas=2)


def test_case_28_a_refund_races_a_claim_and_nobody_is_paid_twice(on_ring: OnRing) -> None:
    async def scenario(ring: Ring) -> None:
        payer = await opened(ring)
        before = ring.ledger.wallet(payer.signer.address)
        refund, _, _ = await asyncio.gather(
            ring.send(payer.refund(100), method="GET"), ring.treasury.settle(), ring.treasury.settle()
        )
        assert refund.status_code == 200
        await ring.treasury.settle()
        channel = ring.ledger.channel(payer.channel)
        assert channel is not None and (channel.balance, channel.total_claimed, channel.left) == (100, 100, 0)
        assert ring.ledger.wallet(payer.signer.address) == before + 9_900

    on_ring(scenario)


def test_case_28_a_refund_of_more_than_there_is_or_of_nothing(on_ring: OnRing) -> None:
    async def scenario(ring: Ring) -> None:
        payer = await opened(ring)
        for amount in (0, 9_901, 2**53, 2**128 - 1):
            await refused(ring, payer.refund(100, amount), "refund_amount_invalid", method="GET")
        thief = Signer(b"\x09" * 32)
        bad = Payer(ring.quote, payer.signer, authorizer=thief)
        await refused(ring, bad.refund(100), "channel_not_found", method="GET")
        header = bent(payer.refund(100), "payload.voucher.signature", "0x" + WRONG.hex())
        await refused(ring, header, "voucher_signature", method="GET")
        assert (await ring.send(payer.refund(100, 9_900), method="GET")).status_code == 200

    on_ring(scenario)
