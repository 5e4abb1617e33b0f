"""A running mesh from outside: load, bad input, stock clients, and what it remembers after a stop and a kill."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import redis

from channels.ledger.sql_ledger import SqlLedger
from channels.payer import ChannelAuth, Wallet, receipt
from channels.protocol.signer import Signer
from channels.protocol.x402 import Payment, decode_header
from channels.redis_store import keys
from dapps.packages import registry
from serving.config.settings import Settings
from tests.conftest import LEBEN, RunningMesh

CHDR, STROKEDR = "/v2/models/chdr/diagnose", "/v2/models/strokedr/diagnose"


def calls(
    mesh: RunningMesh, auth: ChannelAuth, bodies: list[tuple[str, bytes]], parallel: int = 1
) -> list[httpx.Response]:
    async def run() -> list[httpx.Response]:
        gate = asyncio.Semaphore(parallel)
        async with httpx.AsyncClient(base_url=mesh.url, auth=auth, timeout=120) as client:

            async def post(path: str, body: bytes) -> httpx.Response:
                async with gate:
                    return await client.post(path, content=body)

            return list(await asyncio.gather(*(post(path, body) for path, body in bodies)))

    return asyncio.run(run())


def samples() -> dict[str, bytes]:
    return {CHDR: registry.load("chdr").sample().data, STROKEDR: registry.load("strokedr").sample().data}


def test_two_hundred_calls_32_in_flight_on_one_channel_add_up_everywhere(mesh: RunningMesh) -> None:
    wallet = mesh.payer()
    auth = ChannelAuth(wallet)
    answers = calls(mesh, auth, list(samples().items()) * 100, parallel=32)
    assert {answer.status_code for answer in answers} == {200}
    receipts = [receipt(answer).receipt for answer in answers]
    total = sum(row.amount for row in receipts)
    assert len({row.call_id for row in receipts}) == 200
    assert sorted(row.seq for row in receipts) == list(range(1, 201))
    (channel,) = auth.channels.values()
    before = json.loads(mesh.leben("settle", "--json"))
    state = mesh.channel(wallet, auth)
    assert int(state["charged"]) == int(state["claimed"]) == channel.charged == total
    assert sum(int(row["amount"]) for row in before["payouts"]) == int(before["claimed"]) >= total
    mesh.leben("ledger", "verify")


ADMISSION = {"hours_since_last_known_well": 2, "disabling_deficit": True, "haemorrhage": True, "glucose_mg_dl": 110}


def test_a_record_alone_is_answered_for_less_and_its_guideline_is_paid(mesh: RunningMesh) -> None:
    auth = ChannelAuth(mesh.payer())
    wrong = ADMISSION | {"inr": 500}
    bodies = [(STROKEDR, json.dumps({"record": record}).encode()) for record in (ADMISSION, wrong)]
    answered, refused = calls(mesh, auth, bodies)
    assert answered.status_code == 200, answered.text
    decision = answered.json()["decision"]
    assert decision["recommended"] == "withhold_ivt"
    bought = receipt(answered).receipt
    assert bought.amount == registry.load("strokedr").price.guideline_only < registry.load("strokedr").price.of(1)
    assert bought.version.endswith(
        f"+stroke-ivt-2026.{decision['guideline']['version']}.{decision['guideline']['digest']}"
    )
    assert {share.carrier for share in bought.shares} == {"guideline", "compute", "operator"}
    assert refused.status_code == 422 and refused.json()["error"].startswith("inr: ")
    assert sum(channel.charged for channel in auth.channels.values()) == bought.amount


EMPTY_WAV = b"RIFF\x24\0\0\0WAVEfmt \x10\0\0\0\1\0\1\0\xa0\x0f\0\0\x40\x1f\0\0\2\0\x10\0data\0\0\0\0"
UNKNOWN_TENSOR = b'{"inputs": [{"name": "X", "datatype": "FP32", "shape": [1], "data": [1]}]}'
BAD = [
    pytest.param(STROKEDR, b"This is a text file.", 422, id="text file named .dcm"),
    pytest.param(CHDR, EMPTY_WAV, 422, id="empty WAV"),
    pytest.param(CHDR, b"", 400, id="nothing"),
    pytest.param("/v2/models/chdr/infer", b"{", 400, id="malformed JSON"),
    pytest.param("/v2/models/chdr/infer", UNKNOWN_TENSOR, 400, id="unknown tensor"),
    pytest.param("/v2/models/strokedr/versions/99/infer", b"{}", 404, id="unknown version"),
]


def test_bad_input_is_refused_and_free(mesh: RunningMesh) -> None:
    auth = ChannelAuth(mesh.payer())
    (good,) = calls(mesh, auth, [(CHDR, samples()[CHDR])])
    price = receipt(good).receipt.amount
    for case in BAD:
        path, body, status = case.values
        (answer,) = calls(mesh, auth, [(path, body)])
        assert answer.status_code == status, (case.id, answer.text)
        assert answer.json()["error"] and "text file" not in answer.json()["error"]
    (channel,) = auth.channels.values()
    assert channel.charged == price and not channel.outstanding


def test_unknown_models_and_routes_are_404_in_json(mesh: RunningMesh) -> None:
    for path in ("/v2/models/nobody", "/v2/models/nobody/infer", "/v2/models/chdr/nothing", "/nothing"):
        answer = httpx.get(mesh.url + path)
        assert answer.status_code == 404 and answer.json()["error"]
    assert "Request for unknown model" in httpx.post(f"{mesh.url}/v2/models/nobody/infer").json()["error"]


def test_a_body_of_200_mb_is_read_to_its_end_and_refused(mesh: RunningMesh) -> None:
    def body() -> Any:
        for _ in range(200):
            yield b"\0" * (1 << 20)

    answer = httpx.post(f"{mesh.url}{STROKEDR}", content=body(), timeout=120)
    assert answer.status_code == 413 and answer.json()["code"] == "body_too_large"


def test_foreign_short_and_altered_vouchers_buy_nothing(mesh: RunningMesh) -> None:
    wallet = mesh.payer()
    auth = ChannelAuth(wallet)
    (good,) = calls(mesh, auth, [(CHDR, samples()[CHDR])])
    header = good.request.headers["PAYMENT-SIGNATURE"]
    honest = Payment.from_header(header)
    thief = Signer.generate()

    def send(payment: Payment) -> httpx.Response:
        headers = {"PAYMENT-SIGNATURE": payment.to_header(), "Idempotency-Key": f"attack-{time.monotonic_ns()}"}
        return httpx.post(f"{mesh.url}{CHDR}", content=samples()[CHDR], headers=headers, timeout=60)

    from dataclasses import replace

    from channels.protocol.digests import voucher_digest

    chain = int(honest.accepted["network"].removeprefix("eip155:"))

    def resigned(signer: Signer, maximum: int) -> Payment:
        digest = voucher_digest(chain, honest.voucher.channel_id, maximum)
        voucher = replace(honest.voucher, max_claimable=maximum, signature=signer.sign(digest))
        return replace(honest, kind="voucher", voucher=voucher, deposit=None)

    cases = {
        "voucher_signature": resigned(thief, honest.voucher.max_claimable * 2),
        "cumulative_amount_mismatch": resigned(wallet.signer, honest.voucher.max_claimable - 1),
        "cumulative_exceeds_balance": resigned(wallet.signer, 2**60),
        "channel_id_mismatch": replace(honest, config=replace(honest.config, salt="0x" + "11" * 32)),
        "receiver_mismatch": replace(honest, config=replace(honest.config, receiver=thief.address)),
        "requirements_mismatch": replace(honest, accepted=honest.accepted | {"amount": "1"}),
    }
    for code, payment in cases.items():
        answer = send(payment)
        assert answer.status_code == 402, (code, answer.text)
        assert answer.json()["code"].endswith(code), answer.text
        assert decode_header(answer.headers["payment-required"])["accepts"]
    assert int(mesh.channel(wallet, auth)["charged"]) == receipt(good).receipt.amount


def test_a_client_without_an_event_loop_pays_from_many_threads(mesh: RunningMesh) -> None:
    auth = ChannelAuth(mesh.payer())
    with httpx.Client(base_url=mesh.url, auth=auth, timeout=120) as client, ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda path: client.post(path, content=samples()[path]), [CHDR, STROKEDR] * 20))
    assert {answer.status_code for answer in answers} == {200}
    assert sorted(receipt(answer).receipt.seq for answer in answers) == list(range(1, 41))
    (channel,) = auth.channels.values()
    assert channel.charged == sum(receipt(answer).receipt.amount for answer in answers) and not channel.outstanding


def test_unspent_money_comes_back_in_part_and_whole_and_the_client_goes_on(mesh: RunningMesh) -> None:
    wallet = mesh.payer(funds=1_000_000)
    auth = ChannelAuth(wallet)
    (first,) = calls(mesh, auth, [(CHDR, samples()[CHDR])])
    price = receipt(first).receipt.amount

    async def refund(amount: int | None) -> int:
        async with httpx.AsyncClient(base_url=mesh.url, timeout=60) as client:
            return await auth.refund(client, CHDR, amount)

    def held() -> int:
        return int(mesh.leben("wallet", "show", wallet.address))

    in_channel = 1_000_000 - held()
    assert asyncio.run(refund(1_000)) == 1_000 and held() == 1_000_000 - in_channel + 1_000
    (second,) = calls(mesh, auth, [(CHDR, samples()[CHDR])])
    assert receipt(second).receipt.before == price
    assert asyncio.run(refund(None)) == in_channel - 1_000 - 2 * price
    assert held() == 1_000_000 - 2 * price
    (third,) = calls(mesh, auth, [(CHDR, samples()[CHDR])])
    assert receipt(third).receipt.seq == 1, "a fresh channel: a drained salt is not used again"
    mesh.leben("settle")
    mesh.leben("ledger", "verify")


def test_the_stock_triton_client_reads_and_is_refused_in_words_it_understands(mesh: RunningMesh) -> None:
    from tritonclient.http import InferenceServerClient, InferInput
    from tritonclient.utils import InferenceServerException

    client = InferenceServerClient(f"127.0.0.1:{mesh.port}")
    try:
        assert client.is_server_live() and client.is_server_ready()
        assert client.is_model_ready("chdr") and not client.is_model_ready("nobody")
        facts = client.get_model_metadata("strokedr")
        assert facts["inputs"][0]["shape"][0] == -1
        shape = [4, *facts["inputs"][0]["shape"][1:]]
        tensor = InferInput(facts["inputs"][0]["name"], shape, facts["inputs"][0]["datatype"])
        tensor.set_data_from_numpy(np.zeros(shape, dtype=np.uint8))
        with pytest.raises(InferenceServerException, match="payment required"):
            client.infer("strokedr", [tensor])
    finally:
        client.close()


def test_the_stock_triton_client_pays_with_a_header(mesh: RunningMesh) -> None:
    from tritonclient.http import InferenceServerClient, InferInput

    wallet = mesh.payer()
    auth = ChannelAuth(wallet)
    dapp = registry.load("strokedr")
    name, array = next(iter(dapp.example().items()))
    quote = httpx.get(f"{mesh.url}/v2/models/strokedr/infer")
    flow = auth.async_auth_flow(httpx.Request("POST", f"{mesh.url}/v2/models/strokedr/infer"))

    async def signed() -> dict[str, str]:
        await anext(flow)
        return dict((await flow.asend(quote)).headers)

    headers = {k: v for k, v in asyncio.run(signed()).items() if k in ("payment-signature", "idempotency-key")}
    client = InferenceServerClient(f"127.0.0.1:{mesh.port}")
    try:
        tensor = InferInput(name, list(array.shape), dapp.inputs[0].datatype)
        tensor.set_data_from_numpy(array)
        answer = client.infer("strokedr", [tensor], headers=headers).as_numpy(dapp.outputs[0].name)
    finally:
        client.close()
    assert answer.shape[0] == 1 and np.isfinite(answer).all()


def test_a_replica_killed_in_mid_call_costs_nothing_and_the_next_call_works(mesh: RunningMesh) -> None:
    wallet = mesh.payer()
    auth = ChannelAuth(wallet)
    (first,) = calls(mesh, auth, [(STROKEDR, samples()[STROKEDR])])
    (channel,) = auth.channels.values()
    settings = Settings(data=mesh.data, port=mesh.port)
    dapp = registry.load("strokedr")
    tensors = {n: np.repeat(a, dapp.price.maximum_items, axis=0) for n, a in dapp.example().items()}
    rows = []
    for tensor in dapp.inputs:
        array = tensors[tensor.name]
        row = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(array.shape)}
        rows.append(row | {"data": array.ravel().tolist()})
    body = json.dumps({"inputs": rows}).encode()

    async def killed() -> httpx.Response | Exception:
        async with httpx.AsyncClient(base_url=mesh.url, auth=auth, timeout=60) as client:
            task = asyncio.create_task(client.post("/v2/models/strokedr/infer", content=body))
            with redis.Redis.from_url(settings.redis_url()) as store:
                while int(store.hget(keys.channel(channel.id), "held") or 0) == 0 and not task.done():
                    await asyncio.sleep(0.002)
            for process in psutil.process_iter(["cmdline"]):
                ours = any("ServeReplica:strokedr" in word for word in process.info["cmdline"] or [])
                if ours and str(settings.runtime) in str(process.environ()):
                    process.kill()
            return (await asyncio.gather(task, return_exceptions=True))[0]

    outcome = asyncio.run(killed())
    assert isinstance(outcome, Exception) or (outcome.status_code >= 500 and outcome.json()["code"]), outcome
    deadline = time.monotonic() + 180
    while True:
        (answer,) = calls(mesh, auth, [(STROKEDR, samples()[STROKEDR])])
        if answer.status_code == 200 or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    assert answer.status_code == 200, answer.text
    state = mesh.channel(wallet, auth)
    assert int(state["charged"]) == receipt(first).receipt.amount + receipt(answer).receipt.amount
    assert state["receipts"] == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
def test_everything_is_there_after_a_restart(mesh: RunningMesh, number: int) -> None:
    wallet = mesh.payer()
    auth = ChannelAuth(wallet)
    before = calls(mesh, auth, [(CHDR, samples()[CHDR])] * 8, parallel=4)
    mesh.stop(number)
    mesh.start()
    state = mesh.channel(wallet, auth)
    total = sum(receipt(answer).receipt.amount for answer in before)
    assert (int(state["charged"]), state["receipts"]) == (total, 8)
    for answer in before:
        signed = receipt(answer)
        url = f"{mesh.url}/v1/receipts/{signed.receipt.call_id}"
        (channel,) = auth.channels.values()
        stored = httpx.get(url, headers=wallet.read_headers(url, channel.chain_id, channel.mesh), timeout=30)
        assert stored.json() == stored.json() | signed.to_json(), "the very receipt that came with the answer"
    again = before[0].request
    repeated = httpx.post(again.url, content=again.content, headers=again.headers, timeout=60)
    assert repeated.content == before[0].content, "a charged key gives its stored answer, also after a restart"
    (more,) = calls(mesh, auth, [(CHDR, samples()[CHDR])])
    assert receipt(more).receipt.before == total and receipt(more).receipt.seq == 9


def test_a_data_folder_belongs_to_one_mesh(mesh: RunningMesh) -> None:
    second = [LEBEN, "up", "--data", str(mesh.data), "--port", str(mesh.port + 200)]
    done = subprocess.run(second, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "another mesh runs on" in done.stderr and "Traceback" not in done.stderr


def test_example_writes_what_diagnose_takes(mesh: RunningMesh, tmp_path: Path) -> None:
    auth = ChannelAuth(mesh.payer())
    for name in ("chdr", "strokedr"):
        file = tmp_path / f"{name}.json"
        subprocess.run(
            [LEBEN, "dapp", "example", name, "--out", str(file)], check=True, timeout=60, capture_output=True
        )
        (answer,) = calls(mesh, auth, [(f"/v2/models/{name}/diagnose", file.read_bytes())])
        assert answer.status_code == 200, answer.text


def test_funding_is_seen_by_a_running_mesh_and_bad_addresses_are_refused(mesh: RunningMesh) -> None:
    wallet = Wallet(Signer.generate())
    mesh.leben("wallet", "fund", wallet.address, "1234")
    assert mesh.leben("wallet", "show", wallet.address).strip() == "1234"
    for bad in ("0x12", wallet.address[:-1] + ("0" if wallet.address[-1] != "0" else "1")):
        done = subprocess.run(
            [LEBEN, "wallet", "fund", bad, "5", "--data", str(mesh.data)], capture_output=True, text=True
        )
        assert done.returncode == 1 and "Traceback" not in done.stderr
    ledger = SqlLedger.open(Settings(data=mesh.data).sql_url())
    try:
        ledger.verify()
    finally:
        ledger.close()
