"""Shows and moves one's own money on a mesh: `leben receipt`, `statement`, `earnings` and `withdraw`.

Each command signs with a key file and calls the mesh over HTTP, from any machine; `receipt verify` works offline.
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

from channels import private_files
from channels.payer import Account
from channels.protocol import Signer
from channels.receipts import ReceiptFile, check_sequence
from serving.cli.arguments import HERE, Data, Id, Json, Key, Url, check_address, check_amount, key_password, uses_proxy
from serving.cli.console import err, fail, out

T = TypeVar("T")


def receipt_get(
    call: Id,
    key: Key,
    file: Annotated[Path, typer.Option("--out", help="File to write.")] = Path("receipt.json"),
    url: Url = "",
    data: Data = HERE,
) -> None:
    """Fetch a receipt with its proofs into a file that can be checked offline."""
    receipt = call_account(key, url, data, lambda account: account.receipt(call))
    private_files.write(file, orjson.dumps(receipt.to_json(), option=orjson.OPT_INDENT_2))
    settled = f"settled in epoch {receipt.proof.epoch}" if receipt.proof else "not settled yet: fetch it again later"
    print(f"{file}: {settled}")


def receipt_verify(
    files: Annotated[list[Path], typer.Argument(help="Files that `leben receipt get` wrote.")],
    mesh: Annotated[str, typer.Option("--mesh", help="The address that signs the mesh's receipts.")],
    root: Annotated[str, typer.Option("--root", help="The Merkle root of the receipt's epoch, from the ledger.")] = "",
) -> None:
    """Check receipts offline: signature, chain, inclusion, and that none of a channel is missing between them."""
    signer, receipts = check_address(mesh), {file: _receipt_file(file) for file in files}
    findings = [(file.name, row) for file, receipt in receipts.items() for row in receipt.check(signer, root or None)]
    findings += [("", row) for row in check_sequence(list(receipts.values()))]
    words = {True: "[green]holds[/]", False: "[red]WRONG[/]", None: "open"}
    table = Table("file", "checked", "", "")
    for name, row in findings:
        table.add_row(name, row.what, words[row.sound], row.why)
    out.print(table)
    if any(row.sound is False for _, row in findings):
        fail("this is not a receipt of that mesh, or not in that epoch")


def statement(
    key: Key,
    begins: Annotated[str, typer.Option("--from", help="ISO 8601 date or time, UTC.")] = "",
    ends: Annotated[str, typer.Option("--to", help="ISO 8601 date or time, UTC; not included.")] = "",
    owner: Annotated[str, typer.Option(help="Another address, with the operator's key.")] = "",
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV instead of a table.")] = False,
    url: Url = "",
    data: Data = HERE,
) -> None:
    """Show what a payer was charged and what an owner earned, line by line."""

    async def pages(account: Account) -> list[dict[str, Any]]:
        lines: list[dict[str, Any]] = []
        with err.status("reading") as status:
            async for page in account.statement(begins, ends, owner):
                lines += page["lines"]
                status.update(f"reading: {len(lines)} lines")
        return lines

    lines = call_account(key, url, data, pages)
    if as_csv:
        names = list(lines[0]) if lines else ["number"]
        table = csv.DictWriter(sys.stdout, names)
        table.writeheader()
        table.writerows(lines)
        return
    _statement_table(lines)


def earnings_show(key: Key, url: Url = "", data: Data = HERE, json: Json = False) -> None:
    """Show what an owner earned by DApp and carrier, and what can be withdrawn."""
    earnings = call_account(key, url, data, lambda account: account.earnings())
    if json:
        print(orjson.dumps(earnings).decode())
        return
    table = Table("epoch", "DApp", "carrier", title=f"earned by {earnings['owner']}, in atomic units")
    table.add_column("amount", justify="right")
    for row in earnings["epochs"]:
        table.add_row(str(row["epoch"]), row["dapp"], row["carrier"], row["amount"])
    table.add_section()
    for row in earnings["totals"]:
        table.add_row("all", row["dapp"], row["carrier"], row["amount"])
    table.add_section()
    table.add_row("to withdraw", "", "", earnings["available"])
    out.print(table)


def earnings_withdraw(
    key: Key,
    to: Annotated[str, typer.Option("--to", help="The wallet that gets it; the owner's own by default.")] = "",
    amount: Annotated[str, typer.Option("--amount", help="Atomic units; everything by default.")] = "",
    url: Url = "",
    data: Data = HERE,
) -> None:
    """Move earnings to a wallet."""

    async def move(account: Account) -> dict[str, Any]:
        earnings = await account.earnings()
        units = check_amount(amount) if amount else int(earnings["available"])
        if units == 0:
            fail("there is nothing to withdraw: earnings arrive when the mesh settles")
        return await account.withdraw_earnings(check_address(to) if to else earnings["owner"], units)

    moved = call_account(key, url, data, move)
    print(f"moved {moved['amount']}, transaction {moved['transaction']}; {moved['available']} left")


def withdraw_start(
    channel: Id,
    key: Key,
    amount: Annotated[str, typer.Option("--amount", help="Atomic units; everything unclaimed by default.")] = "",
    url: Url = "",
    data: Data = HERE,
) -> None:
    """Give notice: the channel takes no more calls, and the mesh claims what it owes."""

    async def start(account: Account) -> dict[str, Any]:
        state = await account.channel(channel)
        units = check_amount(amount) if amount else int(state["balance"]) - int(state["claimed"])
        await account.initiate(channel, units)
        return await account.channel(channel)

    pending = call_account(key, url, data, start)["withdrawal"]
    when = datetime.fromtimestamp(pending["finalizeFrom"], UTC).isoformat()
    print(f"withdrawing up to {pending['amount']}; from {when} on: leben withdraw finish {channel} --key {key}")


def withdraw_finish(channel: Id, key: Key, url: Url = "", data: Data = HERE) -> None:
    """Take the money, once the notice has passed."""

    async def finish(account: Account) -> tuple[dict[str, Any], dict[str, Any]]:
        before = await account.channel(channel)
        return before, await account.finalize(channel)

    before, after = call_account(key, url, data, finish)
    units = int(before["balance"]) - int(after["balance"])
    print(f"{units} are back in the wallet, transaction {after['transaction']}")


def call_account(key: Path, url: str, data: Path, step: Callable[[Account], Awaitable[T]]) -> T:
    """Runs a step on the account of a key, at the mesh of a URL or of a data folder."""
    if not key.is_file():
        fail(f"there is no key file {key}")
    signer = Signer.from_file(key, key_password())
    base = url or _running(data)

    async def run() -> T:
        async with httpx.AsyncClient(base_url=base, timeout=60, trust_env=uses_proxy(base)) as client:
            return await step(Account(client, signer))

    return asyncio.run(run())


def _running(data: Path) -> str:
    try:
        from serving.cli.arguments import read_settings
        from serving.cluster import data_folder
    except ModuleNotFoundError:  # a payer's install has no settings of a mesh
        fail("name the mesh with --url")
    facts = data_folder.running(read_settings(data))
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
