"""Checks `diagnose`: every encoding of a case, every form of the report, and what a case costs."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import tempfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from channels.payer import Wallet, receipt
from dapps import Case, Coding, DApp, Finding, IntakeRefused, Prepared, Price, Report, Tensor
from dapps.api.types import Inputs
from dapps.chdr import CHDr, phantom
from dapps.strokedr import StrokeDr
from serving.errors import CallError
from serving.protocol.diagnose import read_case, report_json
from tests.dapps.drawn import RECORD, head_series, record, zipped
from tests.serving.conftest import replica


class Adder(DApp):
    """Adds up numbers, each doubled by the model; 13 fails, text is refused, no file at all is a record's business."""

    version = "1.0.0"
    inputs = (Tensor("X", "FP32", [1]),)
    outputs = (Tensor("Y", "FP32", [1]),)
    price = Price(100, maximum_items=4)
    maximum_batch = 4

    def load(self, device: str) -> None:
        self.seen: list[float] = []

    def forward(self, **tensors: Any) -> dict[str, Any]:
        self.seen += tensors["X"][:, 0].tolist()
        if (tensors["X"] == 13).any():
            raise ValueError("unlucky")
        return {"Y": 2 * tensors["X"]}

    def example(self) -> Inputs:
        return {"X": np.ones((1, 1), "f4")}

    def prepare(self, case: Case) -> Prepared:
        try:
            items = tuple({"X": np.array([[float(file.data)]], "f4")} for file in case.files)
        except ValueError:
            raise IntakeRefused("unreadable", "this is not a number") from None
        facts = {"parts": [file.part for file in case.files], "record": json.loads(case.record or b"null")}
        return Prepared(items, facts)

    def conclude(self, prepared: Prepared, outputs: Any) -> Report:
        total = float(sum(out["Y"][0, 0] for out in outputs))
        finding = Finding("sum", "the sum", None, unit="m", coding=Coding("http://loinc.org", "1-1"), value=total)
        summary = f"{prepared.facts['parts']} {prepared.facts['record']}"
        return Report(summary, (finding,), "Think.", patient_summary="It adds up.", traces={"doubled": (total,)})

    def picture(self, prepared: Prepared, outputs: Any, report: Report) -> bytes:
        return b"\x89PNG " + report.summary.encode()


Scenario = Callable[[Any, httpx.AsyncClient], Any]


def on_adder(wallet: Wallet, scenario: Scenario) -> None:
    async def whole() -> None:
        async with replica(Adder()) as bench:
            bench.dapp.seen.clear()
            async with bench.client(wallet) as client:
                await scenario(bench, client)

    asyncio.run(whole())


def b64(text: bytes) -> str:
    return base64.b64encode(text).decode()


WRAPPINGS = [
    pytest.param({"content": b"5"}, "[''] None", 10, id="raw"),
    pytest.param({"json": {"file": b64(b"5")}}, "[''] None", 10, id="json-one"),
    pytest.param(
        {"json": {"files": [{"data": b64(b"1"), "part": "MV"}, {"data": b64(b"2")}], "record": {"a": 1}}},
        "['MV', ''] {'a': 1}",
        6,
        id="json-several",
    ),
    pytest.param({"json": {"record": {"a": None}}}, "[] {'a': None}", 0, id="json-record"),
    pytest.param(
        {"files": [("MV", b"1"), ("PV", b"2"), ("PV", b"4")], "data": {"record": '{"a": 1}'}},
        "['MV', 'PV', 'PV'] {'a': 1}",
        14,
        id="multipart",
    ),
    pytest.param({"files": [("record", b"[2]"), ("x", b"1")]}, "['x'] [2]", 2, id="multipart-record-file"),
]


@pytest.mark.parametrize(("body", "summary", "total"), WRAPPINGS)
def test_a_case_comes_in_any_wrapping_and_each_item_is_paid(
    wallet: Wallet, body: dict[str, Any], summary: str, total: float
) -> None:
    async def scenario(bench: Any, client: httpx.AsyncClient) -> None:
        answer = await client.post("/diagnose", **body)
        assert answer.status_code == 200, answer.text
        report = answer.json()
        assert report["summary"] == summary and report["findings"][0]["value"] == total
        items = max(1, len(bench.dapp.seen))
        assert report["items"] == receipt(answer).receipt.units == items and bench.charged() == 100 * items
        assert report["intended_use"] == answer.headers["x-intended-use"] == "research"
        assert report["provenance"]["dapp_digest"] == bench.dapp.digest == report["model"]["digest"]
        assert len(report["provenance"]["intake_digest"]) == 64
        assert report["findings"][0]["coding"] == {"system": "http://loinc.org", "code": "1-1"}

    on_adder(wallet, scenario)


