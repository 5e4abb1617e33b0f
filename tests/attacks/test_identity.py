"""Replays, races, and channels that are not what they say. Cases 1, 3, 4, 10, 18, 19, 23, 24, 29, 30 and 42."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import orjson
import pytest

from channels.metering.quote import Quote
from channels.protocol.digests import channel_id, voucher_digest
from channels.protocol.signer import Signer
from channels.protocol.x402 import Payment, Voucher, decode_header
from tests.attacks.conftest import OnRing, code_of, opened, refused
from tests.attacks.payer import MARK, Payer, bent, tree, unsigned
from tests.attacks.ring import GOOD, Ring

OTHER = GOOD.replace(b"[1,2]}", b"[3,4]}")


@contextmanager
def stopped(ring: Ring) -> Iterator[threading.Event]:
    """The model waits in mid-call until the event is set."""
    go, forward = threading.Event(), ring.dapp.forward

    def waits(**tensors: Any) -> Any:
        assert go.wait(30)
        return forward(**tensors)

    ring.dapp.forward = waits
    try:
        yield go
    finally:
        go.set()
        ring.dapp.forward = forward


async def running(ring: Ring, payer: Payer) -> None:
    """Returns once a call of this payer holds money."""
    (name,) = [name for name in await ring.redis.keys("*:channel:*") if name.endswith(payer.channel.encode())]
    while int(await ring.redis.hget(name, "held") or 0) == 0:
        await asyncio.sleep(0.01)


def test_case_1_the_identical_payment_runs_once_and_is_charged_once(on_ring: OnRing) -> None:
    async def scenario(ring: Ring) -> None:
        payer = await opened(ring)
        payment, runs = payer.voucher(500), len(ring.dapp.batches)
        with stopped(ring) as go:
            first = asyncio.create_task(ring.send(payment))
            await running(ring, payer)
            # In flight: the channel is busy with the very call that this one repeats.
            assert code_of(await ring.send(payment)) == "cumulative_amount_mismatch"
            go.set()
            answer = await first
        assert answer.status_code == 200 and len(ring.dapp.batches) == runs + 1
        before = await ring.state()
        again = await ring.send(payment)
        assert (again.status_code, again.content) == (200, answer.content), "the answer that was bought, once more"
        assert again.headers["leben-receipt"] == answer.headers["leben-receipt"]
        assert code_of(await ring.send(payment, body=OTHER)) == "cumulative_amount_mismatch"
        assert await ring.state() == before
        assert (await ring.send(payer.voucher(600))).status_code == 200
        # Another call was charged since: the old ceiling buys nothing, not even its own answer.
        await refused(ring, payment, "cumulative_amount_mismatch")

    on_ring(scenario)


def test_case_1_the_identical_keyed_payment_runs_once_and_is_charged_once(on_ring: OnRing) -> None:
    async def scenario(ring: Ring) -> None:
        payer = await opened(ring)
        payment = payer.voucher(500)
        with stopped(ring) as go:
            first = asyncio.create_task(ring.send(payment, key="k"))
            await running(ring, payer)
            busy = await ring.send(payment, key="k")
            assert (busy.status_code, code_of(busy)) == (409, "in_progress") and busy.headers["retry-after"]
            other = await ring.send(payment, key="k", body=OTHER)
            assert (other.status_code, code_of(other)) == (409, "other_request")
            go.set()
            answer = await first
        before = await ring.state()
        for _ in range(3):
            assert (await ring.send(payment, key="k")).content == answer.content
        other = await ring.send(payment, key="k", body=OTHER)
        assert (other.status_code, code_of(other)) == (409, "other_request")
        assert await ring.state() == before

    on_ring(scenario)


@pytest.mark.parametrize("replicas", [1, 3])
def test_case_3_as_many_parallel_calls_are_served_as_the_ceiling_covers(on_ring: OnRing, replicas: int) -> None:
    async def scenario(ring: Ring) -> None:
        payer = await opened(ring, amount=100_000)
        calls, covered = 64, 20
        payment = payer.voucher(100 + 400 * covered)
        with stopped(ring) as go:
            sent = [
                asyncio.create_task(ring.send(payment, key=f"k{number}", door=number % replicas))
                for number in range(calls)
            ]
            while sum(task.done() for task in sent) < calls - covered:
                await asyncio.sleep(0.01)
            go.set()
            answers = await asyncio.gather(*sent)
        assert sorted(answer.status_code for answer in answers) == [200] * covered + [402] * (calls - covered)
        for answer in answers:
            if answer.status_code == 402:
                state = decode_header(answer.headers["payment-required"])["accepts"][0]["extra"]["channelState"]
                assert int(state["chargedCumulativeAmount"]) <= 100 + 400 * covered
        assert await ring.charged(payer.channel) == 100 * (covered + 1)

    on_ring(scenario, replicas=replicas)


def test_case_4_one_key_at_two_replicas_runs_once(on_ring: OnRing) -> None:
    async def scenario(ring: Ring) -> None:
        payer = await opened(ring)
        runs = len(ring.dapp.batches)
        payment = payer.voucher(900)
        answers = await asyncio.gather(*(ring.send(payment, key="one", door=door) for door in (0, 1) * 4))
        served = {answer.content for answer in answers if answer.status_code == 200}
        assert len(served) == 1 and len(ring.dapp.batches) == runs + 1
        assert all(answer.status_code == 200 or code_of(answer) == "in_progress" for answer in answers)
        assert await ring.charged(payer.channel) == 200

    on_ring(scenario, replicas=2)


def test_case_10_a_lost_answer_is_fetched_from_another_replica_without_a_charge(on_ring: OnRing) -> None:
    async def scenario(ring: Ring) -> None:
        payer = await opened(ring)
        first = await ring.send(payer.voucher(500), key="k", door=0)
        before = await ring.state()
        again = await ring.send(payer.voucher(900), key="k", door=1)
        assert again.content == first.content and again.headers["leben-receipt"] == first.headers["leben-receipt"]
        assert await ring.state() == before

    on_ring(scenario, replicas=2)


def others(payer: Payer) -> dict[str, tuple[str, Any]]:
    stranger = Signer(b"\x09" * 32).address
    return {
        "receiver": ("receiver_mismatch", stranger),
        "receiverAuthorizer": ("receiver_authorizer_mismatch", stranger),
        "token": ("token_mismatch", stranger),
        "withdrawDelay": ("withdraw_delay_mismatch", 901),
        "payer": ("channel_id_mismatch", stranger),
        "payerAuthorizer": ("channel_id_mismatch", stranger),
        "salt": ("channel_id_mismatch", "0x" + "01" * 32),
    }


def test_case_18_a_channel_that_was_altered_under_its_own_name(on_ring: OnRing) -> None:
    async def scenario(ring: Ring) -> None:
        payer = await opened(ring)
        for name, (code, value) in others(payer).items():
            for payment in (payer.voucher(500), unsigned(payer.voucher(500))):
                says = f"channelConfig.{name}" if code != "channel_id_mismatch" else "channelId"
                await refused(ring, bent(payment, f"payload.channelConfig.{name}", value), code, says=says)

    on_ring(scenario)


def test_case_18_a_channel_of_somebody_elses_under_its_right_name(on_ring: OnRing) -> None:
    async def scenario(ring: Ring) -> None:
        payer = await opened(ring)
        chain, stranger = ring.quote.payee.chain_id, Signer(b"\x09" * 32).address
        changes: dict[str, dict[str, Any]] = {
            "receiver_mismatch": {"receiver": stranger},
            "receiver_authorizer_mismatch": {"receiver_authorizer": stranger},
            "token_mismatch": {"token": stranger},
            "withdraw_delay_mismatch": {"withdraw_delay": 86_400},
        }
        for code, change in changes.items():
            config = replace(payer.config, **change)
            name = channel_id(chain, config)
            voucher = Voucher(name, 400, payer.signer.sign(voucher_digest(chain, name, 400)))
            await refused(ring, Payment("voucher", ring.quote.requirement(), config, voucher, None), code)

    on_ring(scenario)


@pytest.mark.parametrize("field", ["payer", "payerAuthorizer", "receiver", "receiverAuthorizer", "token"])
@pytest.mark.parametrize(
    "value",
    [
        "",
        "0x",
        "0x12",
        "0x" + "zz" * 20,
        "0X" + "11" * 20,
        " 0x" + "11" * 20,
        "11" * 20,
        "0x" + "11" * 21,
        None,
        5,
        MARK,
    ],
    ids=["empty", "0x", "short", "not hex", "0X", "blank", "no 0x", "long", "null", "number", "words"],
)
def test_case_18_what_is_no_address_is_named(on_ring: OnRing, field: str, value: Any) -> None:
    async def scenario(ring: Ring) -> None:
        header = bent(unsigned(Payer(ring.quote).voucher(400)), f"payload.channelConfig.{field}", value)
        await refused(ring, header, "voucher_payload", says=f"channelConfig.{field} is a 20-byte address")

    on_ring(scenario)


@pytest.mark.parametrize("value", ["900", 900.0, True, -1, 2**40, None, [900]])
def test_case_18_what_is_no_delay_is_named(on_ring: OnRing, value: Any) -> None:
    async def scenario(ring: Ring) -> None:
        header = bent(unsigned(Payer(ring.quote).voucher(400)), "payload.channelConfig.withdrawDelay", value)
        await refused(ring, header, "voucher_payload", says="channelConfig.withdrawDelay")

    on_ring(scenario)


def test_case_19_one_channel_has_one_name_however_it_is_spelt(on_ring: OnRing) -> None:
    async def scenario(ring: Ring) -> None:
        payer = await opened(ring)
        path, name = "payload.voucher.channelId", payer.channel
        upper = bent(payer.voucher(500), path, "0x" + name[2:].upper())
        assert (await ring.send(upper)).status_code == 200
        assert await ring.charged(name) == 200
        await refused(
            ring, bent(payer.voucher(500), path, "0x" + name[2:].upper()), "cumulative_amount_mismatch", body=OTHER
        )
        assert len([name for name in await ring.redis.keys("*:channel:*")]) == 1
        spellings = [
            " " + name,
            name + " ",
            "0X" + name[2:],
            name[2:],
            name + "00",
            name[:-2],
            name + "\n",
            "",
            None,
            7,
        ]
        spellings.append("0x" + "\uff11" * 64)
        for spelling in spellings:
            header = bent(unsigned(payer.voucher(600)), path, spelling)
            await refused(ring, header, "channel_id_invalid", says="voucher.channelId is 32 bytes in hex")
        salt = bent(unsigned(payer.voucher(600)), "payload.channelConfig.salt", " " + payer.salt)
        await refused(ring, salt, "voucher_payload", says="channelConfig.salt is 32 bytes in hex")

    on_ring(scenario)


def test_case_23_what_was_accepted_is_this_quote_and_nothing_else(on_ring: OnRing) -> None:
    async def scenario(ring: Ring) -> None:
        payer = await opened(ring)
        stranger = Signer(b"\x09" * 32).address
        changes = {
            "accepted.amount": ("1", "399", "401", 400, ...),
            "accepted.network": ("eip155:1", ...),
            "accepted.scheme": ("exact", ...),
            "accepted.asset": (stranger, ...),
            "accepted.payTo": (stranger, ...),
            "accepted.maxTimeoutSeconds": (1, 10**9, "120", ...),
            "accepted.extra": ({}, None, [], MARK, ...),
            "accepted.extra.minDeposit": ("0", ...),
            "accepted.extra.withdrawDelay": (901, "900", ...),
            "accepted.extra.receiverAuthorizer": (stranger, ...),
            "accepted.extra.name": (MARK, ...),
            "accepted.extra.more": (1,),
            "accepted.more": (MARK,),
        }
        for payment in (payer.voucher(500), unsigned(payer.voucher(500))):
            for path, values in changes.items():
                for value in values:
                    await refused(ring, bent(payment, path, value), "requirements_mismatch")
        for value in (None, [], "x", 5, ...):
            await refused(ring, bent(payer.voucher(500), "accepted", value), "voucher_payload", says="accepted is")

    on_ring(scenario)


def test_case_23_a_cheap_routes_voucher_does_not_buy_a_dear_route(on_ring: OnRing) -> None:
    async def scenario(ring: Ring) -> None:
        payer = await opened(ring)
        cheap = replace(ring.quote, amount=1)
        # Honestly quoted elsewhere, well signed, and even of the right ceiling.
        await refused(ring, replace(payer.voucher(500), accepted=cheap.requirement()), "requirements_mismatch")
        await refused(ring, replace(payer.voucher(101), accepted=cheap.requirement()), "requirements_mismatch")

    on_ring(scenario)


def test_case_24_a_price_that_rose_is_asked_anew_and_never_charged_silently(on_ring: OnRing) -> None:
    async def scenario(ring: Ring) -> None:
        payer = await opened(ring)
        old = Quote(ring.quote.payee, 100, ring.quote.minimum_deposit)
        for key in (None, "k"):
            payment = replace(payer.voucher(200), accepted=old.requirement())
            answer = await refused(ring, payment, "requirements_mismatch", key=key)
            offer = decode_header(answer.headers["payment-required"])
            assert offer["accepts"] == [ring.quote.requirement()], "the present price comes with the refusal"

    on_ring(scenario)


def test_case_29_a_drained_and_refilled_channel_remembers_no_cover(on_ring: OnRing) -> None:
    async def scenario(ring: Ring) -> None:
        payer = await opened(ring)
        assert (await ring.send(payer.voucher(5_000), key="high")).status_code == 200
        assert (await ring.send(payer.refund(200), method="GET")).status_code == 200
        refilled = await ring.send(payer.deposit(600, 10_000, salt=2), key="again")
        assert refilled.status_code == 200
        # 5 000 covered this before the drain; the new epoch knows 600.
        await refused(ring, payer.voucher(300), "cumulative_amount_mismatch", key="low")
        for old in (100, 400, 5_000):
            await refused(ring, payer.voucher(old), "cumulative_amount_mismatch", body=OTHER)

    on_ring(scenario)


def test_case_30_calls_on_channels_that_are_not_there_leave_no_trace(on_ring: OnRing) -> None:
    async def scenario(ring: Ring) -> None:
        await opened(ring)
        before = await ring.state()
        for number in range(50):
            stranger = Payer(ring.quote, Signer(bytes([number + 20]) * 32), salt=f"0x{number:064x}")
            for payment, key in (
                (stranger.voucher(400), None),
                (stranger.voucher(400), f"key-{number}"),
                (stranger.refund(0), None),
                (stranger.refund(400, 400), None),
            ):
                answer = await ring.send(payment, key=key)
                assert code_of(answer) == "channel_not_found"
            # Well signed by a key that cost nothing, for money that is not there.
            answer = await ring.send(stranger.deposit(400, 4_000))
            assert code_of(answer) == "insufficient_balance"
        assert await ring.state() == before, "no key in the store, no row in the books"

    on_ring(scenario)


def test_case_30_a_channel_that_was_drained_says_that_its_balance_is_too_low(on_ring: OnRing) -> None:
    async def scenario(ring: Ring) -> None:
        payer = await opened(ring)
        assert (await ring.send(payer.refund(100), method="GET")).status_code == 200
        await refused(ring, payer.voucher(500), "cumulative_exceeds_balance")

    on_ring(scenario)


def test_case_42_the_same_item_twice_in_one_batch_is_two_items_each_with_its_own_answer(on_ring: OnRing) -> None:
    async def scenario(ring: Ring) -> None:
        payer = await opened(ring)
        rows = {"name": "X", "datatype": "FP32", "shape": [3, 2], "data": [1, 2, 1, 2, 5, 6]}
        answer = await ring.send(payer.voucher(500), body=orjson.dumps({"inputs": [rows]}))
        assert answer.json()["outputs"][0]["data"] == [2, 4, 2, 4, 10, 12]
        assert await ring.charged(payer.channel) == 400
        first = Payer(ring.quote, Signer(b"\x31" * 32))
        ring.ledger.fund(first.signer.address, 10_000)
        bodies = [b"1", b"13", b"2", b"13", b"3"]
        opening = await ring.send(first.deposit(2_400, 10_000), key="open", body=b"7", path="/diagnose")
        assert opening.status_code == 200
        answers = await asyncio.gather(
            *(
                ring.send(first.voucher(2_400), key=f"k{place}", body=body, path="/diagnose")
                for place, body in enumerate(bodies)
            )
        )
        for body, answer in zip(bodies, answers, strict=True):
            if body == b"13":
                assert answer.status_code == 500 and "13" not in answer.text
            else:
                assert answer.json()["findings"][0]["probability"] == 2 * float(body)
        assert await ring.charged(first.channel) == 400, "the two that failed cost nothing"

    on_ring(scenario)


def test_a_bent_payment_is_only_bent_where_it_is_told(on_ring: OnRing) -> None:
    async def scenario(ring: Ring) -> None:
        payer = await opened(ring)
        header = bent(payer.voucher(500), "payload.voucher.maxClaimableAmount", "500")
        assert decode_header(header) == tree(payer.voucher(500))
        assert (await ring.send(header)).status_code == 200, "the control of every case above"

    on_ring(scenario)
