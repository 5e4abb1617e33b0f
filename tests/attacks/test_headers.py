"""Headers, JSON and bodies that are not what they should be, and floods of them. Cases 39, 40 and 45."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import random
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from channels.protocol.signer import Signer
from channels.protocol.x402 import MAX_HEADER_BYTES, decode_header
from tests.attacks.conftest import OnRing, code_of, opened, refused
from tests.attacks.payer import MARK, Payer, bent, tree, unsigned
from tests.attacks.ring import GOOD, Ring, open_ring
from tests.examples import examples


def encoded(text: str | bytes) -> str:
    return base64.b64encode(text.encode() if isinstance(text, str) else text).decode()


async def raw(ring: Ring, headers: list[tuple[bytes, bytes]], **scope: Any) -> tuple[int, dict[str, str], bytes]:
    """One request straight to the ASGI application: what no well-behaved client could send."""
    messages: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": GOOD, "more_body": False}

    async def send(message: Any) -> None:
        messages.append(message)

    whole = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http"}
    whole |= {"path": "/infer", "raw_path": b"/infer", "query_string": b"", "root_path": "", "headers": headers}
    whole |= {"client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80), **scope}
    await ring.app(whole, receive, send)
    body = b"".join(message.get("body", b"") for message in messages[1:])
    headers = {name.decode().lower(): value.decode() for name, value in messages[0]["headers"]}
    return messages[0]["status"], headers, body


def test_case_39_a_payment_header_above_8_kb_is_refused_before_it_is_decoded(on_ring: OnRing) -> None:
    async def scenario(ring: Ring) -> None:
        payer = await opened(ring)
        whole = tree(payer.voucher(500))
        padded = encoded(orjson.dumps(whole | {"resource": {"url": "x" * 8_000}}))
        assert len(padded) > MAX_HEADER_BYTES
        await refused(ring, padded, "header_too_large", says="8192 bytes")
        for size in (MAX_HEADER_BYTES + 1, 16_000, 1 << 20):
            # Not even base64: what says its length has not decoded it.
            for filler in ("%", "A"):
                await refused(ring, filler * size, "header_too_large")
        room = MAX_HEADER_BYTES // 4 * 3 - len(orjson.dumps(whole)) - len(b',"resource":{"url":""}')
        full = encoded(orjson.dumps(whole | {"resource": {"url": "x" * room}}))
        assert MAX_HEADER_BYTES - 4 < len(full) <= MAX_HEADER_BYTES
        assert (await ring.send(full)).status_code == 200

    on_ring(scenario)


NOT_PAYMENTS = {
    "empty": ("", "invalid_payload"),
    "not base64": ("%%%", "invalid_payload"),
    "base64 of a URL": (encoded(b"\xfb\xff" * 30).replace("+", "-").replace("/", "_"), "invalid_payload"),
    "no padding": ("e30", "invalid_payload"),
    "padding in the middle": ("e3=0e30=", "invalid_payload"),
    "a line break": ("e30=\t", "invalid_payload"),
    "not JSON": (encoded(MARK), "invalid_payload"),
    "not UTF-8": (encoded(b'{"a":"\xff"}'), "invalid_payload"),
    "cut off": (encoded('{"x402Version":2,'), "invalid_payload"),
    "two documents": (encoded("{}{}"), "invalid_payload"),
    "a comment": (encoded('{"x402Version":2}//'), "invalid_payload"),
    "NaN": (encoded('{"x402Version":NaN}'), "invalid_payload"),
    "infinity": (encoded('{"x402Version":-Infinity}'), "invalid_payload"),
    "deep lists": (encoded("[" * 6_000), "invalid_payload"),
    "deep objects": (encoded('{"":' * 1_500), "invalid_payload"),
    "deep and closed": (encoded("[" * 3_000 + "]" * 3_000), "invalid_payload"),
    "a name twice": (encoded('{"x402Version":2,"x402Version":2}'), "invalid_payload"),
    "a name twice, escaped": (encoded('{"x402Version":1,"x402\\u0056ersion":2}'), "invalid_payload"),
    "a list": (encoded("[]"), "voucher_payload"),
    "a string": (encoded(f'"{MARK}"'), "voucher_payload"),
    "null": (encoded("null"), "voucher_payload"),
    "an empty object": (encoded("{}"), "invalid_x402_version"),
    "version 1": (encoded('{"x402Version":1}'), "invalid_x402_version"),
    "version true": (encoded('{"x402Version":true}'), "invalid_x402_version"),
    "version 2.0": (encoded('{"x402Version":2.0}'), "invalid_x402_version"),
    "version 2e0": (encoded('{"x402Version":2e0}'), "invalid_x402_version"),
    "version as text": (encoded('{"x402Version":"2"}'), "invalid_x402_version"),
    "no payload": (encoded('{"x402Version":2}'), "voucher_payload"),
    "a claim": (encoded('{"x402Version":2,"payload":{"type":"claim","claims":[]}}'), "payload_type"),
    "a settlement": (encoded('{"x402Version":2,"payload":{"type":"settle"}}'), "payload_type"),
    "no type": (encoded('{"x402Version":2,"payload":{}}'), "payload_type"),
    "a list of types": (encoded('{"x402Version":2,"payload":{"type":["voucher"]}}'), "payload_type"),
    "type in capitals": (encoded('{"x402Version":2,"payload":{"type":"VOUCHER"}}'), "payload_type"),
}


@pytest.mark.parametrize(("header", "code"), NOT_PAYMENTS.values(), ids=NOT_PAYMENTS)
def test_case_39_a_header_that_is_no_payment(on_ring: OnRing, header: str, code: str) -> None:
    async def scenario(ring: Ring) -> None:
        await refused(ring, header, code)
        await refused(ring, header, code, method="GET")

    on_ring(scenario)


def test_case_39_a_name_twice_in_a_payment_that_is_good_by_either_reading(on_ring: OnRing) -> None:
    async def scenario(ring: Ring) -> None:
        payer = await opened(ring)
        good = orjson.dumps(tree(payer.voucher(500))).decode()
        doubled = good.replace('"maxClaimableAmount":"500"', '"maxClaimableAmount":"9","maxClaimableAmount":"500"')
        same = good.replace('"maxClaimableAmount":"500"', '"maxClaimableAmount":"500","maxClaimableAmount":"500"')
        assert doubled != good != same
        for text in (doubled, same):
            await refused(ring, encoded(text), "invalid_payload", says="repeats a name")
        assert (await ring.send(encoded(good))).status_code == 200

    on_ring(scenario)


def test_case_39_two_payment_headers_are_one_too_many(on_ring: OnRing) -> None:
    async def scenario(ring: Ring) -> None:
        payer = await opened(ring)
        good, other = payer.voucher(500).to_header(), payer.voucher(900).to_header()
        for second in (good, other, "", MARK):
            answer = await refused(ring, good, "bad_request", more=[("payment-signature", second)])
            assert answer.status_code == 400 and "PAYMENT-SIGNATURE" in answer.json()["error"]
        await refused(ring, f"{good}, {other}", "invalid_payload")
        await refused(ring, f"{good},{good}", "invalid_payload")

    on_ring(scenario)


def test_case_39_two_idempotency_keys_are_one_too_many(on_ring: OnRing) -> None:
    async def scenario(ring: Ring) -> None:
        payer = await opened(ring)
        answer = await refused(ring, payer.voucher(500), "invalid_key", key="one", more=[("idempotency-key", "two")])
        assert answer.status_code == 400
        for bad in ("", " ", "a b", "a\tb", "k" * 256, "\u00e9".encode("latin-1").decode("latin-1")):
            status, _, body = await raw(
                ring,
                [
                    (b"host", b"mesh"),
                    (b"payment-signature", payer.voucher(500).to_header().encode()),
                    (b"idempotency-key", bad.encode("latin-1")),
                ],
            )
            assert (status, orjson.loads(body)["code"]) == (400, "invalid_key")
        assert (await ring.send(payer.voucher(500), key="k" * 255)).status_code == 200

    on_ring(scenario)


def test_case_39_a_hundred_other_headers_change_nothing(on_ring: OnRing) -> None:
    async def scenario(ring: Ring) -> None:
        payer = await opened(ring)
        many = [(f"x-{number}", MARK * 5) for number in range(100)]
        many += [("x-payment", MARK), ("x-request-timeout-seconds", "-1"), ("x-request-disconnect-disabled", "?")]
        many += [("x-forwarded-for", MARK), ("authorization", MARK), ("cookie", MARK)]
        await refused(ring, None, "payment_required", more=many)
        await refused(ring, "%", "invalid_payload", more=many)
        assert (await ring.send(payer.voucher(500), more=many)).status_code == 200

    on_ring(scenario)


HOSTS = [b"", b"[", b"[::1", b"a b", b"\xff\xfe", b"x" * 60_000, b"mesh:99999", b"mesh:\xd9\xa3", b"http://x/?"]


@pytest.mark.parametrize("host", HOSTS, ids=lambda host: host[:12].decode("latin-1") or "empty")
def test_case_39_a_host_that_is_none_is_answered_as_any_other(on_ring: OnRing, host: bytes) -> None:
    async def scenario(ring: Ring) -> None:
        status, headers, body = await raw(ring, [(b"host", host)])
        assert (status, orjson.loads(body)["code"]) == (402, "payment_required")
        assert len(headers["payment-required"]) < MAX_HEADER_BYTES, "an offer that a client can send back"

    on_ring(scenario)


@pytest.mark.parametrize("query", [b"\xff", b"patient=" + MARK.encode(), b"a" * 60_000, b"%ff%00", b"?#/"])
def test_case_39_a_query_is_neither_read_nor_sent_back(on_ring: OnRing, query: bytes) -> None:
    async def scenario(ring: Ring) -> None:
        status, headers, body = await raw(ring, [(b"host", b"mesh")], query_string=query)
        assert (status, orjson.loads(body)["code"]) == (402, "payment_required")
        assert decode_header(headers["payment-required"])["resource"]["url"] == "http://mesh/infer"

    on_ring(scenario)


@pytest.mark.parametrize(
    "path",
    ["/infer/", "/infer\x00", "/INFER", "//infer", "/../infer", f"/{MARK}", "/versions/2/infer", "/" + "a" * 60_000],
)
def test_case_39_other_paths_are_refused_in_json(on_ring: OnRing, path: str) -> None:
    async def scenario(ring: Ring) -> None:
        status, _, body = await raw(ring, [(b"host", b"mesh")], path=path, raw_path=b"/")
        assert status == 404 and orjson.loads(body)["code"] in ("not_found", "unknown_version")
        assert MARK.encode() not in body

    on_ring(scenario)


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "get", "X" * 100])
def test_case_39_other_methods_are_refused_in_json(on_ring: OnRing, method: str) -> None:
    async def scenario(ring: Ring) -> None:
        status, _, body = await raw(ring, [(b"host", b"mesh")], method=method)
        assert (status, orjson.loads(body)["code"]) == (405, "method_not_allowed")

    on_ring(scenario)


def test_case_40_a_flood_of_forged_and_tiny_payments_leaves_the_channel_and_the_store_as_they_were(
    on_ring: OnRing,
) -> None:
    async def scenario(ring: Ring) -> None:
        payer = await opened(ring)
        before = await ring.state()
        choose = random.Random(40)

        def forged(number: int) -> Any:
            stranger = Payer(ring.quote, Signer(bytes([number % 200 + 20]) * 32), salt=f"0x{number:064x}")
            kinds = [
                payer.voucher(500, signer=stranger.signer),
                stranger.voucher(400),
                stranger.voucher(choose.randrange(400)),
                payer.voucher(choose.randrange(500)),
                unsigned(stranger.deposit(400, 4_000)),
                stranger.deposit(400, 1),
            ]
            return choose.choice(kinds)

        keys = (None, *(f"key-{number}" for number in range(3)))
        answers = await asyncio.gather(*(ring.send(forged(n), key=choose.choice(keys)) for n in range(300)))
        assert {code_of(answer) for answer in answers} <= {
            "voucher_signature",
            "channel_not_found",
            "cumulative_amount_mismatch",
            "cumulative_exceeds_balance",
        }
        assert await ring.state() == before
        assert (await ring.send(payer.voucher(500))).status_code == 200, "who pays is still served"

    on_ring(scenario)


def test_case_40_what_needs_no_signature_to_be_refused_is_refused_without_one(on_ring: OnRing) -> None:
    async def scenario(ring: Ring) -> None:
        payer = await opened(ring)
        good = payer.voucher(500)
        # Each is forged besides: its own name shows that the signature was not even looked at.
        cheap = {
            "receiver_mismatch": bent(unsigned(good), "payload.channelConfig.receiver", payer.signer.address),
            "channel_id_mismatch": bent(unsigned(good), "payload.voucher.channelId", "0x" + "01" * 32),
            "requirements_mismatch": bent(unsigned(good), "accepted.amount", "1"),
            "cumulative_exceeds_balance": bent(unsigned(good), "payload.voucher.maxClaimableAmount", str(2**60)),
            "voucher_payload": bent(unsigned(good), "payload.voucher.maxClaimableAmount", "1e3"),
            "voucher_signature": unsigned(good),
        }
        for code, payment in cheap.items():
            await refused(ring, payment, code)

    on_ring(scenario)


def test_case_45_neither_log_nor_store_nor_books_hold_a_word_of_a_call(
    on_ring: OnRing, caplog: pytest.LogCaptureFixture
) -> None:
    number = b"4711.25"
    body = orjson.dumps(
        {"id": MARK, "inputs": [{"name": "X", "datatype": "FP32", "shape": [1, 2], "data": [4711.25, 1]}]}
    )

    async def scenario(ring: Ring) -> None:
        payer = await opened(ring)
        good = await ring.send(payer.voucher(500), key=MARK, body=body, more=[("x-patient", MARK)])
        assert good.status_code == 200
        failed = await ring.send(payer.voucher(600), key=MARK + "2", body=b"13", path="/diagnose")
        assert failed.status_code == 500 and "13" not in failed.text
        unreadable = await ring.send(payer.voucher(600), key=MARK + "3", body=MARK.encode(), path="/diagnose")
        assert (unreadable.status_code, MARK in unreadable.text) == (422, False)
        for header in ("leben-receipt", "payment-response"):
            text = orjson.dumps(decode_header(good.headers[header]))
            assert MARK.encode() not in text and number not in text
        state = await ring.state()
        stored = b"".join(name + value for name, value in state["store"].items()) + str(state["journal"]).encode()
        with ring.ledger.database.read() as conn:
            tables = [name for (name,) in conn.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'table'")]
            stored += b"".join(
                str(conn.exec_driver_sql(f"SELECT * FROM {name}").fetchall()).encode()  # noqa: S608
                for name in tables
            )
        assert MARK.encode() not in stored and number not in stored
        secrets = [bytes.fromhex(signer.secret()) for signer in (Signer(b"\2" * 32), Signer(b"\7" * 32))]
        for secret in secrets:
            assert secret not in stored and secret.hex().encode() not in stored and secret.hex() not in caplog.text
        signature = payer.voucher(500).voucher.signature.hex()
        assert signature not in caplog.text

    on_ring(scenario)


words = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=40),
    st.sampled_from(["0x", "0x" + "00" * 20, "0x" + "ff" * 32, "0x" + "11" * 65, "1" * 39, "-1", "1e9", MARK]),
    st.lists(st.integers(0, 3), max_size=3),
    st.dictionaries(st.text(max_size=5), st.integers(0, 3), max_size=3),
)


def paths(value: Any, way: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every field of a tree, by the names that lead to it."""
    if not isinstance(value, dict):
        return [way]
    return [path for name, inner in value.items() for path in [(*way, name), *paths(inner, (*way, name))]]


