"""The control application answers what its OpenAPI page declares, and a route asks no more replicas than it needs."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import unquote

import httpx
import pytest
from jsonschema import Draft202012Validator
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request

from channels.errors import LedgerError
from channels.protocol import READ, Signer, read_digest
from dapps.packages import registry
from serving.catalogue import entry, metadata
from serving.control.account_routes import AccountRoutes
from serving.control.catalogue_routes import CatalogueRoutes
from serving.control.http_json import canonical_url
from serving.control.models import ModelRef, Models
from serving.control.openapi import document
from serving.errors import CallError
from serving.protocol import refused

MESH = {"url": "http://mesh", "network": "eip155:1", "asset": "0xA", "receipts": "0xB"}
SHARES = (("knowledge", "0xC", 7_500), ("operator", "0xD", 2_500))
UNSERVED = [{"name": "odd", "state": "broken", "reason": "it cannot be imported"}]
READER = Signer(bytes([9]) * 32)
RECEIPTS = Signer(b"\x0a" * 32).address


class Replica:
    """The handle of one model's replicas: it counts how often it is asked, and answers unless it is down."""

    def __init__(self, name: str, down: bool = False) -> None:
        self.name, self.down, self.asked = name, down, 0
        self.gate: asyncio.Event | None = None
        self.facts = self

    async def remote(self, what: str, version: str) -> Any:
        self.asked += 1
        if self.gate is not None:
            await self.gate.wait()
        if self.down:
            raise ConnectionError
        dapp = registry.load(self.name)
        return entry.offer(dapp) if what == "offer" else metadata.metadata(self.name, dapp)


class Refusing:
    """The handle of replicas that refuse."""

    def __getattr__(self, name: str) -> Any:
        return self

    async def remote(self, *arguments: Any) -> Any:
        raise CallError("unknown_version", "another version")


class Mesh:
    """The catalogue's routes over two models."""

    def __init__(self, down: str = "") -> None:
        self.replicas = {name: Replica(name, name == down) for name in ("chdr", "strokedr")}
        refs = tuple(ModelRef(name, registry.load(name).version, name) for name in self.replicas)
        self.models = Models(refs, handle=lambda ref: self.replicas[ref.name])
        self.rows = [entry.entry(name, registry.load(name), SHARES) for name in self.replicas]
        self.page = document("1", MESH["url"], self.rows, model_control=True)
        routes = CatalogueRoutes("1", MESH, self.rows, UNSERVED, self.models).routes()
        self.app = Starlette(routes=routes, exception_handlers={CallError: refused, HTTPException: refused})

    def get(self, path: str) -> httpx.Response:
        return get(self.app, path)


