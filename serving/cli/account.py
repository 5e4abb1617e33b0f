"""`leben receipt`, `statement`, `earnings` and `withdraw`: one's own money on a mesh, by the key that it belongs to.

Each command reads a key file and asks the mesh over HTTP, as anybody would from anywhere; only `receipt verify` asks
nobody.
"""

from __future__ import annotations

import asyncio
import csv
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar

import httpx
import orjson
import typer
from rich.table import Table

from channels.payer import Account
from channels.protocol import Signer
from channels.receipts import ReceiptFile, check_sequence
from serving.cli.console import HERE, Data, err, fail, out
from serving.cli.ledger import checked_address
from serving.cluster import data_folder
from serving.config import Settings

receipt_app = typer.Typer(no_args_is_help=True, help="Receipts: fetch one with its proofs, and check it offline.")
earnings_app = typer.Typer(no_args_is_help=True, help="What an owner of knowledge, data or compute has earned.")
withdraw_app = typer.Typer(no_args_is_help=True, help="Take a channel's money back without the mesh's consent.")

Key = Annotated[Path, typer.Option("--key", help="File of the key that it belongs to.", exists=False)]
Url = Annotated[str, typer.Option("--url", help="The mesh; by default the one that runs on --data.")]
Id = Annotated[str, typer.Argument(help="0x and 64 hex digits.")]
As = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
T = TypeVar("T")


@receipt_app.command("get")
def receipt_get(
    call: Id,
    key: Key,
    file: Annotated[Path, typer.Option("--out", help="Where to write it.")] = Path("receipt.json"),
    url: Url = "",
    data: Data = HERE,
) -> None:
    """Fetch a receipt with its proofs and write it to a file that can be checked offline."""
    found = asked(key, url, data, lambda account: account.receipt(call))
    file.write_bytes(orjson.dumps(found.to_json(), option=orjson.OPT_INDENT_2))
    settled = f"settled in epoch {found.proof.epoch}" if found.proof else "not settled yet: fetch it again later"
    print(f"{file}: {settled}")


@receipt_app.command("verify")
def receipt_verify(
    files: Annotated[list[Path], typer.Argument(help="Files that `leben receipt get` wrote.")],
    mesh: Annotated[str, typer.Option("--mesh", help="The address that signs the mesh's receipts.")],
    root: Annotated[str, typer.Option("--root", help="The Merkle root of the receipt's epoch, from the ledger.")] = "",
) -> None:
    """Check receipts offline: signature, chain and inclusion; of several on one channel, that none is missing."""
    signer, held = checked_address(mesh), {file: _receipt_file(file) for file in files}
    findings = [(file.name, one) for file, receipt in held.items() for one in receipt.check(signer, root or None)]
    findings += [("", one) for one in check_sequence(list(held.values()))]
    words = {True: "[green]holds[/]", False: "[red]WRONG[/]", None: "open"}
    table = Table("file", "checked", "", "")
    for name, one in findings:
        table.add_row(name, one.what, words[one.sound], one.why)
    out.print(table)
    if any(one.sound is False for _, one in findings):
        fail("this is not a receipt of that mesh, or not in that epoch")


def statement(
    key: Key,
    begins: Annotated[str, typer.Option("--from", help="ISO 8601 date or time, UTC.")] = "",
    ends: Annotated[str, typer.Option("--to", help="The first moment that is not in it.")] = "",
    owner: Annotated[str, typer.Option(help="Another address; the operator's key alone may.")] = "",
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV instead of a table.")] = False,
    url: Url = "",
    data: Data = HERE,
) -> None:
    """Show what a payer was charged and what an owner earned, line by line."""

    async def pages(account: Account) -> list[dict[str, Any]]:
        found = []
        with err.status("reading") as status:
            async for page in account.statement(begins, ends, owner):
                found += page["lines"]
                status.update(f"reading: {len(found)} lines")
        return found

    lines = asked(key, url, data, pages)
    if as_csv:
        names = list(lines[0]) if lines else ["number"]
        table = csv.DictWriter(sys.stdout, names)
        table.writeheader()
        table.writerows(lines)
        return
    _statement_table(lines)


@earnings_app.command("show")
def earnings_show(key: Key, url: Url = "", data: Data = HERE, json: As = False) -> None:
    """Show what an owner earned by DApp and carrier, and what it can withdraw."""
    found = asked(key, url, data, lambda account: account.earnings())
    if json:
        print(orjson.dumps(found).decode())
        return
    table = Table("epoch", "DApp", "carrier", title=f"earned by {found['owner']}, in atomic units")
    table.add_column("amount", justify="right")
    for row in found["epochs"]:
        table.add_row(str(row["epoch"]), row["dapp"], row["carrier"], row["amount"])
    table.add_section()
    for row in found["totals"]:
        table.add_row("all", row["dapp"], row["carrier"], row["amount"])
    table.add_section()
    table.add_row("to withdraw", "", "", found["available"])
    out.print(table)


