"""Checks DApps that call others within their caller's quote: who is paid what, and what a failure costs."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest

from channels.payer import Wallet
from channels.protocol.signer import Signer
from channels.protocol.x402 import decode_header
from channels.receipts import SignedReceipt
from dapps import ChildFailed, DApp, Finding, Price, Report, Tensor
from dapps.conformance import local_calls
from dapps.packages import registry
from serving.cli.dev_server import call_installed
from serving.errors import CallError
from serving.execution.admission import MAX_CALLS
from serving.execution.composition import ChildCall, ChildResult, Composition
from serving.execution.executor import Submission
from serving.execution.unbatched import UnbatchedExecutor
from serving.mesh.selection import start_order
from tests.serving.conftest import CHAIN, OWNER, Bench, Doubler, replica

Way = Callable[[Any], Any]


class Halver(Doubler):
    """Halves a vector."""

    outputs = (Tensor("H", "FP32", [2]),)
    price = Price(30, maximum_items=4)

    def forward(self, **tensors: Any) -> dict[str, Any]:
        if (tensors["X"] == 13).any():
            raise ValueError("unlucky 13")
        return {"H": tensors["X"] / 2}


class Asker(Doubler):
    """Asks the halver, and adds the answer to its own."""

    calls = ("halver",)
    ask: Way | None = None

    def forward(self, **tensors: Any) -> dict[str, Any]:
        x = tensors["X"]
        half = self.ask(x) if self.ask is not None else self.call("halver", X=x)["H"]
        return {"Y": 2 * x + half}


class Teller(Asker):
    """Asks while it writes its report."""

    def forward(self, **tensors: Any) -> dict[str, Any]:
        return {"Y": tensors["X"]}

    def report(self, outputs: dict[str, Any]) -> Report:
        half = self.call("halver", X=outputs["Y"])["H"]
        assert isinstance(half, np.ndarray)
        return Report("halved", (Finding("h", "half", True, float(half[0, 0]), unit=""),))


@asynccontextmanager
async def meshed(**dapps: DApp) -> AsyncIterator[dict[str, Bench]]:
    """Replicas that reach each other as those of a mesh do, but for the way between them."""
    benches: dict[str, Bench] = {}

    async def children(name: str, call: ChildCall) -> ChildResult:
        return await benches[name].door.child_call(call)

    async with AsyncExitStack() as stack:
        for name, dapp in dapps.items():
            benches[name] = await stack.enter_async_context(replica(dapp, name=name, children=children))
        yield benches


def on_mesh(scenario: Callable[[dict[str, Bench]], Awaitable[None]], **dapps: DApp) -> None:
    async def run() -> None:
        async with meshed(**dapps) as benches:
            await scenario(benches)

    asyncio.run(run())


def body(*rows: float) -> dict[str, Any]:
    data = [value for row in rows for value in (row, row)]
    return {"inputs": [{"name": "X", "datatype": "FP32", "shape": [len(rows), 2], "data": data}]}


async def paid(bench: Bench, *rows: float, wallet: Wallet | None = None) -> httpx.Response:
    async with bench.client(wallet or Wallet(Signer.generate())) as client:
        return await client.post("/infer", json=body(*rows))


def receipt(bench: Bench, answer: httpx.Response) -> Any:
    signed = SignedReceipt.from_json(decode_header(answer.headers["leben-receipt"]))
    assert signed.verify(CHAIN, bench.mesh.address)
    return signed.receipt


def test_one_charge_pays_both_and_the_receipt_says_for_what(wallet: Wallet) -> None:
    async def scenario(mesh: dict[str, Bench]) -> None:
        asker, halver = mesh["doubler"], mesh["halver"]
        answer = await paid(asker, 2, 4, wallet=wallet)
        assert answer.status_code == 200 and answer.json()["outputs"][0]["data"] == [5, 5, 10, 10]
        assert asker.charged() == 200 and asker.held() == 0 and halver.charged() == 0
        bill = receipt(asker, answer)
        (part,) = bill.parts
        assert (part.depth, part.dapp, part.units, part.amount) == (1, "halver", 2, 60)
        assert part.model_digest == "0x" + halver.dapp.digest != bill.model_digest == "0x" + asker.dapp.digest
        assert sum(share.amount for share in bill.shares) == 140 and {share.owner for share in bill.shares} == {OWNER}
        assert sum(owed.share.amount for owed in bill.owed) == 200
        assert [share.amount for share in part.shares] == [30, 12, 15, 3]
        assert OWNER not in {share.owner for share in part.shares}

    on_mesh(scenario, doubler=Asker(), halver=Halver())


def test_two_payers_at_once_each_have_their_own_parts() -> None:
    async def scenario(mesh: dict[str, Bench]) -> None:
        answers = await asyncio.gather(*(paid(mesh["doubler"], *[float(n)] * n) for n in (1, 2, 3)))
        for n, answer in zip((1, 2, 3), answers, strict=True):
            bill = receipt(mesh["doubler"], answer)
            assert answer.json()["outputs"][0]["data"][0] == 2.5 * n
            assert [(part.units, part.amount) for part in bill.parts] == [(n, 30 * n)] and bill.amount == 100 * n

    on_mesh(scenario, doubler=Asker(), halver=Halver())


def test_what_fails_and_is_not_handled_costs_nobody_anything() -> None:
    async def scenario(mesh: dict[str, Bench]) -> None:
        answer = await paid(mesh["doubler"], 13)
        assert answer.status_code == 503 and answer.json()["code"] == "child_failed"
        assert "(internal)" in answer.json()["error"] and "13" not in answer.text
        assert mesh["doubler"].charged() == mesh["doubler"].held() == 0

    on_mesh(scenario, doubler=Asker(), halver=Halver())


REFUSALS = {
    "internal": lambda self, x: self.call("halver", X=13 + 0 * x),
    "invalid_tensor": lambda self, x: self.call("halver", X=x.double()),
    "child_undeclared": lambda self, x: self.call("strokedr", X=x),
    "child_unavailable": lambda self, x: self.call("nobody", X=x),
}


@pytest.mark.parametrize("code", REFUSALS)
def test_a_failure_is_the_askers_to_handle_and_costs_0(code: str) -> None:
    class Careful(Asker):
        calls = ("halver", "nobody")

        def ask(self, x: Any) -> Any:  # type: ignore[override]
            with pytest.raises(ChildFailed) as failed:
                REFUSALS[code](self, x)
            assert failed.value.code == code
            return self.call("halver", X=x)["H"]

    async def scenario(mesh: dict[str, Bench]) -> None:
        answer = await paid(mesh["doubler"], 2)
        assert answer.status_code == 200, answer.text
        bill = receipt(mesh["doubler"], answer)
        assert bill.amount == 100 and [part.amount for part in bill.parts] == [30]

    on_mesh(scenario, doubler=Careful(), halver=Halver())


def test_what_costs_more_than_is_left_of_the_price_is_not_run() -> None:
    class Greedy(Asker):
        def ask(self, x: Any) -> Any:  # type: ignore[override]
            for _ in range(3):
                half = self.call("halver", X=x)["H"]
            with pytest.raises(ChildFailed, match="left of the price"):
                self.call("halver", X=x)
            return half

    async def scenario(mesh: dict[str, Bench]) -> None:
        answer = await paid(mesh["doubler"], 2)
        bill = receipt(mesh["doubler"], answer)
        assert bill.amount == 100 and [part.amount for part in bill.parts] == [30, 30, 30]
        assert sum(share.amount for share in bill.shares) == 10

    on_mesh(scenario, doubler=Greedy(), halver=Halver())


class Free(Halver):
    """Costs nothing."""

    price = Price(0, maximum_items=4)


def test_one_call_asks_a_bounded_number_of_times() -> None:
    class Tireless(Asker):
        def ask(self, x: Any) -> Any:  # type: ignore[override]
            for _ in range(4):
                half = self.call("halver", X=x)["H"]
            with pytest.raises(ChildFailed, match="at most 4 times"):
                self.call("halver", X=x)
            return half

    async def scenario(mesh: dict[str, Bench]) -> None:
        answer = await paid(mesh["doubler"], 2)
        assert len(receipt(mesh["doubler"], answer).parts) == 4
        assert len(answer.headers["leben-receipt"]) < 7_000

    on_mesh(scenario, doubler=Tireless(), halver=Free())


class Between(Asker):
    """Asked by one, asks another."""

    outputs = (Tensor("H", "FP32", [2]),)
    price = Price(50, maximum_items=4)
    calls = ("inner",)

    def forward(self, **tensors: Any) -> dict[str, Any]:
        return {"H": self.call(self.calls[0], X=tensors["X"])["H"]}


def test_what_is_asked_asks_in_turn_out_of_its_own_price() -> None:
    async def scenario(mesh: dict[str, Bench]) -> None:
        bill = receipt(mesh["doubler"], await paid(mesh["doubler"], 2))
        outer, inner = bill.parts
        assert (outer.depth, outer.dapp, outer.amount, inner.depth, inner.dapp, inner.amount) == (
            (1, "halver", 50, 2, "inner", 30)
        )
        assert sum(share.amount for share in outer.shares) == 20 and sum(s.amount for s in bill.shares) == 50

    on_mesh(scenario, doubler=Asker(), halver=Between(), inner=Halver())


def test_a_circle_is_refused_at_run_time_too() -> None:
    class Back(Between):
        calls = ("doubler",)

    async def scenario(mesh: dict[str, Bench]) -> None:
        answer = await paid(mesh["doubler"], 2)
        assert answer.status_code == 503 and mesh["doubler"].charged() == 0
        with pytest.raises(ChildFailed) as failed:
            ChildCall({}, "", ("doubler", "halver"), 1, 1, 1.0).check("doubler")
        assert failed.value.code == "child_cycle"
        with pytest.raises(ChildFailed, match="at most 4 deep"):
            ChildCall({}, "", ("a", "b", "c", "d", "e"), 1, 1, 1.0).check("f")

    on_mesh(scenario, doubler=Asker(), halver=Back())


def test_a_report_may_ask_too() -> None:
    async def scenario(mesh: dict[str, Bench]) -> None:
        async with mesh["doubler"].client(Wallet(Signer.generate())) as client:
            answer = await client.post("/diagnose", content=b"8")
        assert answer.status_code == 200 and answer.json()["findings"][0]["probability"] == 4.0
        assert [part.amount for part in receipt(mesh["doubler"], answer).parts] == [30]

    on_mesh(scenario, doubler=Teller(), halver=Halver())


def composition(caller: Any) -> Composition:
    return Composition(
        caller, chain=("doubler",), payer="payer", budget=100, max_parts=4, until_s=time.monotonic() + 60
    )


def returned(amount: int = 30) -> ChildResult:
    digest = "0x" + "11" * 32
    from channels.receipts import Part, Share

    return ChildResult({}, (Part(1, "halver", "1", digest, digest, digest, 1, amount, (Share("a", OWNER, amount),)),))


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        pytest.param(returned(101), "child_budget", id="dearer than its budget"),
        pytest.param(ChildResult({}, ()), "child_unavailable", id="no receipt"),
        pytest.param(replace(returned(), parts=returned().parts * 2), "child_unavailable", id="two receipts"),
        pytest.param(ChildFailed("busy", "later"), "busy", id="a refusal"),
        pytest.param(OSError("the replica is lost"), "child_unavailable", id="no answer"),
    ],
)
def test_an_answer_that_does_not_add_up_is_none(answer: Any, code: str) -> None:
    async def run() -> None:
        async def caller(name: str, call: ChildCall) -> Any:
            if isinstance(answer, Exception):
                raise answer
            return answer

        with composition(caller) as opened:
            with pytest.raises(ChildFailed) as failed:
                await asyncio.to_thread(opened.ask, "halver", {})
            assert failed.value.code == code
        assert opened.parts == ()

    asyncio.run(run())


def test_a_thread_that_outlives_its_call_asks_for_nothing() -> None:
    async def run() -> None:
        calls, go = [], asyncio.Event()

        async def caller(name: str, call: ChildCall) -> Any:
            calls.append(name)
            await go.wait()
            return returned()

        with composition(caller) as opened:
            late = asyncio.create_task(asyncio.to_thread(opened.ask, "halver", {}))
            while not calls:
                await asyncio.sleep(0.01)
        go.set()
        with pytest.raises(ChildFailed, match="has ended"):
            await late
        with pytest.raises(ChildFailed, match="time of the call"):
            await asyncio.to_thread(opened.ask, "halver", {})
        assert len(calls) == 1 and opened.parts == ()

    asyncio.run(run())


def test_outside_a_call_nothing_is_asked() -> None:
    with pytest.raises(ChildFailed) as failed:
        Asker().call("halver", X=np.ones((1, 2), "f4"))
    assert failed.value.code == "outside_call"


def test_in_an_authors_test_the_installed_one_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "load", lambda name: {"halver": Halver()}[name])
    local_calls.loaded.cache_clear()
    with local_calls.installed():
        assert Asker().call("halver", X=np.full((1, 2), 4, "f4"))["H"].tolist() == [[2, 2]]
    local_calls.loaded.cache_clear()


def test_behind_the_dev_server_the_installed_one_answers_and_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "load", lambda name: {"halver": Halver()}[name])
    local_calls.loaded.cache_clear()

    async def run() -> None:
        async with replica(Asker(), children=call_installed) as bench:
            answer = await paid(bench, 2)
            assert answer.status_code == 200 and answer.json()["outputs"][0]["data"] == [5, 5]
            assert [(part.dapp, part.amount) for part in receipt(bench, answer).parts] == [("halver", 0)]

    asyncio.run(run())
    local_calls.loaded.cache_clear()


def dapp_of(*calls: str, price: Price | None = None) -> DApp:
    kind = type("Made", (Asker,), {"calls": calls, "price": price or Price(1)})
    return kind()  # type: ignore[no-any-return]


def test_who_is_asked_starts_first_and_what_cannot_be_is_left_out() -> None:
    order, refused = start_order({"a": dapp_of("b", "c"), "b": dapp_of("c"), "c": dapp_of(), "d": dapp_of()})
    assert order == ["c", "d", "b", "a"] and not refused
    order, refused = start_order({"a": dapp_of("b"), "b": dapp_of("gone"), "c": dapp_of()})
    assert order == ["c"] and refused == {
        n: f"it calls {m}, which is not served" for n, m in [("a", "b"), ("b", "gone")]
    }
    order, refused = start_order({"a": dapp_of("b"), "b": dapp_of("a"), "c": dapp_of("c"), "d": dapp_of()})
    assert order == ["d"] and all("itself" in why for why in refused.values())
    chain = {f"n{place}": dapp_of(f"n{place + 1}") for place in range(5)} | {"n5": dapp_of()}
    order, refused = start_order(chain)
    assert order == ["n5", "n4", "n3", "n2", "n1"] and "4 deep" in refused["n0"]
    timed = dapp_of("b", price=Price(per_gpu_second=1, maximum=5))
    assert "priced by item" in start_order({"a": timed, "b": dapp_of()})[1]["a"]


class Waiting(Asker):
    """Runs until it is released."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.began: queue.SimpleQueue[float] = queue.SimpleQueue()

    def forward(self, **tensors: Any) -> dict[str, Any]:
        self.began.put(float(tensors["X"][0, 0]))
        if tensors["X"][0, 0] >= 0:
            self.go.wait(60)
        return {"Y": tensors["X"]}


