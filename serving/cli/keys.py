"""`leben keys`: the mesh's private keys: what there is, encrypting them, and a new authoriser.

Shows addresses, never a key.
"""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import typer
from rich.table import Table

from channels.journal import Journal
from channels.ledger import SqlLedger
from channels.protocol import Signer, keystore
from serving.cli.console import HERE, Data, fail, out
from serving.cluster import data_folder
from serving.config import Settings

keys_app = typer.Typer(no_args_is_help=True, help="The mesh's private keys.")


@keys_app.command("list")
def keys_list(data: Data = HERE) -> None:
    """Show each key's address, whether its file is encrypted, and what still needs a retired one."""
    settings = Settings(data=data)
    needed = _needed(settings)
    table = Table("file", "address", "encrypted", "still needed for")
    for path in _files(settings):
        address = _address(path, settings)
        count = needed.get(address, 0) if path.name.startswith("authorizer") else 0
        locked = "yes" if keystore.is_encrypted(path) else "no"
        table.add_row(path.name, address, locked, f"{count} channels" if count else "")
    out.print(table)


@keys_app.command("encrypt")
def keys_encrypt(data: Data = HERE) -> None:
    """Encrypt every key file with LEBEN_KEY_PASSWORD; the mesh must be stopped, and needs the password from then on."""
    settings = Settings(data=data)
    password = settings.key_password.get_secret_value()
    if not password:
        fail("set LEBEN_KEY_PASSWORD to the password that the files are to have")
    lock = data_folder.Lock(settings.home)
    try:
        for path in _files(settings):
            if not keystore.is_encrypted(path):
                keystore.write(path, keystore.read(path), password, replace=True)
                print(f"{path.name} is encrypted")
    finally:
        lock.release()


@keys_app.command("rotate")
def keys_rotate(data: Data = HERE) -> None:
    """Retire the authoriser and make a new one; the mesh must be stopped.

    Channels of the retired key take no more calls, what they owe is claimed first when the mesh starts, and its file
    stays until `leben keys list` says that no channel needs it.
    """
    settings = Settings(data=data)
    current = settings.keys / "authorizer.key"
    if settings.authorizer_key.get_secret_value():
        fail("the authoriser is in LEBEN_AUTHORIZER_KEY: put it into keys/authorizer-old.key, and set a new one there")
    if not current.exists():
        fail(f"there is no key in {settings.keys}")
    lock = data_folder.Lock(settings.home)
    try:
        old = _address(current, settings)
        fresh = current.with_name("authorizer.key.new")
        fresh.unlink(missing_ok=True)
        new = Signer.generate()
        new.save(fresh, settings.key_password.get_secret_value())
        # The old file has its new name before the new one takes its place: a crash between the two loses neither.
        retired = current.with_name(f"authorizer-{old[2:10].lower()}.key")
        retired.unlink(missing_ok=True)
        os.link(current, retired)
        fresh.replace(current)
    finally:
        lock.release()
    print(f"{old} is retired; the authoriser is {new.address}")


def _files(settings: Settings) -> list[Path]:
    found = sorted(settings.keys.glob("*.key"))
    if not found:
        fail(f"there are no keys in {settings.keys}: leben up makes them")
    return found


def _address(path: Path, settings: Settings) -> str:
    return keystore.address(path) or Signer.from_file(path, settings.key_password.get_secret_value()).address


def _needed(settings: Settings) -> dict[str, int]:
    """How many channels with money in them each authoriser is still needed for."""
    if not settings.ledger_url.get_secret_value() and not (settings.home / "ledger.db").exists():
        return {}
    counts: dict[str, int] = {}
    url = settings.sql_url()
    with closing(Journal.open(url)) as journal, closing(SqlLedger.open(url)) as ledger:
        for copy in journal.channels():
            state = ledger.channel(copy.channel_id)
            if state is not None and state.left > 0:
                name = copy.config.receiver_authorizer
                counts[name] = counts.get(name, 0) + 1
    return counts
