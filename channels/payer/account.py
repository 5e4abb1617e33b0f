"""`Account`: a payer's or an owner's own view of its money on a mesh, and the way to take it out, by signed requests.

Reads carry EIP-712 `Read`; what moves money is signed once, under a random nonce, and sent again after a lost reply: it
cannot move twice. Amounts are atomic units. Used by `leben statement`, `earnings`, `withdraw`, `receipt`.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import httpx

from channels.errors import ChannelError
from channels.protocol import (
    Json,
    Signer,
    checksummed,
    finalize_digest,
    initiate_digest,
    payout_digest,
    read_digest,
    split_payout_digest,
)
from channels.receipts import ReceiptFile

TRIES = 4
PAUSE_S = 0.5


class AccountRefused(ChannelError):
    """The mesh refused a read or a withdrawal; `code` is its own."""


@dataclass(frozen=True, slots=True)
class Mesh:
    """What a mesh says of itself: the ledger's chain and the address that signs receipts."""

    chain_id: int
    receipts: str
    asset: str = ""
    split: str = ""
    """The contract that pays owners, where there is one: what an owner signs is good for it alone."""


class Account:
    """One signer's account on one mesh.

    Args:
        client: its base URL is the mesh's.
        signer: whose account.
    """

    def __init__(self, client: httpx.AsyncClient, signer: Signer) -> None:
        self._client, self._signer = client, signer
        self._mesh: Mesh | None = None

    async def mesh(self) -> Mesh:
        """The mesh's own facts, asked once."""
        if self._mesh is None:
            said = (await self._send("GET", "/v1/catalogue"))["mesh"]
            receipts = checksummed(said["receipts"])
            if receipts is None:
                raise AccountRefused("bad_mesh", "the mesh names no address that signs its receipts")
            asset, split = (checksummed(str(said.get(one, ""))) or "" for one in ("asset", "split"))
            self._mesh = Mesh(int(said["network"].removeprefix("eip155:")), receipts, asset, split)
        return self._mesh

    async def channel(self, channel: str) -> Json:
        """A channel of this payer."""
        return await self._read(f"/v1/channels/{channel}")

    async def receipt(self, call_id: str) -> ReceiptFile:
        """A receipt with its proofs."""
        return ReceiptFile.from_json(await self._read(f"/v1/receipts/{call_id}"))

    async def epoch(self, number: int) -> Json:
        """A settled epoch: its root, and what it paid this owner."""
        return await self._read(f"/v1/epochs/{number}")

    async def statement(self, begins: str = "", ends: str = "", owner: str = "") -> AsyncIterator[Json]:
        """Pages of charges and shares, from and to ISO 8601 times; the operator may name another owner."""
        words = {"from": begins, "to": ends, "owner": owner or self._signer.address}
        after: int | None = 0
        while after is not None:
            page = await self._read("/v1/statements", words | {"after": str(after)})
            yield page
            after = page["next"]

    async def earnings(self) -> Json:
        """What this owner earned, and what it can withdraw now."""
        return await self._read(f"/v1/earnings/{self._signer.address}")

    async def withdraw_earnings(self, to: str, amount: int) -> Json:
        """Moves earnings to a wallet; gives the ledger's transaction and what is left."""
        owner, nonce, mesh = str(self._signer.address), secrets.randbits(128), await self.mesh()
        asked = (owner, to, amount, nonce)
        digest = payout_digest(mesh.chain_id, *asked)
        if mesh.split:
            digest = split_payout_digest(mesh.chain_id, mesh.split, mesh.asset, *asked)
        signature = self._signer.sign(digest)
        return await self._move(f"/v1/earnings/{owner}/withdraw", nonce, signature, {"to": to, "amount": str(amount)})

    async def initiate(self, channel: str, amount: int) -> Json:
        """Starts the withdrawal of a channel's money: it takes no call any more."""
        nonce, chain_id = secrets.randbits(128), (await self.mesh()).chain_id
        signature = self._signer.sign(initiate_digest(chain_id, channel, amount, nonce))
        return await self._move(f"/v1/channels/{channel}/withdraw/initiate", nonce, signature, {"amount": str(amount)})

    async def finalize(self, channel: str) -> Json:
        """Ends a withdrawal whose delay has passed: what was not charged is in the wallet."""
        nonce, chain_id = secrets.randbits(128), (await self.mesh()).chain_id
        signature = self._signer.sign(finalize_digest(chain_id, channel, nonce))
        return await self._move(f"/v1/channels/{channel}/withdraw/finalize", nonce, signature, {})

    async def _read(self, path: str, words: dict[str, str] | None = None) -> Json:
        issued_s = int(time.time())
        signature = self._signer.sign(read_digest((await self.mesh()).chain_id, path, issued_s))
        headers = {"leben-read-issued": str(issued_s), "leben-read-signature": "0x" + signature.hex()}
        query = f"?{urlencode(words)}" if words else ""
        return await self._send("GET", path + query, headers=headers)

    async def _move(self, path: str, nonce: int, signature: bytes, words: Json) -> Json:
        return await self._send("POST", path, json=words | {"nonce": str(nonce), "signature": "0x" + signature.hex()})

    async def _send(self, method: str, path: str, **words: Any) -> Json:
        """Sends the same request until the mesh has answered it: a 503 or a lost reply is asked again."""
        for left in reversed(range(TRIES)):
            try:
                answer = await self._client.request(method, path, auth=None, **words)
            except httpx.TransportError as error:
                if left == 0:
                    raise AccountRefused("no_answer", "the mesh does not answer: is it running?") from error
            else:
                if answer.status_code != 503 or left == 0:
                    return _read(answer)
            await asyncio.sleep(PAUSE_S)
        raise AssertionError("unreachable")


def _read(answer: httpx.Response) -> Json:
    try:
        said: Json = answer.json()
    except ValueError as error:
        raise AccountRefused("no_answer", f"no mesh is here: {answer.status_code} without JSON") from error
    if answer.status_code != 200:
        raise AccountRefused(str(said.get("code")), str(said.get("error")))
    return said