def get(app: Starlette, path: str, headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
    async def run() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://mesh") as client:
            return await client.request("POST" if body else "GET", path, headers=headers, **body)

    return asyncio.run(run())


def check(page: dict[str, Any], route: str, value: Any, verb: str = "get") -> None:
    """Fails unless an answer is what the page declares for its route."""
    schema = page["paths"][route][verb]["responses"]["200"]["content"]["application/json"]["schema"]
    Draft202012Validator({**schema, "components": page["components"]}).validate(value)


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    return Mesh()


@pytest.mark.parametrize("path", ["/", "/v1/catalogue", "/v1/dapps", "/v1/dapps/chdr"])
def test_answers_of_the_catalogue_are_what_the_page_declares(mesh: Mesh, path: str) -> None:
    response = mesh.get(path)
    assert response.status_code == 200 and response.headers["vary"] == "accept"
    check(mesh.page, path.replace("chdr", "{name}"), response.json())


def test_a_row_keeps_every_field_of_the_catalogue(mesh: Mesh) -> None:
    (row,) = [row for row in mesh.rows if row["name"] == "chdr"]
    answered = mesh.get("/v1/dapps/chdr").json()
    assert answered == row | {"health": {"state": "READY", "reason": ""}}


def test_metadata_and_configuration_of_a_model_are_what_the_page_declares(mesh: Mesh) -> None:
    dapp = registry.load("strokedr")
    check(mesh.page, "/v2/models/strokedr", metadata.metadata("strokedr", dapp))
    check(mesh.page, "/v2/models/strokedr/config", metadata.config("strokedr", dapp, 8))


@pytest.mark.parametrize("path", ["/v1/dapps/chdr", "/dapps/chdr"])
def test_one_dapp_is_asked_alone(path: str) -> None:
    mesh = Mesh()
    assert mesh.get(path).status_code == 200
    assert mesh.replicas["chdr"].asked > 0 and mesh.replicas["strokedr"].asked == 0


def test_a_dapp_whose_replicas_are_down_says_so() -> None:
    mesh = Mesh(down="chdr")
    assert mesh.get("/v1/dapps/chdr").json()["health"] == {"state": "UNAVAILABLE", "reason": "no replica answers"}
    assert mesh.get("/v1/dapps/strokedr").json()["health"] == {"state": "READY", "reason": ""}
    rows = asyncio.run(mesh.models.index())
    assert [(row.name, row.state) for row in rows] == [("chdr", "UNAVAILABLE"), ("strokedr", "READY")]
    assert [row.name for row in asyncio.run(mesh.models.index(ready=True))] == ["strokedr"]


def test_a_refusal_of_a_replica_keeps_its_code() -> None:
    mesh = Mesh()
    models = Models((ModelRef("chdr", "1", "chdr"),), handle=lambda ref: Refusing())
    with pytest.raises(CallError) as caught:
        asyncio.run(models.facts("chdr", "metadata", "2"))
    assert caught.value.code == "unknown_version"
    routes = CatalogueRoutes("1", MESH, mesh.rows, UNSERVED, models).routes()
    app = Starlette(routes=routes, exception_handlers={CallError: refused, HTTPException: refused})
    sample = mesh.rows[0]["samples"][0]
    assert get(app, f"/dapps/chdr/try?sample={sample}").json()["code"] == "unknown_version"


def test_visitors_who_come_at_once_cost_a_replica_one_look() -> None:
    """The catalogue is free: a thousand visitors must not take the replicas' time from those who pay."""
    mesh = Mesh()

    async def run() -> set[int]:
        gate = asyncio.Event()
        for replica in mesh.replicas.values():
            replica.gate = gate
        async with httpx.AsyncClient(transport=httpx.ASGITransport(mesh.app), base_url="http://mesh") as client:
            visits = [asyncio.create_task(client.get("/v1/dapps")) for _ in range(50)]
            while mesh.replicas["strokedr"].asked == 0:
                await asyncio.sleep(0)
            gate.set()
            return {answer.status_code for answer in await asyncio.gather(*visits)}

    assert asyncio.run(run()) == {200}
    assert all(replica.asked <= 4 for replica in mesh.replicas.values()), "its state and its offer, once or twice"


class Treasury:
    """A handle that refuses every call."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __getattr__(self, name: str) -> Any:
        return self

    async def remote(self, *arguments: Any) -> Any:
        raise self.error


def money(error: Exception) -> Starlette:
    routes = AccountRoutes(1, RECEIPTS, Treasury(error), now=lambda: 1_000.0).routes()
    return Starlette(routes=routes, exception_handlers={CallError: refused, HTTPException: refused})


PAYOUT = {"to": READER.address, "amount": "5", "nonce": "1", "signature": "0x" + "11" * 65}


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        pytest.param(LedgerError("payout_amount", "too much"), 400, "payout_amount", id="refused"),
        pytest.param(LedgerError("already_used", "once"), 409, "nonce_used", id="renamed"),
        pytest.param(ConnectionError("gone"), 503, "not_ready", id="unreachable"),
    ],
)
def test_a_refusal_of_the_treasury_keeps_its_code(error: Exception, status: int, code: str) -> None:
    response = get(money(error), f"/v1/earnings/{READER.address}/withdraw", json=PAYOUT)
    assert (response.status_code, response.json()["code"]) == (status, code)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        pytest.param({"to": "0x1"}, "to is 0x and 40 hex digits", id="to"),
        pytest.param({"amount": 5}, "amount is a decimal string", id="a number"),
        pytest.param({"amount": "05"}, "amount is a decimal string", id="leading zero"),
        pytest.param({"nonce": str(1 << 128)}, "nonce is a decimal string", id="too large"),
        pytest.param({"signature": "0x11"}, "signature is 65 bytes in hex", id="short"),
        pytest.param({"signature": None}, "signature is 65 bytes in hex", id="null"),
    ],
)
def test_a_field_that_cannot_be_parsed_is_named_without_its_value(change: dict[str, Any], text: str) -> None:
    response = get(money(ConnectionError()), f"/v1/earnings/{READER.address}/withdraw", json=PAYOUT | change)
    assert (response.status_code, response.json()) == (400, {"error": text, "code": "bad_request"})


def test_nonces_up_to_128_bits_are_taken() -> None:
    app = money(LedgerError("payout_amount", "too much"))
    body = PAYOUT | {"nonce": str((1 << 128) - 1)}
    assert get(app, f"/v1/earnings/{READER.address}/withdraw", json=body).json()["code"] == "payout_amount"


@pytest.mark.parametrize("body", [b"{", b"[]", b"\xff"])
def test_a_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    response = get(money(ConnectionError()), f"/v1/earnings/{READER.address}/withdraw", content=body)
    assert response.status_code == 400 and response.json()["code"] == "bad_request"


def read_headers(mesh: str, path: str, query: str = "") -> dict[str, str]:
    digest = read_digest(1, mesh=mesh, path=path, query=query, issued_s=1_000)
    signature = "0x" + READER.sign(digest).hex()
    return {"leben-read-issued": "1000", "leben-read-mesh": mesh, "leben-read-signature": signature}


CHANNEL_PATH = "/v1/channels/0x" + "ab" * 32


def test_a_read_without_a_treasury_is_refused_as_not_ready() -> None:
    headers = read_headers(RECEIPTS, CHANNEL_PATH)
    assert get(money(ConnectionError()), CHANNEL_PATH, headers).json()["code"] == "not_ready"


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param(read_headers("0x" + "00" * 19 + "0b", CHANNEL_PATH), id="signed for another mesh"),
        pytest.param(
            {name: value for name, value in read_headers(RECEIPTS, CHANNEL_PATH).items() if name != "leben-read-mesh"},
            id="an older client names no mesh",
        ),
        pytest.param(read_headers(RECEIPTS, CHANNEL_PATH) | {"leben-read-mesh": "0x12"}, id="no address"),
    ],
)
def test_a_read_for_another_mesh_or_none_is_answered_with_what_to_sign(headers: dict[str, str]) -> None:
    response = get(money(ConnectionError()), CHANNEL_PATH, headers)
    assert response.status_code == 401
    refusal = response.json()
    assert refusal["code"] == "read_unsigned" and READ in refusal["error"] and RECEIPTS in refusal["error"]


@pytest.mark.parametrize(
    ("raw", "url"),
    [
        ("/v2/models/ch%64r/infer", "/v2/models/chdr/infer?view=png"),
        ("/v2/models/chdr%2Finfer", "/v2/models/chdr/infer?view=png"),
        ("/v2/models/%63hdr/%0d%0aa", "/v2/models/chdr/%0D%0Aa?view=png"),
        ("/v2/models/chdr/infer", ""),
        ("/v2/models/a%20b", ""),
    ],
)
def test_a_path_has_one_spelling(raw: str, url: str) -> None:
    scope = {"type": "http", "path": unquote(raw), "raw_path": raw.encode(), "query_string": b"view=png", "headers": []}
    assert canonical_url(Request(scope)) == url
