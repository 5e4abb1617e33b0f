"""Checks a replica with more calls than its device can take: the excess is refused at once and costs nothing."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from channels.payer import Wallet, receipt
from channels.protocol import Signer
from serving.protocol import bodies
from tests.serving.conftest import replica

GOOD = {"inputs": [{"name": "X", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}

GOOD_BYTES = json.dumps(GOOD).encode()


def stuck(bench: Any) -> asyncio.Event:
    """From now on the device waits for the event."""
    runner, release = bench.runner, asyncio.Event()
    run = runner.run

    async def slowly(inputs: Any) -> Any:
        await release.wait()
        return await run(inputs)

    runner.run = slowly
    return release


def test_what_does_not_fit_the_queue_is_refused_while_paid_calls_run_and_costs_nothing(
    wallet: Wallet,
) -> None:
    async def scenario(bench: Any) -> None:
        wallet.budget.deposit = 100_000
        batcher = bench.executor.queue
        async with bench.client(wallet) as client, bench.client() as stranger:
            assert (await client.post("/infer", json=GOOD)).status_code == 200
            release = stuck(bench)
            paid = [asyncio.create_task(client.post("/infer", json=GOOD))]
            while not batcher.running or batcher.waiting:
                await asyncio.sleep(0)
            paid += [asyncio.create_task(client.post("/infer", json=GOOD)) for _ in range(40)]
            refused: list[Any] = []
            while len(refused) < 16:  # one runs and 24 wait
                done, _ = await asyncio.wait(paid, timeout=0.01)
                refused = [task.result() for task in done]
            assert {answer.status_code for answer in refused} == {429}
            assert {answer.json()["code"] for answer in refused} == {"queue_full"}
            assert {answer.headers["retry-after"] for answer in refused} == {"1"}
            assert all("leben-receipt" not in answer.headers for answer in refused)
            assert (await stranger.post("/infer", json=GOOD)).status_code == 402
            for path in ("/ready", "/config", "/stats", ""):
                assert (await stranger.get(path)).status_code == 200, path
            waiting = 25
            assert [task.done() for task in paid].count(False) == waiting, "the device has answered nobody yet"
            assert (bench.charged(), bench.held()) == (100, waiting * 400), "what was refused holds nothing"
            bench.store.hold = None
            late = await client.post("/infer", json=GOOD)
            assert (late.status_code, late.json()["code"]) == (429, "queue_full"), "no hold is taken for it"
            del bench.store.hold
            release.set()
            answers = await asyncio.gather(*paid)
            served = [answer for answer in answers if answer.status_code == 200]
            assert len(served) == waiting and {receipt(answer).receipt.amount for answer in served} == {100}
            assert (bench.charged(), bench.held()) == (100 + 100 * waiting, 0)
            assert (await client.post("/infer", json=GOOD)).status_code == 200

    async def run() -> None:
        async with replica(queue_limit=24) as bench:
            await scenario(bench)

    asyncio.run(run())


def test_a_body_that_comes_too_slowly_is_refused_and_leaves_no_bytes_behind(
    on_replica: Any, wallet: Wallet, monkeypatch: Any
) -> None:
    monkeypatch.setattr(bodies, "DRAIN_TIMEOUT_S", 0.05)

    async def scenario(bench: Any) -> None:
        async def slowly() -> Any:
            yield b"{"
            await asyncio.sleep(60)

        async with bench.client(wallet) as client, bench.client() as stranger:
            assert (await client.post("/infer", json=GOOD)).status_code == 200
            headers = {"PAYMENT-SIGNATURE": client.auth.payment_header(*_known(client.auth))}
            for caller, payment in ((stranger, {}), (stranger, headers)):
                answer = await caller.post("/infer", content=slowly(), headers=payment)
                assert (answer.status_code, answer.json()["code"]) == (408, "slow_body")
            assert (bench.charged(), bench.held(), bench.door.bodies.kept_bytes) == (100, 0, 0)

    on_replica(scenario)


def test_a_body_that_stands_still_is_refused_long_before_its_time_and_one_that_flows_is_not(
    on_replica: Any, wallet: Wallet, monkeypatch: Any
) -> None:
    monkeypatch.setattr(bodies, "STALL_S", 0.3)
    monkeypatch.setattr(bodies, "MIN_BYTES_PER_S", 100)

    async def scenario(bench: Any) -> None:
        async def flowing() -> Any:
            for start in range(0, len(GOOD_BYTES), 50):
                yield GOOD_BYTES[start : start + 50]
                await asyncio.sleep(0.2)

        async def dripping() -> Any:
            while True:
                yield b" "
                await asyncio.sleep(0.05)

        async with bench.client(wallet) as client, bench.client() as stranger:
            assert (await client.post("/infer", json=GOOD)).status_code == 200
            async with asyncio.timeout(bodies.DRAIN_TIMEOUT_S / 2):
                answer = await stranger.post("/infer", content=dripping())
            assert (answer.status_code, answer.json()["code"]) == (408, "slow_body")
            assert (await client.post("/infer", content=flowing())).status_code == 200

    on_replica(scenario)


def test_a_caller_that_waits_for_leave_to_send_is_refused_before_it_sends(on_replica: Any) -> None:
    async def scenario(bench: Any) -> None:
        messages: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            pytest.fail("the body is asked for")

        async def send(message: Any) -> None:
            messages.append(message)

        headers = [(b"expect", b"100-continue"), (b"content-length", b"90000")]
        scope = {"type": "http", "method": "POST", "path": "/infer", "query_string": b"", "headers": headers}
        await bench.app(scope, receive, send)
        assert messages[0]["status"] == 402 and (b"connection", b"close") in messages[0]["headers"]

    on_replica(scenario)


LARGE = b" " * 90_000


def test_a_large_body_of_a_channel_that_does_not_exist_is_never_kept(wallet: Wallet) -> None:
    async def run() -> None:
        async with replica() as bench, replica() as other:
            async with other.client(wallet) as client:
                assert (await client.post("/infer", json=GOOD)).status_code == 200
                headers = {"PAYMENT-SIGNATURE": client.auth.payment_header(*_known(client.auth))}
            most = 0

            async def body() -> Any:
                nonlocal most
                for _ in range(9):
                    yield LARGE[:10_000]
                    most = max(most, bench.door.bodies.kept_bytes)

            async with bench.client() as stranger:
                answer = await stranger.post("/infer", content=body(), headers=headers)
            assert answer.status_code == 402 and answer.json()["code"].endswith("channel_not_found")
            assert most == 0 and "payment-required" in answer.headers

    asyncio.run(run())


def test_bodies_of_channels_without_money_leave_room_to_those_with_money(on_replica: Any, wallet: Wallet) -> None:
    async def scenario(bench: Any) -> None:
        room = bench.door.bodies
        async with bench.client(wallet) as client, bench.client(Wallet(Signer.generate())) as newcomer:
            assert (await client.post("/infer", json=GOOD)).status_code == 200
            room.kept_bytes = room.unfunded_bytes = bodies.UNFUNDED_BODIES * room.maximum_body_bytes - 50_000
            refused = await newcomer.post("/infer", content=LARGE)
            assert (refused.status_code, refused.json()["code"]) == (503, "busy"), "its deposit has not come yet"
            assert (await client.post("/infer", content=LARGE)).status_code == 400, "kept, and read as JSON"
            assert (await newcomer.post("/infer", json=GOOD)).status_code == 200, "a small body needs no share"
            assert (await newcomer.post("/infer", content=LARGE)).status_code == 400, "its channel has money now"
        assert len(bench.deposits) == 2

    on_replica(scenario)


@pytest.mark.parametrize("begun", [b"", b"{", GOOD_BYTES[:-1]])
def test_a_body_that_is_cut_off_is_refused_and_free(on_replica: Any, wallet: Wallet, begun: bytes) -> None:
    async def scenario(bench: Any) -> None:
        async with bench.client(wallet) as client:
            assert (await client.post("/infer", json=GOOD)).status_code == 200
            payment = client.auth.payment_header(*_known(client.auth)).encode()
        for headers in ([], [(b"payment-signature", payment)]):
            messages: list[dict[str, Any]] = []
            heard = iter([{"type": "http.request", "body": begun, "more_body": True}, {"type": "http.disconnect"}])

            async def receive(heard: Any = heard) -> dict[str, Any]:
                return dict(next(heard))

            async def send(message: Any, messages: Any = messages) -> None:
                messages.append(message)

            headers = [*headers, (b"content-length", str(len(GOOD_BYTES)).encode())]
            scope = {"type": "http", "method": "POST", "path": "/infer", "query_string": b"", "headers": headers}
            await bench.app(scope, receive, send)
            assert messages[0]["status"] == 400 and json.loads(messages[1]["body"])["code"] == "bad_request"
        assert (bench.charged(), bench.held(), bench.door.bodies.kept_bytes) == (100, 0, 0)

    on_replica(scenario)


def _known(auth: Any) -> tuple[Any, Any]:
    (channel,), (quote,) = auth.channels.values(), auth.quotes.values()
    return channel, quote
