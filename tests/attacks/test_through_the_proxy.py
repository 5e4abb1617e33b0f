"""The same hostile bytes against a whole mesh, through its proxy and its server. Cases 39, 40 and 49.

What the proxy refuses itself it answers itself, and not in JSON; what reaches our code is answered by it.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
from contextlib import ExitStack
from dataclasses import replace

import httpx
import pytest

from channels.payer import ChannelAuth, receipt
from channels.protocol.digests import voucher_digest
from channels.protocol.x402 import Payment
from dapps.packages import registry
from tests.attacks.payer import MARK
from tests.conftest import RunningMesh

PATH = "/v2/models/chdr/diagnose"


def spoken(mesh: RunningMesh, request: bytes) -> tuple[int, bytes]:
    """The status and body of the answer to raw bytes; the connection is closed after it."""
    with socket.create_connection(("127.0.0.1", mesh.port), timeout=30) as wire:
        wire.sendall(request)
        heard = http.client.HTTPResponse(wire)
        heard.begin()
        return heard.status, heard.read()


def request(*headers: bytes, path: bytes = PATH.encode(), host: bytes = b"mesh") -> bytes:
    lines = [b"POST " + path + b" HTTP/1.1", b"Host: " + host, b"Connection: close", b"Content-Length: 2", *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n{}"


OURS = {
    "9 kB": request(b"PAYMENT-SIGNATURE: " + b"A" * 9_000),
    "60 kB": request(b"PAYMENT-SIGNATURE: " + b"A" * 60_000),
    "two of them": request(b"PAYMENT-SIGNATURE: e30=", b"PAYMENT-SIGNATURE: e30="),
    "two keys": request(b"Idempotency-Key: a", b"Idempotency-Key: b", b"PAYMENT-SIGNATURE: e30="),
    "90 others": request(*(b"X-%d: %s" % (number, MARK.encode()) for number in range(90))),
    "not ASCII": request(b"PAYMENT-SIGNATURE: \xff\xfe"),
    "deep": request(b"PAYMENT-SIGNATURE: " + b"W1tb" * 2_000),
    "a long query": request(path=PATH.encode() + b"?patient=" + MARK.encode() * 2_000),
    "an odd query": request(path=PATH.encode() + b"?%ff%00"),
    "an odd host": request(host=b"x" * 3_000),
    "an unknown model": request(path=b"/v2/models/" + MARK.encode() + b"/infer"),
    "another version": request(path=b"/v2/models/chdr/versions/" + MARK.encode() + b"/infer"),
    "serve's own headers": request(b"x-request-timeout-seconds: -1", b"x-request-disconnect-disabled: ?"),
}
PROXYS = {
    "1 MB": request(b"PAYMENT-SIGNATURE: " + b"A" * (1 << 20)),
    "a query of raw bytes": request(path=PATH.encode() + b"?\xff"),
    "no host": b"POST " + PATH.encode() + b" HTTP/1.1\r\nConnection: close\r\n\r\n",
    "a header without a name": request(b": x"),
    "two lengths": request(b"Content-Length: 3"),
    "a length that is none": request(b"Content-Length: -1"),
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
}


@pytest.mark.parametrize("name", OURS)
def test_case_39_hostile_bytes_that_reach_us_are_refused_in_json(mesh: RunningMesh, name: str) -> None:
    status, body = spoken(mesh, OURS[name])
    assert 400 <= status < 500, body
    assert set(json.loads(body)) == {"error", "code"} and MARK.encode() not in body


@pytest.mark.parametrize("name", PROXYS)
def test_case_39_hostile_bytes_that_the_proxy_refuses_buy_nothing(mesh: RunningMesh, name: str) -> None:
    status, body = spoken(mesh, PROXYS[name])
    assert 400 <= status < 500 and MARK.encode() not in body


def test_case_40_a_flood_of_forged_vouchers_keeps_nobody_from_being_served(mesh: RunningMesh) -> None:
    wallet = mesh.payer()
    auth, sample = ChannelAuth(wallet), registry.load("chdr").sample().data

    async def run() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=mesh.url, timeout=60) as client:
            first = await client.post(PATH, content=sample, auth=auth)
            honest = Payment.from_header(first.request.headers["PAYMENT-SIGNATURE"])
            chain, name = int(honest.accepted["network"].removeprefix("eip155:")), honest.voucher.channel_id
            thief = type(wallet.signer).generate()

            async def forged(number: int) -> httpx.Response:
                maximum = honest.voucher.max_claimable + number
                signature = thief.sign(voucher_digest(chain, name, maximum))
                voucher = replace(honest.voucher, max_claimable=maximum, signature=signature)
                bad = replace(honest, kind="voucher", voucher=voucher, deposit=None)
                headers = {"PAYMENT-SIGNATURE": bad.to_header(), "Idempotency-Key": f"flood-{number}"}
                return await client.post(PATH, content=b"x", headers=headers, auth=None)

            paid = [client.post(PATH, content=sample, auth=auth) for _ in range(4)]
            answers = await asyncio.gather(*map(forged, range(100)), *paid)
            assert {answer.status_code for answer in answers[:100]} == {402}
            assert all(answer.json()["code"].endswith("voucher_signature") for answer in answers[:100])
            return [first, *answers[100:]]

    served = asyncio.run(run())
    assert {answer.status_code for answer in served} == {200}
    assert int(mesh.channel(wallet, auth)["charged"]) == sum(receipt(answer).receipt.amount for answer in served)
    assert MARK not in mesh.log.read_text()


def begun(mesh: RunningMesh, *lines: bytes) -> socket.socket:
    """A connection on which a request has begun; nothing more is sent."""
    wire = socket.create_connection(("127.0.0.1", mesh.port), timeout=30)
    wire.sendall(b"\r\n".join(lines))
    return wire


def test_case_49_bodies_that_never_end_keep_nobody_from_health_catalogue_and_rpc(mesh: RunningMesh) -> None:
    head = b"POST /v1/rpc HTTP/1.1", b"Host: mesh", b"Content-Length: 100", b"", b"{"
    with ExitStack() as stack:
        wires = [stack.enter_context(begun(mesh, *head)) for _ in range(20)]
        for path in ("/v2/health/live", "/v2/health/ready", "/v1/catalogue"):
            assert httpx.get(mesh.url + path, timeout=5).status_code == 200
        body = {"jsonrpc": "2.0", "id": 1, "method": "eth_chainId"}
        assert httpx.post(f"{mesh.url}/v1/rpc", json=body, timeout=5).json()["result"]
        waiting = 0
        for wire in wires:
            wire.setblocking(False)
            try:
                wire.recv(1)
            except BlockingIOError:
                waiting += 1
        assert waiting > 5, "they stood there all the time"


def test_case_49_headers_that_never_end_lose_their_connection(mesh: RunningMesh) -> None:
    with begun(mesh, b"POST /v1/rpc HTTP/1.1", b"Host: mesh") as wire:
        assert wire.recv(1024).startswith(b"HTTP/1.1 408 ")
