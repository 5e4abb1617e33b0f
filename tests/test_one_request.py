"""One request, from the first 402 to the owners' accounts: the whole product in one test.

Everything is real: the mesh runs as `leben up`, the model is a trained one, the money is on the mesh's ledger.
`docs/one-request.md` tells the same story in words.
"""

from __future__ import annotations

import asyncio

import httpx

from channels.ledger.sql_ledger import SqlLedger
from channels.payer import ChannelAuth, receipt
from channels.protocol.signer import Signer
from channels.protocol.x402 import decode_header
from dapps.packages import registry
from serving.config.settings import Settings
from tests.conftest import RunningMesh


def test_one_request(mesh: RunningMesh) -> None:
    settings = Settings(data=mesh.data, port=mesh.port)
    recording = registry.load("chdr").sample().data

    # 1. Asking is free: a 402 says what the call can cost at most, in which money, and who is paid.
    unpaid = httpx.post(f"{mesh.url}/v2/models/chdr/diagnose", content=recording)
    assert unpaid.status_code == 402
    (quote,) = decode_header(unpaid.headers["payment-required"])["accepts"]
    assert quote["scheme"] == "batch-settlement" and int(quote["amount"]) > 0

    # 2. The payer has money on the ledger, and a client that signs.
    wallet = mesh.payer(funds=1_000_000)
    auth = ChannelAuth(wallet)

    async def call() -> httpx.Response:
        async with httpx.AsyncClient(base_url=mesh.url, auth=auth, timeout=60) as client:
            return await client.post("/v2/models/chdr/diagnose", content=recording)

    # 3. One call: a deposit opens the channel, a voucher pays, the model answers.
    answer = asyncio.run(call())
    assert answer.status_code == 200, answer.text
    report = answer.json()
    (finding,) = report["findings"]
    assert finding["code"] == "murmur" and 0 <= finding["probability"] <= 1
    assert report["notice"].startswith("Research use only")

    # 4. It was charged exactly what it used, and the receipt says so, signed by the mesh.
    paid = decode_header(answer.headers["payment-response"])
    signed = receipt(answer)
    price = registry.load("chdr").price
    charged = price.of(report["items"])
    assert 0 < charged <= int(quote["amount"])
    assert int(paid["extra"]["chargedAmount"]) == signed.receipt.amount == charged
    assert signed.receipt.units == report["items"] and signed.receipt.dapp == "chdr"
    assert signed.verify(
        int(quote["network"].removeprefix("eip155:")), Signer.from_file(settings.keys / "receipt.key").address
    )

    # 5. The mesh tells the payer the same, and tells nobody else.
    state = mesh.channel(wallet, auth)
    assert (state["charged"], state["claimed"], state["receipts"]) == (str(charged), "0", 1)
    stranger = httpx.get(f"{mesh.url}/v1/channels/{state['id']}")
    assert stranger.status_code == 401 and "error" in stranger.json()

    # 6. Settled: the claim, the split and the owners' earnings are on the ledger, to the unit.
    mesh.leben("settle")
    assert mesh.channel(wallet, auth)["claimed"] == str(charged)
    ledger = SqlLedger.open(settings.sql_url())
    try:
        assert ledger.wallet(wallet.address) == 1_000_000 - int(state["balance"])
        for share in signed.receipt.shares:
            assert ledger.earnings(share.owner) >= share.amount
        assert sum(share.amount for share in signed.receipt.shares) == charged
        ledger.verify()
    finally:
        ledger.close()