def submission(payer: str = "", value: float = 0, timeout_s: float = 60.0) -> Submission:
    return Submission({"X": np.full((1, 2), value, "f4")}, payer, timeout_s)


def test_a_full_queue_refuses_and_no_payer_fills_it_alone() -> None:
    async def run() -> None:
        dapp = Waiting()
        executor = UnbatchedExecutor(dapp, slots=1)
        await executor.start()
        calls = [asyncio.create_task(executor.submit(submission("flood"))) for _ in range(MAX_CALLS // 2)]
        await asyncio.to_thread(dapp.began.get)
        with pytest.raises(CallError, match="full"):
            await executor.submit(submission("flood"))
        with pytest.raises(CallError, match="not answered"):
            await executor.submit(submission("other", timeout_s=0))
        dapp.go.set()
        await asyncio.gather(*calls)
        assert executor.waiting == 0
        await executor.close()

    asyncio.run(run())


def test_a_slot_lasts_as_long_as_its_thread_though_its_caller_has_gone() -> None:
    async def run() -> None:
        dapp, slots = Waiting(), 3
        executor = UnbatchedExecutor(dapp, slots=slots)
        await executor.start()
        gone = [asyncio.create_task(executor.submit(submission("gone", number))) for number in range(slots)]
        for _ in gone:
            await asyncio.to_thread(dapp.began.get)
        for call in gone:
            call.cancel()
        await asyncio.gather(*gone, return_exceptions=True)
        assert executor.waiting == slots, "the payer who hung up still has its places"
        with pytest.raises(CallError) as late:
            await executor.submit(submission("next", -1, timeout_s=0.05))
        assert late.value.code == "deadline" and dapp.began.empty(), "no thread was free, so the call did not begin"
        following = asyncio.create_task(executor.submit(submission("next", -2)))
        await asyncio.sleep(0)
        assert dapp.began.empty() and not following.done()
        dapp.go.set()
        assert (await following).outputs["Y"][0, 0] == -2 and dapp.began.get_nowait() == -2
        while executor.waiting:
            await asyncio.sleep(0)
        await executor.close()

    asyncio.run(run())
