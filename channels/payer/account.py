"""Reads a payer's or an owner's records on a mesh, and takes its money out, by signed requests.

A read carries the EIP-712 signature of `Read`. What moves money is signed once, under a random nonce, and that same
request is sent again after a lost response, so it cannot move twice. Amounts are atomic units.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import httpx

from channels.errors import ChannelError
from channels.payer.wallet import read_headers
from channels.protocol import (
    Json,
    Signer,
    checksummed,
    finalize_digest,
    initiate_digest,
    payout_digest,
    split_payout_digest,
)
from channels.receipts import ReceiptFile

TRIES = 4
PAUSE_S = 0.5


class AccountRefused(ChannelError):
    """The mesh refused a read or a withdrawal; `code` is the mesh's own."""


@dataclass(frozen=True, slots=True)
class MeshIdentity:
    """What signatures for one mesh are made with.

    Attributes:
        chain_id: the ledger's.
        receipts: the address that signs receipts.
        asset: the token; empty on an SQL ledger.
        split: the contract that pays owners, where there is one: an owner's signature is valid for it alone.
    """

    chain_id: int
    receipts: str
    asset: str = ""
    split: str = ""


class Account:
    """One signer's account on one mesh.

    Args:
        client: its base URL is the mesh's; its own auth is not used.
        signer: whose account.
        mesh: the address that signs the mesh's receipts, had from its operator. Without it the mesh names its own, and
            one that names another's could use the read there.

    Raises:
        AccountRefused: out of every method, if the mesh refuses or does not answer.
    """

    def __init__(self, client: httpx.AsyncClient, signer: Signer, mesh: str = "") -> None:
        self._client, self._signer, self._expected = client, signer, checksummed(mesh) or mesh
        self._mesh: MeshIdentity | None = None

    async def mesh(self) -> MeshIdentity:
        """The mesh's identity, read once."""
        if self._mesh is None:
            facts = (await self._send("GET", "/v1/catalogue"))["mesh"]
            receipts = checksummed(facts["receipts"])
            if receipts is None:
                raise AccountRefused("bad_mesh", "the mesh names no address that signs its receipts")
            if self._expected and receipts != self._expected:
                raise AccountRefused(
                    "bad_mesh", "the mesh at this address is another one: its receipts have another signer"
                )
            self._mesh = MeshIdentity(
                chain_id=int(facts["network"].removeprefix("eip155:")),
                receipts=receipts,
                asset=checksummed(str(facts.get("asset", ""))) or "",
                split=checksummed(str(facts.get("split", ""))) or "",
            )
        return self._mesh

    async def channel(self, channel: str) -> Json:
        """A channel of this payer."""
        return await self.read(f"/v1/channels/{channel}")

    async def receipt(self, call_id: str) -> ReceiptFile:
        """A receipt with its proofs."""
        return ReceiptFile.from_json(await self.read(f"/v1/receipts/{call_id}"))

    async def epoch(self, number: int) -> Json:
        """A settled epoch: its root, and what it paid this owner."""
        return await self.read(f"/v1/epochs/{number}")

    async def statement(self, begins: str = "", ends: str = "", owner: str = "") -> AsyncIterator[Json]:
        """Pages of charges and shares between two ISO 8601 times; the operator may name another owner."""
        query = {"from": begins, "to": ends, "owner": owner or self._signer.address}
        after: int | None = 0
        while after is not None:
            page = await self.read("/v1/statements", query | {"after": str(after)})
            yield page
            after = page["next"]

    async def earnings(self) -> Json:
        """What this owner has earned, and what it can withdraw now."""
        return await self.read(f"/v1/earnings/{self._signer.address}")

    async def withdraw_earnings(self, to: str, amount: int) -> Json:
        """Moves earnings to a wallet; returns the ledger's transaction and what is left."""
        owner, nonce, mesh = self._signer.address, secrets.randbits(128), await self.mesh()
        if mesh.split:
            digest = split_payout_digest(
                mesh.chain_id, split=mesh.split, token=mesh.asset, owner=owner, to=to, amount=amount, nonce=nonce
            )
        else:
            digest = payout_digest(mesh.chain_id, owner=owner, to=to, amount=amount, nonce=nonce)
        return await self._move(f"/v1/earnings/{owner}/withdraw", nonce, digest, {"to": to, "amount": str(amount)})

    async def initiate(self, channel: str, amount: int) -> Json:
        """Starts the withdrawal of a channel's money; from now on the channel pays for no call."""
        nonce, chain_id = secrets.randbits(128), (await self.mesh()).chain_id
        digest = initiate_digest(chain_id, channel, amount, nonce)
        return await self._move(f"/v1/channels/{channel}/withdraw/initiate", nonce, digest, {"amount": str(amount)})

    async def finalize(self, channel: str) -> Json:
        """Ends a withdrawal whose delay has passed: moves what was not charged to the wallet."""
        nonce, chain_id = secrets.randbits(128), (await self.mesh()).chain_id
        digest = finalize_digest(chain_id, channel, nonce)
        return await self._move(f"/v1/channels/{channel}/withdraw/finalize", nonce, digest, {})

    async def read(self, path: str, query: dict[str, str] | None = None) -> Json:
        """The JSON of any path that only a signed request may read."""
        url, mesh = f"{path}?{urlencode(query)}" if query else path, await self.mesh()
        headers = read_headers(self._signer, url, mesh.chain_id, mesh.receipts)
        return await self._send("GET", url, headers=headers)

    async def _move(self, path: str, nonce: int, digest: bytes, body: Json) -> Json:
        signature = "0x" + self._signer.sign(digest).hex()
        return await self._send("POST", path, json=body | {"nonce": str(nonce), "signature": signature})

    async def _send(self, method: str, path: str, **options: Any) -> Json:
        """Sends the same request again after a 503 or a lost response; follows no redirect with a signed request."""
        for left in reversed(range(TRIES)):
            try:
                response = await self._client.request(method, path, auth=None, follow_redirects=False, **options)
            except httpx.TransportError as error:
                if left == 0:
                    raise AccountRefused("no_answer", "the mesh does not answer: is it running?") from error
            else:
                if response.status_code != 503 or left == 0:
                    return _body(response)
            await asyncio.sleep(PAUSE_S)
        raise AssertionError("unreachable")


def _body(response: httpx.Response) -> Json:
    try:
        body: Json = response.json()
    except ValueError as error:
        if response.has_redirect_location:
            text = f"the mesh is elsewhere: use the address that {response.url} redirects to"
            raise AccountRefused("other_origin", text) from error
        raise AccountRefused("no_answer", f"no mesh is here: {response.status_code} without JSON") from error
    if response.status_code != 200:
        raise AccountRefused(str(body.get("code")), str(body.get("error")))
    return body