def test_case_39_whatever_is_changed_in_a_good_payment_it_is_refused_in_json(
    tmp_path: Path, store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Mutations of valid payments, one to three fields at once, sent keyed and unkeyed: never 2xx, never 5xx."""
    caplog.set_level(logging.INFO)
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        ring = runner.run(stack.enter_async_context(open_ring(tmp_path, store_url)))
        try:
            payer = runner.run(opened(ring))
            other = Payer(ring.quote)
            ring.ledger.fund(other.signer.address, 100_000)
            goods = [tree(payment) for payment in (payer.voucher(500), other.deposit(400, 4_000), payer.refund(100))]
            before = runner.run(ring.state())

            @settings(max_examples=examples(300), suppress_health_check=list(HealthCheck))
            @given(data=st.data(), kind=st.sampled_from(range(3)), key=st.booleans())
            def check(data: st.DataObject, kind: int, key: bool) -> None:
                whole = orjson.loads(orjson.dumps(goods[kind]))
                changes = data.draw(
                    st.lists(st.tuples(st.sampled_from(paths(whole)), words | st.just(...)), min_size=1, max_size=3)
                )
                for way, value in changes:
                    spot = whole
                    for name in way[:-1]:
                        spot = spot.get(name) if isinstance(spot, dict) else None
                    if not isinstance(spot, dict):
                        continue
                    if value is ...:
                        spot.pop(way[-1], None)
                    else:
                        spot[way[-1]] = value
                if whole == goods[kind]:
                    return
                header = encoded(json.dumps(whole))
                method = "GET" if kind == 2 else "POST"
                code_of(runner.run(ring.send(header, key="fuzz" if key else None, method=method)))

            check()
            assert runner.run(ring.state()) == before
        finally:
            runner.run(stack.aclose())
    assert MARK not in caplog.text
