"""Checks changes of a running DApp: they come between two calls, never during one, and no call is refused."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from channels.metering.quote import Quote
from channels.payer import ChannelAuth, Wallet
from channels.protocol.signer import Signer
from channels.protocol.x402 import decode_header
from channels.receipts import SignedReceipt
from dapps import DApp, Price
from dapps.api.configuration import Configuration, Declared, put
from serving.catalogue.entry import offer
from serving.replica import Offer
from serving.replica.config_lock import RWLock
from tests.serving.conftest import PAYEE, Bench, Doubler, replica


class Judge(Doubler):
    """Doubles what is above its threshold."""

    thresholds = {"low": 1.0, "high": 9.0}  # noqa: RUF012 - as authors write it

    def forward(self, **tensors: Any) -> dict[str, Any]:
        return super().forward(X=tensors["X"] * (tensors["X"] > self.thresholds["low"]))


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"cost": 1}, "no cost"),
        ({"price": {"per_piece": 1}}, "no per_piece"),
        ({"price": {"per_item": 1.5}}, "atomic units"),
        ({"price": {"per_item": True}}, "atomic units"),
        ({"price": {"per_item": -1}}, "below 0"),
        ({"price": {"per_gpu_second": 5}}, "stands alone"),
        ({"price": 5}, "by name"),
        ({"maximum_batch": 0}, "at least 1"),
        ({"maximum_batch": 2.0}, "at least 1"),
        ({"maximum_batch": 5}, "at most 4"),
        ({"thresholds": {"middle": 1}}, "no middle; there are low, high"),
        ({"thresholds": {"low": float("nan")}}, "finite"),
        ({"thresholds": {"low": "1"}}, "finite"),
    ],
)
def test_what_cannot_be_is_refused_by_name(raw: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Configuration.from_json(raw).applied(Declared.of(Judge()))


def test_what_is_left_out_is_as_declared_and_a_threshold_is_another_digest() -> None:
    dapp = Judge()
    declared, before = Declared.of(dapp), dapp.digest
    whole = {"price": {"per_item": 7}, "maximum_batch": 2, "thresholds": {"low": 3}}
    configuration = Configuration.from_json(whole)
    assert configuration.to_json() == whole
    force = configuration.applied(declared)
    assert force == Declared(Price(7, maximum_items=4), 2, {"low": 3.0, "high": 9.0})
    put(dapp, force)
    changed = dapp.digest
    assert changed != before == Judge().digest and dapp.price.per_item == 7 and Judge.price.per_item == 100
    assert dapp.provenance.dapp_digest == changed
    put(dapp, Configuration(thresholds={"low": 1.0}).applied(declared))
    assert dapp.digest == before, "what is set to what was declared is no change"
    put(dapp, Configuration.from_json({}).applied(declared))
    assert (dapp.digest, dapp.price) == (before, Judge.price)


async def reconfigured(bench: Bench, **raw: Any) -> None:
    """As `Replica.reconfigure` does it."""
    force = Configuration.from_json(raw).applied(Declared.of(type(bench.dapp)()))
    async with bench.live.lock.exclusive():
        put(bench.dapp, force)
        quote = Quote(PAYEE, bench.dapp.price.max_price, minimum_deposit=4_000)
        bench.live.offer = Offer.of("doubler", bench.dapp, quote, bench.live.offer.shares, force.maximum_batch)
        bench.executor.resize(force.maximum_batch)


def body(value: float) -> dict[str, Any]:
    return {"inputs": [{"name": "X", "datatype": "FP32", "shape": [1, 2], "data": [value, value]}]}


def on_judge(scenario: Any, dapp: DApp | None = None) -> None:
    async def run() -> None:
        async with replica(dapp or Judge()) as bench:
            await scenario(bench)

    asyncio.run(run())


def test_the_next_call_costs_and_is_answered_by_what_is_set() -> None:
    async def scenario(bench: Bench) -> None:
        async with bench.client(Wallet(Signer.generate())) as client:

            async def called() -> tuple[list[float], int, str]:
                answer = await client.post("/infer", json=body(2))
                assert answer.status_code == 200, answer.text
                signed_receipt = SignedReceipt.from_json(decode_header(answer.headers["leben-receipt"])).receipt
                return answer.json()["outputs"][0]["data"], signed_receipt.amount, signed_receipt.model_digest

            first = await called()
            assert first == ([4, 4], 100, "0x" + Judge().digest)
            earlier = await bench.door.samples.answer("sample", "json")
            # The client was quoted the old price: it is quoted anew, and pays.
            await reconfigured(bench, price={"per_item": 30}, thresholds={"low": 5})
            second = await called()
            assert second[:2] == ([0, 0], 30) and second[2] == "0x" + bench.dapp.digest != first[2]
            assert offer(bench.dapp)["price"]["perItem"] == "30"
            assert await bench.door.samples.answer("sample", "json") is not earlier
            await reconfigured(bench)
            assert await called() == first

    on_judge(scenario)


def stopped(bench: Bench) -> asyncio.Event:
    """The batcher takes no call until the event is set."""
    go, batcher = asyncio.Event(), bench.executor.queue
    submit = batcher.submit

    async def held(*words: Any, **options: Any) -> Any:
        await go.wait()
        return await submit(*words, **options)

    batcher.submit = held  # type: ignore[method-assign]
    return go


def test_a_call_that_runs_is_charged_as_it_was_quoted_and_one_that_comes_waits() -> None:
    async def scenario(bench: Bench) -> None:
        go = stopped(bench)
        async with bench.client(Wallet(Signer.generate())) as first, bench.client(Wallet(Signer.generate())) as second:
            running = asyncio.create_task(first.post("/infer", json=body(2)))
            while not bench.held():
                await asyncio.sleep(0.01)
            change = asyncio.create_task(reconfigured(bench, price={"per_item": 30}))
            while not bench.live.lock.closed:
                await asyncio.sleep(0.01)
            coming = asyncio.create_task(second.post("/infer", json=body(2)))
            await asyncio.sleep(0.1)
            assert not change.done() and not running.done() and not coming.done()
            go.set()
            answers = await asyncio.gather(running, coming)
            await change
        assert [answer.status_code for answer in answers] == [200, 200]
        assert [int(entry["amount"]) for entry in bench.store.journal] == [100, 30]

    on_judge(scenario)


def test_a_call_hung_up_on_is_finished_as_it_was_quoted_before_the_change() -> None:
    async def scenario(bench: Bench) -> None:
        go = stopped(bench)
        async with bench.client(Wallet(Signer.generate())) as client:
            running = asyncio.create_task(client.post("/infer", json=body(2)))
            while not bench.held():
                await asyncio.sleep(0.01)
            change = asyncio.create_task(reconfigured(bench, price={"per_item": 30}))
            await asyncio.sleep(0.05)
            running.cancel()
            await asyncio.sleep(0.05)
            assert not change.done()
            go.set()
            await change
        assert (bench.held(), bench.charged(), bench.dapp.price.per_item) == (0, 100, 30)

    on_judge(scenario)


class Free(Judge):
    price = Price(0, maximum_items=4)


def test_what_was_free_gets_a_price_and_loses_it_again() -> None:
    async def scenario(bench: Bench) -> None:
        async with bench.client() as plain:
            assert (await plain.post("/infer", json=body(2))).status_code == 200
            assert (await plain.get("/infer")).status_code == 405
            await reconfigured(bench, price={"per_item": 5})
            assert (await plain.post("/infer", json=body(2))).status_code == 402
            assert (await plain.get("/infer")).status_code == 402
            async with bench.client(Wallet(Signer.generate())) as paying:
                assert (await paying.post("/infer", json=body(2))).status_code == 200
            assert bench.charged() == 5
            await reconfigured(bench)
            assert (await plain.post("/infer", json=body(2))).status_code == 200
        assert bench.charged() == 5

    on_judge(scenario, Free())


def test_one_change_at_a_time_and_an_error_frees_the_lock() -> None:
    async def run() -> None:
        lock, order = RWLock(), []

        async def change(name: str) -> None:
            async with lock.exclusive():
                order.append(f"{name} in")
                await asyncio.sleep(0)
                order.append(f"{name} out")
                if name == "a":
                    raise ValueError(name)

        done = await asyncio.gather(change("a"), change("b"), return_exceptions=True)
        assert isinstance(done[0], ValueError) and done[1] is None
        assert order == ["a in", "a out", "b in", "b out"]
        async with asyncio.timeout(60), lock:
            pass

    asyncio.run(run())


def test_a_client_that_paid_the_old_quote_keeps_its_channel() -> None:
    async def scenario(bench: Bench) -> None:
        wallet = Wallet(Signer.generate())
        async with bench.client(wallet) as client:
            await client.post("/infer", json=body(2))
            await reconfigured(bench, price={"per_item": 30})
            await client.post("/infer", json=body(2))
            assert isinstance(client.auth, ChannelAuth) and len(client.auth.channels) == 1
        assert len(bench.deposits) == 1 and bench.charged() == 130

    on_judge(scenario)
