"""Lists, encrypts and rotates the mesh's private keys: `leben keys`. Prints addresses, never a key."""

from __future__ import annotations

import os
import time
from collections import Counter
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from rich.table import Table

from channels.journal import Journal
from channels.ledger import SqlLedger
from channels.protocol import Signer, keystore
from channels.settlement import Epochs
from serving.cli.arguments import HERE, Data, read_settings
from serving.cli.console import fail, out
from serving.cli.wallet import has_ledger
from serving.cluster import data_folder
from serving.config import Settings


def keys_list(data: Data = HERE) -> None:
    """Show each key's address, whether its file is encrypted, and until when channels still need it.

    A retired authorizer signs refunds for 30 days. Then its file may go as soon as its channels owe the mesh nothing:
    their payers withdraw what is left without it.
    """
    settings = read_settings(data)
    owing, funded = _needed(settings)
    table = Table("file", "address", "encrypted", "still needed for")
    for path in _files(settings):
        address = _address(path, settings)
        locked = "yes" if keystore.is_encrypted(path) else "no"
        need = (
            needed_for(path, owing[address], funded[address], now_s=time.time())
            if path.name.startswith("authorizer")
            else ""
        )
        table.add_row(path.name, address, locked, need)
    out.print(table)


def keys_encrypt(data: Data = HERE) -> None:
    """Encrypt every key file with LEBEN_KEY_PASSWORD. Stop the mesh first.

    The mesh needs the password from then on.
    """
    settings = read_settings(data)
    password = settings.key_password.get_secret_value()
    if not password:
        fail("set LEBEN_KEY_PASSWORD to the password that encrypts the files")
    lock = data_folder.Lock(settings.home)
    try:
        for path in _files(settings):
            if not keystore.is_encrypted(path):
                keystore.write(path, keystore.read(path), password, replace=True)
                print(f"{path.name} is encrypted")
    finally:
        lock.release()


def keys_rotate(data: Data = HERE) -> None:
    """Retire the authorizer and make a new one. Stop the mesh first.

    Channels of the retired key take no more calls, and the mesh claims what they owe when it starts. Keep the retired
    file until `leben keys list` shows that it may go, after 30 days at the latest unless its channels owe something.
    """
    settings = read_settings(data)
    current = settings.keys / "authorizer.key"
    if not settings.home.is_dir():
        fail(f"there is no key in {settings.keys}")
    lock = data_folder.Lock(settings.home)  # first: the key of a mesh that runs must stay where it is
    try:
        if settings.authorizer_key.get_secret_value():
            fail(
                f"the authorizer is in LEBEN_AUTHORIZER_KEY: no mesh runs on {settings.home}, so write it to "
                "keys/authorizer-old.key and set a new one"
            )
        if not current.exists():
            fail(f"there is no key in {settings.keys}")
        old = _address(current, settings)
        fresh = current.with_name("authorizer.key.new")
        fresh.unlink(missing_ok=True)
        new = Signer.generate()
        new.save(fresh, settings.key_password.get_secret_value())
        # The old key has its second name before the new key takes its place: a crash in between loses neither.
        retired = current.with_name(f"authorizer-{datetime.now(UTC):%Y%m%d}-{old[2:10].lower()}.key")
        retired.unlink(missing_ok=True)
        os.link(current, retired)
        fresh.replace(current)
    finally:
        lock.release()
    print(f"{old} is retired; the authorizer is {new.address}")


def _files(settings: Settings) -> list[Path]:
    files = sorted(settings.keys.glob("*.key"))
    if not files:
        fail(f"there are no keys in {settings.keys}: leben up makes them")
    return files


def _address(path: Path, settings: Settings) -> str:
    return keystore.address(path) or Signer.from_file(path, settings.key_password.get_secret_value()).address


def needed_for(path: Path, owing: int, funded: int, *, now_s: float) -> str:
    """What a key is needed for: claims without an end, refunds until 30 days after it was retired."""
    if path.name == "authorizer.key":
        return f"{funded} channels" if funded else ""
    if owing:
        return f"claims from {owing} channels"
    end_s = data_folder.retired_at_s(path) + data_folder.REFUNDS_S
    if funded and now_s < end_s:
        return f"refunds to {funded} channels, until {datetime.fromtimestamp(end_s, UTC):%Y-%m-%d}"
    return f"nothing: it may go; {funded} payers withdraw without it" if funded else "nothing: it may go"


def _needed(settings: Settings) -> tuple[Counter[str], Counter[str]]:
    """By authorizer, the number of channels that owe the mesh something, and of those with money left."""
    owing: Counter[str] = Counter()
    funded: Counter[str] = Counter()
    if not has_ledger(settings):
        return owing, funded
    url = settings.sql_url()
    with closing(Journal.open(url, create=False)) as journal, closing(SqlLedger.open(url, create=False)) as ledger:
        epochs = Epochs(journal)
        pending = epochs.pending()
        for row in pending.rows if pending else ():
            owing[row.config.receiver_authorizer] += 1
        for channel in journal.channels():
            name = channel.config.receiver_authorizer
            owing[name] += epochs.owe([channel.channel_id])
            state = ledger.channel(channel.channel_id)
            funded[name] += state is not None and state.left > 0
    return owing, funded
