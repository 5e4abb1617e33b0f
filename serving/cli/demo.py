"""Runs the demo: a payer, paid calls on real inputs, a settlement, a receipt checked offline, an owner's withdrawal.

It calls over HTTP with `channels.payer` as any payer does, funds on the embedded ledger, and settles through the
treasury's handle.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from typing import Any

import httpx
import orjson
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from channels.payer import Account, ChannelAuth, Wallet, receipt
from channels.protocol import Signer, decode_header
from channels.receipts import CARRIERS
from dapps.chdr import phantom
from dapps.chdr.samples import OXIMETRY
from dapps.knowledge import terminal
from dapps.packages import registry
from dapps.strokedr.samples import ADMISSION
from serving.cli.play_money import DemoLedger, open_ledger
from serving.mesh.mesh import Mesh
from serving.mesh.owners import shares
from serving.treasury import settle

FUNDS = 20_000_000
ROUNDS = 12
"""Calls to each DApp; with the call that fails there are 25."""

Story = dict[str, Any]


class Demo:
    """Runs the demo on a started mesh.

    Args:
        mesh: started, with both built-in DApps.
        console: where the results are printed.
    """

    def __init__(self, mesh: Mesh, console: Console) -> None:
        self._mesh, self._console = mesh, console
        self._wallet = Wallet(Signer.generate())
        self._auth = ChannelAuth(self._wallet)
        self._sent: dict[int, str] = {}
        self._decisions: dict[str, Story] = {}

    def run(self) -> Story:
        """Runs the demo; returns its results as plain values, amounts as decimal strings.

        Raises:
            RuntimeError: if the books do not agree to the unit.
        """
        return asyncio.run(self._run())

    async def _run(self) -> Story:
        await asyncio.to_thread(settle)  # charges that an earlier run may have left
        ledger = open_ledger(self._mesh.settings)
        try:
            await asyncio.to_thread(ledger.fund, self._wallet.address, FUNDS)
            self._console.print(f"payer {self._wallet.address} has {FUNDS} atomic units")
            owners = self._owners()
            held = sum(map(ledger.earnings, owners))
            calls = await self._calls()
            settlement = await asyncio.to_thread(settle)
            channel = next(iter(self._auth.channels.values()))
            state = ledger.channel(channel.id, channel.config)
            if state is None:
                raise RuntimeError("the channel is not on the ledger")
            proved = await self._prove(ledger, next(call["receipt"] for call in calls if call["receipt"]))
            balances = {
                "payer": _balance(FUNDS, ledger.wallet(self._wallet.address)),
                "channel": _balance(0, state.left),
                "owners": _balance(held, sum(map(ledger.earnings, owners))),
            }
            paid_out = await self._pay_out(ledger)
            ledger.verify()
        finally:
            ledger.close()
        terms = self._mesh.terms
        if terms is None:
            raise RuntimeError("the mesh has not started")
        story = {
            "mesh": {
                "url": self._mesh.settings.url,
                "network": terms.network,
                "asset": terms.asset,
                "ledger": ledger.kind,
            },
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
            "balances": balances,
            "receipt": proved,
            "withdrawal": paid_out,
        }
        self._print(story)
        return story

    def _owners(self) -> list[str]:
        """Every owner who is paid for a call."""
        rows = [shares(self._mesh.settings, name, registry.load(name)) for name in ("chdr", "strokedr")]
        return sorted({owner for shares_of_dapp in rows for _, owner, _ in shares_of_dapp})

    async def _prove(self, ledger: DemoLedger, call_id: str) -> Story:
        """Checks a receipt as its payer would: with the mesh's address and the root on the ledger."""
        async with httpx.AsyncClient(base_url=self._mesh.settings.url, timeout=60, trust_env=False) as client:
            account = Account(client, self._wallet.signer)
            file, mesh = await account.receipt(call_id), (await account.mesh()).receipts
        if file.proof is None:
            raise RuntimeError("a settled receipt has no proof")
        root = ledger.root(file.proof.epoch, next(iter(self._auth.channels.values())).config.receiver)
        findings = file.check(mesh, root)
        if not all(finding.sound for finding in findings):
            raise RuntimeError("the receipt does not hold")
        held = {finding.what: finding.why for finding in findings}
        return {"id": call_id, "epoch": file.proof.epoch, "root": root, "mesh": mesh, "holds": held}

    async def _pay_out(self, ledger: DemoLedger) -> Story | None:
        """Withdraws the earnings of an owner whose key the mesh made; None if it made none."""
        settings = self._mesh.settings
        paths = [settings.keys / name for name in ("chdr-knowledge.key", "compute.key", "operator.key")]
        path = next((path for path in paths if path.exists()), None)
        if path is None:
            return None
        owner = Signer.from_file(path, settings.key_password.get_secret_value())
        async with httpx.AsyncClient(base_url=settings.url, timeout=60, trust_env=False) as client:
            account = Account(client, owner)
            available = int((await account.earnings())["available"])
            if available == 0:
                return None
            before = ledger.wallet(owner.address)
            done = await account.withdraw_earnings(owner.address, available)
        if ledger.wallet(owner.address) - before != available:
            raise RuntimeError("the owner's wallet did not get its earnings")
        return {"owner": owner.address, "key": path.name, "amount": done["amount"], "transaction": done["transaction"]}

    async def _calls(self) -> list[Story]:
        url = self._mesh.settings.url
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, console=self._console) as progress:
            bar = progress.add_task("paid calls", total=2 * ROUNDS + 1)
            async with httpx.AsyncClient(base_url=url, auth=self._auth, timeout=120, trust_env=False) as client:

                async def send(name: str, what: str, body: bytes) -> Story:
                    call = await self._call(client, name, body)
                    self._sent[id(call)] = what
                    progress.advance(bar)
                    return call

                inputs = list(self._inputs())
                calls = [await send(*inputs[0]), await send(*inputs[1])]
                calls.append(await send("strokedr", "text named scan.dcm", b"This is a text file, not a scan.\n"))
                calls += await asyncio.gather(*(send(*row) for row in inputs[2:]))
        return calls

    def _inputs(self) -> Iterator[tuple[str, str, bytes]]:
        """The inputs: generated phonocardiograms with and without a murmur, and a real head CT slice.

        The first of each has an invented record, so that a guideline weighs both.
        """
        scan = registry.load("strokedr").sample()
        for number in range(ROUNDS):
            murmur = number % 2 == 0
            sound = phantom.phonocardiogram(murmur=murmur, seed=number)
            what = "heart sound, murmur" if murmur else "heart sound, normal"
            wav = phantom.wav(sound)
            yield "chdr", *((what, wav) if number else (f"{what}, oximetry", _case(wav, OXIMETRY)))
            slice_ = "head CT slice, real"
            yield (
                "strokedr",
                *((slice_, scan.data) if number else (f"{slice_}, admission", _case(scan.data, ADMISSION))),
            )

    async def _call(self, client: httpx.AsyncClient, name: str, body: bytes) -> Story:
        response = await client.post(f"/v2/models/{name}/diagnose", content=body)
        story = {
            "dapp": name,
            "status": response.status_code,
            "price": self._price(name),
            "charged": "0",
            "receipt": None,
        }
        if response.status_code != 200:
            return story | {"finding": f"refused: {response.json()['error']}"}
        if (decision := response.json().get("decision")) is not None:
            self._decisions[name] = decision
        signed = receipt(response)
        paid = decode_header(response.headers["PAYMENT-RESPONSE"])["extra"]["chargedAmount"]
        return story | {
            "charged": paid,
            "receipt": signed.receipt.call_id,
            "finding": _found(response.json()["findings"][0]),
        }

    def _price(self, name: str) -> str:
        return str(registry.load(name).price.max_price)

    def _print(self, story: Story) -> None:
        table = Table("DApp", "sent", "found", title="calls, in atomic units: 1000000 is 1.00", box=SIMPLE)
        for name in ("quoted", "charged"):
            table.add_column(name, justify="right")
        table.add_column("receipt")
        for call in story["calls"]:
            short = (call["receipt"] or "-")[:8]
            table.add_row(call["dapp"], self._sent[id(call)], call["finding"], call["price"], call["charged"], short)
        self._console.print(table)
        for decision in self._decisions.values():
            self._console.print(terminal.view(decision))
        payouts_table(self._console, story["settlement"])
        where = Table("in atomic units", title="balances", box=SIMPLE)
        for when in ("before", "after"):
            where.add_column(when, justify="right")
        for who, both in story["balances"].items():
            where.add_row(who, both["before"], both["after"])
        self._console.print(where)
        sums = {
            "what the receipts say was charged": sum(int(call["charged"]) for call in story["calls"]),
            "what the channel was charged": int(story["channel"]["charged"]),
            "what was claimed on the ledger": int(story["channel"]["claimed"]),
            "what the settlement split": int(story["settlement"]["claimed"]),
            "what the owners were paid": sum(int(row["amount"]) for row in story["settlement"]["payouts"]),
        }
        held = {who: [int(amount) for amount in both.values()] for who, both in story["balances"].items()}
        sums["what left payer and channel"] = held["payer"][0] - held["payer"][1] - held["channel"][1]
        sums["what came to the owners"] = held["owners"][1] - held["owners"][0]
        for name, amount in sums.items():
            self._console.print(f"{name:>34}: {amount:>8}")
        if len(set(sums.values())) != 1:
            raise RuntimeError("the books do not agree")
        self._console.print("[green]All books agree to the unit.[/] Whole receipt ids: --json FILE.")
        proved, paid_out = story["receipt"], story["withdrawal"]
        self._console.print(f"\nreceipt {proved['id'][:10]}… checked offline:", highlight=False)
        for what, why in proved["holds"].items():
            self._console.print(f"{what:>12} [green]holds[/]: {why}", highlight=False)
        if paid_out:
            line = f"{paid_out['key']} took {paid_out['amount']} out: transaction {paid_out['transaction'][:10]}…"
            self._console.print(line, highlight=False)


def payouts_table(console: Console, settlement: Story) -> None:
    """Prints the payouts of a settlement."""
    table = Table("DApp", "carrier", "owner", title="who was paid, in atomic units")
    table.add_column("amount", justify="right")
    for row in sorted(settlement["payouts"], key=lambda row: (row["dapp"], CARRIERS.index(row["carrier"]))):
        table.add_row(row["dapp"], row["carrier"], row["owner"], str(row["amount"]))
    table.add_section()
    table.add_row("all", "", "", str(settlement["claimed"]))
    console.print(table)


def _balance(before: int, after: int) -> Story:
    return {"before": str(before), "after": str(after)}


def _case(file: bytes, record: Story) -> bytes:
    return orjson.dumps({"file": base64.b64encode(file).decode(), "record": record})


def _found(finding: Story) -> str:
    present = {True: "present", False: "absent", None: "unclear"}[finding["present"]]
    return f"{finding['label']}: {present} ({finding['probability']:.2f})"