BAD = [
    pytest.param({"content": b""}, 400, id="nothing"),
    pytest.param({"json": {}}, 400, id="empty-object"),
    pytest.param({"json": {"file": "!"}}, 400, id="not-base64"),
    pytest.param({"json": {"file": b64(b"1"), "name": "x"}}, 400, id="unknown-member"),
    pytest.param({"json": {"file": b64(b"1"), "files": []}}, 400, id="file-and-files"),
    pytest.param({"json": {"files": b64(b"1")}}, 400, id="files-no-list"),
    pytest.param({"json": {"files": ["x"]}}, 400, id="file-no-object"),
    pytest.param({"content": b'{"record": ' + b"[" * 900 + b"]" * 900 + b"}"}, 400, id="nested-record"),
    pytest.param({"json": {"files": [{"data": 5}]}}, 400, id="data-no-text"),
    pytest.param({"json": {"files": [{"data": b64(b"1"), "part": 5}]}}, 400, id="part-no-text"),
    pytest.param({"json": {"files": [{"data": b64(b"1")}] * 65}}, 400, id="too-many-files"),
    pytest.param({"json": {"files": [{"data": b64(b"1")}] * 5}}, 400, id="more-than-is-priced"),
    pytest.param({"files": [("a", b"1")], "data": {"note": "x"}}, 400, id="other-field"),
    pytest.param({"files": [("record", b"1"), ("record", b"2")]}, 400, id="two-records"),
    pytest.param({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, id="no-boundary"),
    pytest.param({"content": b"Doe^Jane"}, 422, id="refused-by-the-intake"),
    pytest.param({"json": {"files": [{"data": b64(n)} for n in (b"1", b"13", b"2")]}}, 500, id="one-item-fails"),
]


@pytest.mark.parametrize(("body", "status"), BAD)
def test_what_cannot_be_answered_costs_nothing(wallet: Wallet, body: dict[str, Any], status: int) -> None:
    async def scenario(bench: Any, client: httpx.AsyncClient) -> None:
        answer = await client.post("/diagnose", **body)
        assert answer.status_code == status, answer.text
        assert set(answer.json()) == {"error", "code"} and "Doe" not in answer.text
        assert bench.charged() == bench.held() == 0
        assert status == 500 or not bench.dapp.seen

    on_adder(wallet, scenario)


def test_the_answer_comes_in_four_forms(wallet: Wallet) -> None:
    async def scenario(bench: Any, client: httpx.AsyncClient) -> None:
        markdown, patient, png = [
            await client.post(f"/diagnose?view={view}", content=b"5") for view in ("markdown", "patient", "png")
        ]
        assert markdown.headers["content-type"].startswith("text/markdown")
        assert "| the sum |  | 10 m |  | http://loinc.org 1-1 | good |" in markdown.text
        assert bench.dapp.digest in markdown.text and "Research use only" in markdown.text
        assert patient.text.startswith("It adds up.") and "not a diagnosis" in patient.text
        assert png.headers["content-type"] == "image/png" and png.content.startswith(b"\x89PNG")
        assert all(answer.headers["x-intended-use"] == "research" for answer in (markdown, patient, png))
        for query in ("view=pdf", "&".join(["view=png"] * 20)):
            wrong = await client.post(f"/diagnose?{query}", content=b"5")
            assert (wrong.status_code, wrong.json()["code"]) == (400, "bad_request")
        assert bench.charged() == 300

    on_adder(wallet, scenario)


def test_a_picture_is_never_stored_and_its_repeat_is_the_report(wallet: Wallet) -> None:
    async def scenario(bench: Any, client: httpx.AsyncClient) -> None:
        headers = {"idempotency-key": "one"}
        first = await client.post("/diagnose?view=png", content=b"5", headers=headers)
        again = await client.post("/diagnose?view=png", content=b"5", headers=headers)
        assert first.headers["content-type"] == "image/png"
        assert again.json()["findings"][0]["value"] == 10 and bench.charged() == 100
        other = await client.post("/diagnose?view=markdown", content=b"5", headers=headers)
        assert other.status_code == 409
        assert b"PNG" not in repr(vars(bench.store)).encode()

    on_adder(wallet, scenario)


def heard(seed: int) -> bytes:
    return phantom.wav(phantom.phonocardiogram(murmur=True, seconds=3.0, seed=seed))


OXIMETRY = {"age": {"value": 26, "unit": "h"}, "spo2_foot": {"value": 97, "unit": "%"}}
SITES = [("MV", heard(1)), ("PV", heard(2))]
SCAN = zipped(*head_series(30)[:-1]).data


@pytest.mark.parametrize(
    ("dapp", "body", "items"),
    [
        pytest.param(CHDr, {"content": SITES[0][1]}, 2, id="one-recording"),
        pytest.param(CHDr, {"files": SITES, "data": {"record": json.dumps(OXIMETRY)}}, 4, id="two-sites-and-oximetry"),
        pytest.param(
            CHDr,
            {"json": {"files": [{"data": b64(data), "part": part} for part, data in SITES], "record": OXIMETRY}},
            4,
            id="the-same-in-base64",
        ),
        pytest.param(StrokeDr, {"files": [("ct", SCAN)], "data": {"record": record()}}, 31, id="series-and-admission"),
        pytest.param(StrokeDr, {"json": {"record": RECORD}}, 1, id="admission-alone"),
    ],
)
def test_the_built_in_dapps_are_paid_by_slice_and_window(
    wallet: Wallet, dapp: type[DApp], body: dict[str, Any], items: int
) -> None:
    """Thirty slices and a record are thirty-one submissions; every finding of a model has code, unit and interval."""

    async def whole() -> None:
        async with replica(dapp(), 8_000_000) as bench, bench.client(wallet) as client:
            answer = await client.post("/diagnose", **body)
            assert answer.status_code == 200, answer.text
            report = answer.json()
            assert report["items"] == receipt(answer).receipt.units == items <= dapp.price.maximum_items
            assert bench.charged() == dapp.price.per_item * items
            modelled = [finding for finding in report["findings"] if finding["probability"] is not None]
            assert modelled and all(finding["coding"] and finding["unit"] == "1" for finding in modelled)
            assert all(
                finding["interval"][0] <= finding["probability"] <= finding["interval"][1] for finding in modelled
            )

    asyncio.run(whole())


def test_the_transcripts_in_the_docs_are_reports_as_they_are_now() -> None:
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text("utf-8")
    bodies = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", page, re.DOTALL)]
    assert [body["model"]["name"] for body in bodies] == ["chdr", "strokedr"]
    for body, dapp in zip(bodies, (CHDr, StrokeDr), strict=True):
        now = report_json(body["model"]["name"], dapp(), Report("", ()), 1)
        assert list(body) == list(now) and list(body["model"]) == list(now["model"])
        assert body["model"]["version"] == dapp.version
        assert {"guideline", "recommended", "reason"} <= set(body["decision"])
        for finding in body["findings"]:
            assert list(finding) == [field.name for field in fields(Finding)]


def test_no_part_of_a_multipart_body_touches_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starlette spools large parts to disk, where a patient's file would outlive a crash."""
    rolled = []
    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", lambda file: rolled.append(file))
    sent = httpx.Request("POST", "http://mesh/diagnose", files=[("x", bytes(3_000_000)), ("y", b"1")])
    case = read_case(sent.headers["content-type"], sent.read())
    assert [len(file.data) for file in case.files] == [3_000_000, 1] and not rolled


class Either(Adder):
    """Two optional inputs, each with an output of its own."""

    inputs = (Tensor("X", "FP32", [1], optional=True), Tensor("Z", "FP32", [1], optional=True))
    outputs = (Tensor("Y", "FP32", [1], optional=True), Tensor("W", "FP32", [1], optional=True))

    def forward(self, **tensors: Any) -> dict[str, Any]:
        pairs = (("X", "Y"), ("Z", "W"))
        return {there: 2 * tensors[here] for here, there in pairs if here in tensors}

    def example(self) -> Inputs:
        return {"X": np.ones((1, 1), "f4"), "Z": np.ones((1, 1), "f4")}


def test_an_optional_output_comes_with_the_input_it_belongs_to(wallet: Wallet) -> None:
    def row(name: str) -> dict[str, Any]:
        return {"name": name, "datatype": "FP32", "shape": [1, 1], "data": [3]}

    async def whole() -> None:
        async with replica(Either()) as bench, bench.client(wallet) as client:
            await client.post("/infer", json={"inputs": [row("X")]})  # opens the channel
            routes = (["X"], ["Z"], ["X", "Z"])
            calls = [client.post("/infer", json={"inputs": [row(name) for name in names]}) for names in routes]
            names_of_each = [
                [out["name"] for out in answer.json()["outputs"]] for answer in await asyncio.gather(*calls)
            ]
            assert names_of_each == [["Y"], ["W"], ["Y", "W"]]
            none = await client.post("/infer", json={"inputs": []})
            assert none.status_code == 400 and bench.charged() == 400

    asyncio.run(whole())


def test_a_case_with_too_many_parts_is_refused_before_it_is_parsed() -> None:
    body = b'{"files":[' + b"{}," * 20_000_000 + b"0]}"
    with pytest.raises(CallError, match="objects") as refused:
        read_case("application/json", body)
    assert refused.value.code == "body_too_large"


def test_null_in_a_case_is_as_absent() -> None:
    data = base64.b64encode(b"1").decode()
    for body in (
        {"file": data, "files": None, "record": None},
        {"files": [{"data": data, "part": None}], "file": None},
    ):
        case = read_case("application/json", json.dumps(body).encode())
        assert case.record is None and [(file.data, file.part) for file in case.files] == [(b"1", "")]
    with pytest.raises(CallError, match="the JSON body is"):
        read_case("application/json", b'{"file": null, "record": null}')
