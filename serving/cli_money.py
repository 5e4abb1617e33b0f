"""`leben wallet` and `leben ledger`: payers' wallets on the embedded ledger, and whether its books add up."""

from __future__ import annotations

from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Annotated

import typer
from eth_utils import is_checksum_address, to_checksum_address

from channels.ledger_sql import SqlLedger
from serving.console import HERE, Data, fail
from serving.settings import Settings

wallet_app = typer.Typer(no_args_is_help=True, help="Payers' wallets on the embedded ledger.")
ledger_app = typer.Typer(no_args_is_help=True, help="The ledger: who has what, and whether it adds up.")


@wallet_app.command("new")
def wallet_new(
    file: Annotated[Path, typer.Argument(help="Where to keep the key; it is made if there is none.")],
) -> None:
    """Make a wallet's key and print its address."""
    from channels.client import Wallet

    print(Wallet.from_file(file).address)


@wallet_app.command("fund", context_settings={"ignore_unknown_options": True})
def wallet_fund(
    address: Annotated[str, typer.Argument(help="The payer's address.")],
    amount: Annotated[str, typer.Argument(help="Atomic units; 1000000 is 1.00.")],
    data: Data = HERE,
) -> None:
    """Credit a payer on the embedded ledger, while the mesh runs or not."""
    with opened_ledger(Settings(data=data)) as ledger:
        if not amount.isascii() or not amount.isdigit():
            fail("an amount is a whole number of atomic units above 0; 1000000 is 1.00")
        ledger.fund(checked_address(address), int(amount))
        print(f"{checked_address(address)} has {ledger.wallet(checked_address(address))}")


@wallet_app.command("show")
def wallet_show(address: Annotated[str, typer.Argument(help="The payer's address.")], data: Data = HERE) -> None:
    """Print what an address holds outside channels, in atomic units."""
    with opened_ledger(Settings(data=data), fresh=False) as ledger:
        print(ledger.wallet(checked_address(address)))


@ledger_app.command("verify")
def ledger_verify(data: Data = HERE) -> None:
    """Recompute the ledger's hash chain and balances; name the first bad entry if there is one."""
    with opened_ledger(Settings(data=data), fresh=False) as ledger:
        count, head = ledger.verify()
    print(f"the ledger adds up: {count} transactions, the last is {head}")


def opened_ledger(settings: Settings, fresh: bool = True) -> AbstractContextManager[SqlLedger]:
    """The mesh's ledger, closed at the end of the block; made if it is not there and `fresh` allows it."""
    if not fresh and not settings.ledger_url.get_secret_value() and not (settings.home / "ledger.db").exists():
        fail(f"there is no ledger in {settings.home}")
    settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    return closing(SqlLedger.open(settings.sql_url()))


def checked_address(raw: str) -> str:
    """A checksummed address, or a plain refusal: a mistyped one would lose the money."""
    try:
        address = str(to_checksum_address(raw))
    except ValueError:
        fail("that is not an address: 0x and 40 hex digits")
    if raw not in (raw.lower(), raw.upper()) and not is_checksum_address(raw):
        fail("the address's checksum is wrong: copy it again")
    return address