@earnings_app.command("withdraw")
def earnings_withdraw(
    key: Key,
    to: Annotated[str, typer.Option("--to", help="The wallet that gets it; the owner's own by default.")] = "",
    amount: Annotated[str, typer.Option("--amount", help="Atomic units; everything by default.")] = "",
    url: Url = "",
    data: Data = HERE,
) -> None:
    """Move earnings to a wallet."""

    async def move(account: Account) -> dict[str, Any]:
        found = await account.earnings()
        wanted = whole(amount) if amount else int(found["available"])
        if wanted == 0:
            fail("there is nothing to withdraw: earnings arrive when the mesh settles")
        return await account.withdraw_earnings(checked_address(to) if to else found["owner"], wanted)

    done = asked(key, url, data, move)
    print(f"moved {done['amount']}, transaction {done['transaction']}; {done['available']} left")


@withdraw_app.command("start")
def withdraw_start(
    channel: Id,
    key: Key,
    amount: Annotated[str, typer.Option("--amount", help="Atomic units; everything unclaimed by default.")] = "",
    url: Url = "",
    data: Data = HERE,
) -> None:
    """Give notice: the channel takes no call any more, and what it owes is claimed."""

    async def start(account: Account) -> dict[str, Any]:
        found = await account.channel(channel)
        wanted = whole(amount) if amount else int(found["balance"]) - int(found["claimed"])
        await account.initiate(channel, wanted)
        return await account.channel(channel)

    pending = asked(key, url, data, start)["withdrawal"]
    when = datetime.fromtimestamp(pending["finalizeFrom"], UTC).isoformat()
    print(f"withdrawing up to {pending['amount']}; from {when} on: leben withdraw finish {channel} --key {key}")


@withdraw_app.command("finish")
def withdraw_finish(channel: Id, key: Key, url: Url = "", data: Data = HERE) -> None:
    """Take the money, once the notice has passed."""

    async def finish(account: Account) -> tuple[dict[str, Any], dict[str, Any]]:
        before = await account.channel(channel)
        return before, await account.finalize(channel)

    before, after = asked(key, url, data, finish)
    print(
        f"{int(before['balance']) - int(after['balance'])} are back in the wallet, transaction {after['transaction']}"
    )


def asked(key: Path, url: str, data: Path, step: Callable[[Account], Awaitable[T]]) -> T:
    """What a step on the account of a key gives; the mesh is found by its URL or its data folder."""
    if not key.is_file():
        fail(f"there is no key file {key}")
    signer = Signer.from_file(key, Settings(data=data).key_password.get_secret_value())
    base = url or _running(data)

    async def run() -> T:
        async with httpx.AsyncClient(base_url=base, timeout=60) as client:
            return await step(Account(client, signer))

    return asyncio.run(run())


def _running(data: Path) -> str:
    facts = data_folder.running(Settings(data=data))
    if facts is None:
        fail(f"no mesh runs on {data}: start it with leben up --data {data}, or name one with --url")
    return str(facts["url"])


def _receipt_file(path: Path) -> ReceiptFile:
    try:
        return ReceiptFile.from_json(orjson.loads(path.read_bytes()))
    except orjson.JSONDecodeError:
        fail(f"{path} is not JSON: fetch it with leben receipt get")


def _statement_table(lines: list[dict[str, Any]]) -> None:
    table = Table("time (UTC)", "DApp", "carrier", "epoch", "receipt", title="statement, in atomic units")
    table.add_column("amount", justify="right")
    sums: dict[str, int] = {}
    for line in lines:
        when = datetime.fromtimestamp(line["at_ms"] / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
        epoch = "-" if line["epoch"] is None else str(line["epoch"])
        carrier = line["carrier"] if "carrier" in line else line["role"]  # meshes before 0.2 write `role` alone
        table.add_row(when, line["dapp"], carrier, epoch, line["receipt"][:10], line["amount"])
        sums[carrier] = sums.get(carrier, 0) + int(line["amount"])
    table.add_section()
    for carrier, amount in sums.items():
        table.add_row("charged" if carrier == "payer" else "earned", "", carrier, "", "", str(amount))
    out.print(table)


def whole(raw: str) -> int:
    """A whole number of atomic units, or a plain refusal."""
    if not raw.isascii() or not raw.isdigit():
        fail("an amount is a whole number of atomic units; 1000000 is 1.00")
    return int(raw)
