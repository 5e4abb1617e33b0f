"""Makes and funds payers' wallets: `leben wallet`.

`new` needs a key file alone; `fund` and `show` open the mesh's ledger.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from channels.protocol import Signer
from serving.cli.arguments import HERE, Data, check_address, check_amount, key_password, read_settings
from serving.cli.console import fail

if TYPE_CHECKING:
    from serving.cli.play_money import DemoLedger
    from serving.config import Settings

Address = Annotated[str, typer.Argument(help="The payer's address.")]


def wallet_new(
    file: Annotated[Path, typer.Argument(help="Key file; made if it does not exist.")],
) -> None:
    """Make a wallet's key and print its address."""
    print(Signer.from_file(file, key_password()).address)


def wallet_fund(
    address: Address,
    amount: Annotated[str, typer.Argument(help="Atomic units; 1000000 is 1.00.")],
    data: Data = HERE,
) -> None:
    """Credit a payer on the embedded ledger or, on a dev chain, with its token. The mesh may run or not."""
    units = check_amount(amount)
    with open_money(read_settings(data)) as ledger:
        payer = check_address(address)
        ledger.fund(payer, units)
        print(f"{payer} has {ledger.wallet(payer)}")


def wallet_show(address: Address, data: Data = HERE) -> None:
    """Print what an address holds outside channels, in atomic units."""
    with open_money(read_settings(data), create=False) as ledger:
        print(ledger.wallet(check_address(address)))


def open_money(settings: Settings, create: bool = True) -> AbstractContextManager[DemoLedger]:
    """The ledger of a mesh, SQL or chain, closed at the end of the block; `create` makes a missing SQL ledger."""
    if settings.ledger == "sql":
        if not create and not has_ledger(settings):
            fail(f"there is no ledger in {settings.home}")
        if create:
            from serving.cluster.data_folder import private_home  # a payer's install has not what it imports

            private_home(settings.home)
    from serving.cli import play_money

    return closing(play_money.open_ledger(settings, create))


def has_ledger(settings: Settings) -> bool:
    """True if the mesh's SQL ledger is elsewhere, or in the data folder."""
    return bool(settings.ledger_url.get_secret_value()) or (settings.home / "ledger.db").exists()
