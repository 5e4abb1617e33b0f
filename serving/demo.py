"""The demo: a payer, paid calls on real inputs, a settlement, and proof that all books agree.

Uses the same doors as anyone: HTTP with `channels.client`, the embedded ledger for funding, the treasury's handle to
settle now instead of later. Next: `docs/one-request.md`, which tells the same story in words.
"""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from channels.client import ChannelAuth, Wallet, receipt
from channels.ledger_sql import SqlLedger
from channels.voucher import Signer
from channels.x402 import decode_header
from dapps import ClinicalFile, registry
from serving.app import Mesh, settle

FUNDS = 20_000_000
ROUNDS = 12
"""Calls to each DApp; with the one that fails that makes 25."""

Story = dict[str, Any]


class Demo:
    """Runs the demo on a started mesh.

    Args:
        mesh: started, with both built-in DApps.
        console: where it is told.
    """

    def __init__(self, mesh: Mesh, console: Console) -> None:
        self._mesh, self._console = mesh, console
        self._wallet = Wallet(Signer.generate())
        self._auth = ChannelAuth(self._wallet)

    def run(self) -> Story:
        """The whole story; returns it as plain values, amounts as decimal strings.

        Raises:
            RuntimeError: if the books do not agree to the unit.
        """
        return asyncio.run(self._run())

    async def _run(self) -> Story:
        await asyncio.to_thread(settle)  # what an earlier run may have left
        ledger = SqlLedger.open(self._mesh.settings.sql_url())
        try:
            ledger.fund(self._wallet.address, FUNDS)
            self._console.print(f"payer {self._wallet.address} has {FUNDS}")
            calls = await self._calls()
            settlement = await asyncio.to_thread(settle)
            channel = next(iter(self._auth.channels.values()))
            state = ledger.channel(channel.id)
            if state is None:
                raise RuntimeError("the channel is not on the ledger")
            ledger.verify()
        finally:
            ledger.close()
        terms = self._mesh.terms
        if terms is None:
            raise RuntimeError("the mesh has not started")
        story = {
            "mesh": {"url": self._mesh.settings.url, "network": terms.network, "asset": terms.asset, "ledger": "sql"},
            "calls": calls,
            "channel": {
                "id": channel.id,
                "deposited": str(state.balance),
                "charged": str(channel.charged),
                "claimed": str(state.total_claimed),
            },
            "settlement": {
                "claimed": str(settlement["claimed"]),
                "root": settlement["root"],
                "payouts": [row | {"amount": str(row["amount"])} for row in settlement["payouts"]],
            },
        }
        self._tell(story)
        return story

    async def _calls(self) -> list[Story]:
        url = self._mesh.settings.url
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, console=self._console) as progress:
            bar = progress.add_task("paid calls", total=2 * ROUNDS + 1)
            async with httpx.AsyncClient(base_url=url, auth=self._auth, timeout=120) as client:

                async def one(name: str, file: ClinicalFile) -> Story:
                    call = await self._call(client, name, file)
                    progress.advance(bar)
                    return call

                files = {name: registry.load(name).sample() for name in ("chdr", "strokedr")}
                calls = [await one(name, file) for name, file in files.items()]
                calls.append(await one("strokedr", ClinicalFile(b"This is a text file, not a scan.\n", "scan.dcm")))
                together = [one(name, file) for _ in range(ROUNDS - 1) for name, file in files.items()]
                calls += await asyncio.gather(*together)
        return calls

    async def _call(self, client: httpx.AsyncClient, name: str, file: ClinicalFile) -> Story:
        response = await client.post(f"/v2/models/{name}/diagnose", content=file.data)
        story = {
            "dapp": name,
            "status": response.status_code,
            "price": self._price(name),
            "charged": "0",
            "receipt": None,
        }
        if response.status_code != 200:
            return story | {"finding": f"refused, free: {response.json()['error']}"}
        signed = receipt(response)
        paid = decode_header(response.headers["PAYMENT-RESPONSE"])["extra"]["chargedAmount"]
        return story | {"charged": paid, "receipt": signed.receipt.call_id, "finding": response.json()["summary"]}

    def _price(self, name: str) -> str:
        price = registry.load(name).price
        return str(price.of(price.maximum_items))

    def _tell(self, story: Story) -> None:
        table = Table("DApp", "status", "charged", "receipt", "what was found", title="calls")
        for call in story["calls"]:
            short = (call["receipt"] or "-")[:12]
            table.add_row(call["dapp"], str(call["status"]), call["charged"], short, call["finding"])
        self._console.print(table)
        paid = Table("DApp", "carrier", "owner", "amount", title="who was paid")
        for row in story["settlement"]["payouts"]:
            paid.add_row(row["dapp"], row["carrier"], row["owner"], row["amount"])
        self._console.print(paid)
        sums = {
            "receipts": sum(int(call["charged"]) for call in story["calls"]),
            "channel": int(story["channel"]["charged"]),
            "claim on the ledger": int(story["channel"]["claimed"]),
            "settlement": int(story["settlement"]["claimed"]),
            "paid to owners": sum(int(row["amount"]) for row in story["settlement"]["payouts"]),
        }
        for name, amount in sums.items():
            self._console.print(f"{name:>20}: {amount}")
        if len(set(sums.values())) != 1:
            raise RuntimeError("the books do not agree")
        self._console.print("[green]All books agree to the unit.[/]")
