"""Nothing of a patient is kept anywhere: planted words go in with every kind of call and are found nowhere after it."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path

import httpx
import pydicom
import redis

from channels.payer import ChannelAuth, receipt
from channels.protocol.x402 import decode_header
from dapps.packages import registry
from serving.config.settings import Settings
from tests.conftest import RunningMesh

WORDS = ("CANARYNAME^ANNA", "CANARY-MRN-4711", "canary-key-0815", "canary/path", "canary-header", "canary free text")
STROKEDR, CHDR = "/v2/models/strokedr", "/v2/models/chdr"


def scan() -> bytes:
    """The sample CT slice with a patient in its header."""
    data = pydicom.dcmread(io.BytesIO(registry.load("strokedr").sample().data))
    data.PatientName, data.PatientID, data.StudyDescription = WORDS[0], WORDS[1], WORDS[5]
    out = io.BytesIO()
    data.save_as(out)
    return out.getvalue()


def found_in(raw: bytes, words: list[bytes]) -> list[bytes]:
    return [word for word in words if word in raw]


def test_planted_words_and_keys_are_found_nowhere(mesh: RunningMesh) -> None:
    wallet = mesh.payer()
    auth = ChannelAuth(wallet)
    headers = {"X-Patient": WORDS[4], "User-Agent": WORDS[4]}
    tensor = {"name": WORDS[1], "datatype": "FP32", "shape": [1], "data": [1]}
    calls = [
        (f"{STROKEDR}/diagnose", scan(), {"Idempotency-Key": WORDS[2]}),
        (f"{STROKEDR}/diagnose", scan(), {"Idempotency-Key": WORDS[2]}),
        (f"{STROKEDR}/diagnose?patient={WORDS[3]}", WORDS[5].encode(), {}),
        (f"{CHDR}/infer", json.dumps({"id": WORDS[1], "inputs": [tensor]}).encode(), {}),
        (f"{CHDR}/infer", json.dumps({WORDS[5]: WORDS[0]}).encode(), {}),
        (f"{CHDR}/versions/{WORDS[3]}/infer", b"{}", {}),
        (f"{CHDR}/{WORDS[3]}", b"{}", {}),
    ]

    async def run() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=mesh.url, auth=auth, timeout=120, headers=headers) as client:
            return [await client.post(path, content=body, headers=more) for path, body, more in calls]

    answers = asyncio.run(run())
    assert [answer.status_code for answer in answers] == [200, 200, 422, 400, 400, 404, 404]
    first, again = (receipt(answer).receipt for answer in answers[:2])
    assert first.call_id == again.call_id
    mesh.leben("settle")
    mesh.leben("audit", "verify")
    lines = [json.loads(line) for line in mesh.leben("logs", first.call_id).splitlines()]
    assert [line["from"] for line in lines] == ["audit", "audit", "receipt", "settlement"]
    assert {line["receipt"] for line in lines[:3]} == {first.call_id} and lines[2]["seq"] == first.seq
    assert lines[3]["status"] == "closed" and lines[3]["root"]

    words = [word.encode() for word in (*WORDS, WORDS[0].replace("^", " "), WORDS[0].split("^")[0])]
    lines = [answer.headers.get(name, "") for answer in answers for name in ("payment-response", "leben-receipt")]
    texts = {"answers": b"".join(answer.content for answer in answers)}
    texts["headers"] = b"".join(json.dumps(decode_header(header)).encode() for header in lines if header)
    settings = Settings(data=mesh.data)
    with redis.Redis.from_url(settings.redis_url()) as store:
        texts["names in the store"] = b"\n".join(store.scan_iter())
    texts["own metrics"] = httpx.get(f"http://127.0.0.1:{mesh.port + 4}/metrics", timeout=30).raise_for_status().content
    texts["metrics"] = httpx.get(f"http://127.0.0.1:{mesh.port + 2}/metrics", timeout=30).raise_for_status().content
    for folder in (settings.home, settings.runtime):
        texts |= {str(path): path.read_bytes() for path in files(folder)}
    texts["what the mesh said"] = mesh.log.read_bytes()
    # What should be found is found: these are the places where a word of a caller would be.
    for place in ("audit/", "ledger.db", "store/", "names in the store", "headers"):
        assert any(place in name and found_in(raw, [first.call_id.encode()]) for name, raw in texts.items()), place
    assert any("session_" in name and b"replica" in raw for name, raw in texts.items())
    assert not {name: hits for name, raw in texts.items() if (hits := found_in(raw, words))}

    secrets = [path.read_bytes().strip() for path in settings.keys.glob("*.key")] + [wallet.signer.secret().encode()]
    assert len(secrets) > 4
    readable = {name: raw for name, raw in texts.items() if not name.startswith(str(settings.keys))}
    assert not [name for name, raw in readable.items() if found_in(raw, secrets)]


def files(folder: Path) -> list[Path]:
    return [
        path for path in folder.rglob("*") if path.is_file() and not path.is_symlink() and path.stat().st_size < 2**26
    ]
