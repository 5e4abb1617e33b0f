"""Checks one replica over HTTP: a paid call is answered, charged and receipted, and any other is refused in JSON."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from channels.payer import ChannelAuth, DishonestServer, Wallet, receipt
from channels.protocol.signer import Signer
from channels.protocol.x402 import decode_header

On = Callable[[Any], None]
GOOD = {"inputs": [{"name": "X", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}


def test_a_paid_call_is_answered_charged_and_receipted(on_replica: On, wallet: Wallet) -> None:
    async def scenario(bench: Any) -> None:
        async with bench.client(wallet) as client:
            answer = await client.post("/infer", json=GOOD)
        assert answer.status_code == 200, answer.text
        assert answer.json()["outputs"][0]["data"] == [2.0, 4.0]
        signed = receipt(answer)
        assert signed.verify(31337, bench.mesh.address)
        assert (signed.receipt.amount, signed.receipt.after, signed.receipt.units) == (100, 100, 1)
        paid = decode_header(answer.headers["payment-response"])
        assert (paid["success"], paid["extra"]["chargedAmount"], paid["amount"]) == (True, "100", "4000")
        assert (bench.charged(), bench.held(), len(bench.deposits)) == (100, 0, 1)

    on_replica(scenario)


def test_many_calls_in_flight_take_one_deposit_and_one_round_trip_each(on_replica: On, wallet: Wallet) -> None:
    async def scenario(bench: Any) -> None:
        wallet.budget.deposit = 40_000
        async with bench.client(wallet) as client:
            first = await client.post("/infer", json=GOOD)
            answers = await asyncio.gather(*(client.post("/infer", json=GOOD) for _ in range(50)))
        assert {answer.status_code for answer in answers} == {200}
        assert all("payment-required" not in answer.headers for answer in answers)
        afters = sorted(receipt(answer).receipt.after for answer in [first, *answers])
        assert afters == [100 * (i + 1) for i in range(51)]
        assert len(bench.deposits) == 1 and bench.charged() == 5_100

    on_replica(scenario)


def test_without_a_voucher_the_quote_comes_and_nothing_runs(on_replica: On) -> None:
    async def scenario(bench: Any) -> None:
        before = list(bench.dapp.batches)
        async with bench.client() as client:
            for answer in (
                await client.post("/infer", json=GOOD),
                await client.post("/diagnose", content=b"x" * 90_000),
                await client.get("/infer"),
                await client.get("/versions/1.0.0/diagnose"),
            ):
                assert answer.status_code == 402
                offer = decode_header(answer.headers["payment-required"])
                assert offer["accepts"][0]["amount"] == "400" and offer["accepts"][0]["network"] == "eip155:31337"
                assert answer.json()["code"] == "payment_required"
        assert bench.dapp.batches == before

    on_replica(scenario)


def changed(what: dict[str, Any]) -> bytes:
    return json.dumps({"inputs": [GOOD["inputs"][0] | what]}).encode()


BAD = [
    pytest.param(b"{", None, 400, id="broken JSON"),
    pytest.param(b"[]", None, 400, id="not an object"),
    pytest.param(b"{}", None, 400, id="no inputs"),
    pytest.param(json.dumps({"inputs": []}).encode(), None, 400, id="empty inputs"),
    pytest.param(changed({"shape": [1, 3]}), None, 400, id="shape"),
    pytest.param(changed({"datatype": "INT32"}), None, 400, id="dtype"),
    pytest.param(changed({"data": [1]}), None, 400, id="too few"),
    pytest.param(changed({"data": ["a", "b"]}), None, 400, id="text"),
    pytest.param(changed({"data": [None, 1]}), None, 400, id="null"),
    pytest.param(changed({"data": [[1], [2, 3]]}), None, 400, id="ragged"),
    pytest.param(changed({"data": [1e300, 1]}), None, 400, id="overflow"),
    pytest.param(changed({"name": "Z"}), None, 400, id="unknown input"),
    pytest.param(json.dumps({"inputs": GOOD["inputs"] * 2}).encode(), None, 400, id="input twice"),
    pytest.param(changed({"shape": [5, 2], "data": [0] * 10}), None, 400, id="too many"),
    pytest.param(json.dumps(GOOD | {"outputs": [{"name": "Q"}]}).encode(), None, 400, id="unknown output"),
    pytest.param(b"{}", "99999999999999999999", 400, id="header length past the body"),
    pytest.param(b"{}", "-1", 400, id="negative header length"),
    pytest.param(b"x" * 150_000, None, 413, id="too large"),
    pytest.param(b"[" * 50_000, None, 400, id="deep JSON"),
]


@pytest.mark.parametrize(("body", "length", "status"), BAD)
def test_bad_input_is_refused_by_name_and_costs_nothing(
    on_replica: On, wallet: Wallet, body: bytes, length: str | None, status: int
) -> None:
    async def scenario(bench: Any) -> None:
        headers = {"Inference-Header-Content-Length": length} if length else {}
        async with bench.client(wallet) as client:
            answer = await client.post("/infer", content=body, headers=headers)
            assert answer.status_code == status, answer.text
            assert answer.json()["error"] and "13" not in answer.json()["error"]
            assert (bench.charged(), bench.held()) == (0, 0)
            good = await client.post("/infer", json=GOOD)
        assert good.status_code == 200 and len(bench.deposits) <= 1 and bench.charged() == 100

    on_replica(scenario)


def test_a_model_that_fails_costs_nothing_and_says_nothing_of_the_input(on_replica: On, wallet: Wallet) -> None:
    async def scenario(bench: Any) -> None:
        async with bench.client(wallet) as client:
            bad = await client.post("/diagnose", content=b"13")
            assert bad.status_code == 500 and bad.json()["code"] == "internal" and "13" not in bad.text
            # The deposit that came with it was settled, so the answer says so: else a client would deposit again.
            assert decode_header(bad.headers["payment-response"])["extra"]["chargedAmount"] == "0"
            good = await client.post("/diagnose", content=b"21")
        assert good.json()["findings"][0]["probability"] == 42.0
        assert (bench.charged(), bench.held(), len(bench.deposits)) == (100, 0, 1)

    on_replica(scenario)


def test_one_bad_item_fails_alone_in_its_batch(on_replica: On, wallet: Wallet) -> None:
    async def scenario(bench: Any) -> None:
        wallet.budget.deposit = 40_000
        async with bench.client(wallet) as client:
            await client.post("/diagnose", content=b"1")
            numbers = [1, 2, 13, 3, 4, 13, 5, 6]
            answers = await asyncio.gather(*(client.post("/diagnose", content=str(n).encode()) for n in numbers))
        for number, answer in zip(numbers, answers, strict=True):
            if number == 13:
                assert answer.status_code == 500
            else:
                assert answer.json()["findings"][0]["probability"] == 2.0 * number
        assert bench.charged() == 700 and bench.held() == 0

    on_replica(scenario)


@pytest.mark.parametrize("wrapping", ["raw", "json", "multipart"])
def test_a_clinical_file_may_come_in_three_wrappings(on_replica: On, wallet: Wallet, wrapping: str) -> None:
    bodies: dict[str, dict[str, Any]] = {
        "raw": {"content": b"21"},
        "json": {"json": {"file": base64.b64encode(b"21").decode()}},
        "multipart": {"files": {"file": ("a.txt", b"21")}},
    }

    async def scenario(bench: Any) -> None:
        async with bench.client(wallet) as client:
            answer = await client.post("/diagnose", **bodies[wrapping])
        assert answer.status_code == 200, answer.text
        assert answer.json()["notice"].startswith("Research use only")
        assert answer.json()["model"]["digest"] == bench.dapp.digest

    on_replica(scenario)


def test_an_intake_refusal_is_422_and_free(on_replica: On, wallet: Wallet) -> None:
    async def scenario(bench: Any) -> None:
        async with bench.client(wallet) as client:
            answer = await client.post("/diagnose", content=b"Jane Doe")
        assert (answer.status_code, answer.json()["code"]) == (422, "unreadable")
        assert "Jane" not in answer.text and bench.charged() == 0

    on_replica(scenario)


def test_a_repeated_key_gets_the_same_answer_and_pays_once(on_replica: On, wallet: Wallet) -> None:
    async def scenario(bench: Any) -> None:
        async with bench.client(wallet) as client:
            headers = {"Idempotency-Key": "patient 7"}
            refused = await client.post("/infer", json=GOOD, headers=headers)
            assert refused.status_code == 400 and refused.json()["code"] == "invalid_key"
            headers = {"Idempotency-Key": "call-7"}
            first = await client.post("/infer", json=GOOD, headers=headers)
            again = await client.post("/infer", json=GOOD, headers=headers)
            assert again.content == first.content
            assert again.headers["leben-receipt"] == first.headers["leben-receipt"]
            other = await client.post("/infer", json=GOOD | {"id": "x"}, headers=headers)
            assert (other.status_code, other.json()["code"]) == (409, "other_request")
        assert bench.charged() == 100
        assert not any("call-7" in str(account.charged) for account in bench.store.accounts.values())

    on_replica(scenario)


def test_binary_tensors_both_ways_and_truncated_ones_refused(on_replica: On, wallet: Wallet) -> None:
    array = np.array([[1, 2], [3, 4]], dtype="<f4")
    row = {"name": "X", "datatype": "FP32", "shape": [2, 2], "parameters": {"binary_data_size": 16}}
    head = json.dumps({"inputs": [row], "parameters": {"binary_data_output": True}}).encode()

    async def scenario(bench: Any) -> None:
        async with bench.client(wallet) as client:
            headers = {"Inference-Header-Content-Length": str(len(head))}
            answer = await client.post("/infer", content=head + array.tobytes(), headers=headers)
            cut = int(answer.headers["inference-header-content-length"])
            assert json.loads(answer.content[:cut])["outputs"][0]["parameters"]["binary_data_size"] == 16
            assert np.array_equal(np.frombuffer(answer.content[cut:], "<f4").reshape(2, 2), array * 2)
            short = await client.post("/infer", content=head + array.tobytes()[:-1], headers=headers)
            assert short.status_code == 400 and short.json()["code"] == "invalid_tensor"
            long = await client.post("/infer", content=head + array.tobytes() + b"x", headers=headers)
            assert long.status_code == 400
        assert bench.charged() == 200

    on_replica(scenario)


def test_payment_headers_that_are_not_payments(on_replica: On) -> None:
    async def scenario(bench: Any) -> None:
        async with bench.client() as client:
            for header in (
                "",
                "%%%",
                "bm90IGpzb24=",
                "e30=",
                "W10=",
                "A" * 9_000,
                base64.b64encode(b"[" * 4_000).decode(),
            ):
                answer = await client.post("/infer", json=GOOD, headers={"PAYMENT-SIGNATURE": header})
                assert answer.status_code == 402 and answer.json()["error"] and answer.headers["payment-required"]
        assert not bench.deposits

    on_replica(scenario)


def test_a_refused_deposit_settles_nothing(on_replica: On, wallet: Wallet) -> None:
    async def scenario(bench: Any) -> None:
        bench.refuse_deposits = True
        async with bench.client(wallet) as client:
            answer = await client.post("/infer", json=GOOD)
            assert answer.status_code == 402 and "insufficient_balance" in answer.json()["code"]
            bench.refuse_deposits = False
            assert (await client.post("/infer", json=GOOD)).status_code == 200
        assert len(bench.deposits) == 1

    on_replica(scenario)


def test_a_client_that_lost_its_sums_is_corrected_and_believes_only_its_own_signature(
    on_replica: On, wallet: Wallet
) -> None:
    async def scenario(bench: Any) -> None:
        async with bench.client(wallet) as client:
            for _ in range(3):
                await client.post("/infer", json=GOOD)
            auth = client.auth
            assert isinstance(auth, ChannelAuth)
            channel = next(iter(auth.channels.values()))
            channel.charged = -250
            assert (await client.post("/infer", json=GOOD)).status_code == 200
            channel.charged = -250
            auth.wallet = Wallet(type(wallet.signer).generate())
            with pytest.raises(DishonestServer):
                state = {"channelId": channel.id, "chargedCumulativeAmount": "300"}
                proof = {"signedMaxClaimable": "400", "signature": "0x" + "11" * 65}
                channel.correct({"extra": {"channelState": state, "voucherState": proof}}, auth.wallet.signer)
        assert bench.charged() == 400

    on_replica(scenario)


def test_a_long_string_among_numbers_takes_no_memory(on_replica: On, wallet: Wallet) -> None:
    data = ["x" * 20_000] + [0] * 20_000

    async def scenario(bench: Any) -> None:
        async with bench.client(wallet) as client:
            answer = await client.post("/infer", content=changed({"shape": [1, 2], "data": data}))
        assert answer.status_code == 400 and answer.json()["code"] == "invalid_tensor"

    on_replica(scenario)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused_before_the_model_runs(on_replica: On, wallet: Wallet, value: float) -> None:
    row = {"name": "X", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}}
    head = json.dumps({"inputs": [row]}).encode()

    async def scenario(bench: Any) -> None:
        before = len(bench.dapp.batches)
        async with bench.client(wallet) as client:
            body = head + np.array([1, value], "<f4").tobytes()
            answer = await client.post(
                "/infer", content=body, headers={"Inference-Header-Content-Length": str(len(head))}
            )
        assert answer.status_code == 400 and len(bench.dapp.batches) == before

    on_replica(scenario)


def test_a_keyed_call_whose_client_hangs_up_is_finished_charged_and_waits_under_its_key(
    on_replica: On, wallet: Wallet
) -> None:
    async def scenario(bench: Any) -> None:
        async with bench.client(wallet) as client:
            await client.post("/diagnose", content=b"1")
            headers = {"Idempotency-Key": "gone"}
            task = asyncio.create_task(client.post("/diagnose", content=b"21", headers=headers))
            while not bench.held() and not task.done():
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            answer = await client.post("/diagnose", content=b"21", headers=headers)
        assert answer.status_code == 200 and answer.json()["findings"][0]["probability"] == 42.0
        assert bench.charged() == 200 and bench.held() == 0

    on_replica(scenario)


def test_bodies_together_are_bounded(on_replica: On, wallet: Wallet) -> None:
    async def scenario(bench: Any) -> None:
        wallet.budget.deposit = 1_000_000
        release = asyncio.Event()

        async def slowly() -> Any:
            yield b"1" * 90_000
            await release.wait()

        async with bench.client(wallet) as client:
            assert (await client.post("/diagnose", content=b"1")).status_code == 200
            header = {"PAYMENT-SIGNATURE": "", "Idempotency-Key": ""}
            auth = client.auth
            assert isinstance(auth, ChannelAuth)
            (channel,) = auth.channels.values()
            (quote,) = auth.quotes.values()
            header["PAYMENT-SIGNATURE"] = auth.payment_header(channel, quote)

            def send(number: int, content: Any) -> asyncio.Task[Any]:
                headers = {**header, "Idempotency-Key": f"k{number}"}
                return asyncio.create_task(client.post("/diagnose", content=content, headers=headers, auth=None))

            held = [send(number, slowly()) for number in range(8)]
            while bench.door.bodies.kept_bytes < 8 * 90_000:
                await asyncio.sleep(0)
            late = await send(9, b"1" * 90_000)
            assert (late.status_code, late.json()["code"]) == (503, "busy")
            release.set()
            assert {answer.status_code for answer in await asyncio.gather(*held)} <= {402, 422, 500}
            assert bench.door.bodies.kept_bytes == 0

    on_replica(scenario)


def test_one_failure_that_reaches_two_callers_tells_each_of_its_own_deposit_alone(on_replica: On) -> None:
    async def scenario(bench: Any) -> None:
        failure = RuntimeError("the device is gone")

        async def broken(inputs: Any) -> Any:
            raise failure

        first, second = Wallet(Signer.generate()), Wallet(Signer.generate())
        async with bench.client(first) as client, bench.client(second) as other:
            assert (await other.post("/diagnose", content=b"1")).status_code == 200
            bench.runner.run = broken
            paid_in, paid_before = await asyncio.gather(
                client.post("/diagnose", content=b"2"), other.post("/diagnose", content=b"3")
            )
        assert (paid_in.status_code, paid_before.status_code) == (500, 500)
        payment = decode_header(paid_in.headers["payment-response"])
        assert (payment["payer"], payment["extra"]["chargedAmount"]) == (first.address, "0")
        assert "payment-response" not in paid_before.headers

    on_replica(scenario)
