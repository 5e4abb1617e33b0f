"""Two versions of a DApp side by side on a running mesh: the one that is asked for answers, at its own price."""

from __future__ import annotations

from typing import Any

import httpx
import numpy as np
import tritonclient.grpc

from channels.payer import ChannelAuth, TritonPayment, receipt
from tests.conftest import RunningMesh

BODY: dict[str, Any] = {"inputs": [{"name": "INPUT0", "datatype": "UINT8", "shape": [1, 3], "data": [1, 2, 3]}]}


def test_each_version_answers_at_its_own_price_and_one_is_the_default(simple: RunningMesh) -> None:
    base = f"{simple.url}/v2/models/simple_paid"
    receipts = {}
    with httpx.Client(auth=ChannelAuth(simple.payer()), timeout=60) as client:
        for place in ("", "/versions/1", "/versions/0.9"):
            answer = client.post(f"{base}{place}/infer", json=BODY)
            assert answer.status_code == 200, answer.text
            paid = receipt(answer).receipt
            receipts[place] = (
                answer.json()["outputs"][0]["data"],
                paid.amount,
                paid.dapp,
                paid.version,
                paid.model_digest,
            )
    assert receipts[""] == receipts["/versions/1"] and receipts[""][:4] == ([6], 100, "simple_paid", "1")
    assert receipts["/versions/0.9"][:4] == ([7], 40, "simple_paid", "0.9")
    assert receipts["/versions/0.9"][4] != receipts[""][4]
    assert httpx.get(f"{base}/versions/0.9").json()["versions"] == ["0.9"]
    unknown = httpx.post(f"{base}/versions/0.8/infer", json=BODY)
    assert (unknown.status_code, unknown.json()["code"]) == (404, "unknown_version")
    row = httpx.get(f"{simple.url}/v1/dapps/simple_paid").json()
    assert [(version["version"], version["default"], version["price"]["perItem"]) for version in row["versions"]] == [
        ("1", True, "100"),
        ("0.9", False, "40"),
    ]
    assert "/v2/models/simple_paid/versions/0.9" in httpx.get(f"{simple.url}/dapps/simple_paid").text


def test_a_stock_grpc_client_names_a_version(simple: RunningMesh) -> None:
    payment = TritonPayment(simple.payer())
    with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{simple.grpc_port}") as client:
        payment.attach(client)
        tensor = tritonclient.grpc.InferInput("INPUT0", [1, 3], "UINT8")
        tensor.set_data_from_numpy(np.array([[1, 2, 3]], "u1"))
        answers = [
            client.infer("simple_paid", [tensor], model_version=version).as_numpy("OUTPUT0").tolist()
            for version in ("", "1", "0.9")
        ]
        assert answers == [[[6]], [[6]], [[7]]]
        assert [signed.receipt.amount for signed in payment.receipts] == [100, 100, 40]
        assert client.is_model_ready("simple_paid", "0.9") and not client.is_model_ready("simple_paid", "0.8")
