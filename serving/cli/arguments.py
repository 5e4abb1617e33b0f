"""Declares the options that several commands share, and checks what is typed."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from serving.cli.console import err, fail

if TYPE_CHECKING:
    from serving.config import Settings

HERE = Path(".leben")
Data = Annotated[Path, typer.Option(help="Folder of keys, ledger and store.", envvar="LEBEN_DATA")]
Port = Annotated[int, typer.Option(help="HTTP port; the 99 above it are used too.", envvar="LEBEN_PORT")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Key = Annotated[Path, typer.Option("--key", help="Key file of the payer or owner.", exists=False)]
Url = Annotated[str, typer.Option("--url", help="URL of the mesh; by default the mesh that runs on --data.")]
Id = Annotated[str, typer.Argument(help="0x and 64 hex digits.")]


def read_settings(data: Path) -> Settings:
    """The settings of the mesh on a data folder; warns of variables that look like settings."""
    from serving.config import Settings

    if unknown := Settings.unknown():
        err.print(f"[yellow]leben:[/] no such setting: {', '.join(unknown)}", highlight=False, soft_wrap=True)
    return Settings(data=data)


def uses_proxy(url: str) -> bool:
    """False if the URL's host is this machine, which a proxy cannot reach; it would read signed requests too."""
    host = urlsplit(url).hostname or ""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.bind((host, 0))  # succeeds for an address of this machine alone
        return False
    except OSError:
        return True


def key_password() -> str:
    """The password of encrypted key files: the setting LEBEN_KEY_PASSWORD, read without the settings of a mesh."""
    return next((value for name, value in os.environ.items() if name.upper() == "LEBEN_KEY_PASSWORD"), "")


def check_address(raw: str) -> str:
    """The checksummed address; refuses a mistyped one, which would lose the money."""
    from eth_utils import is_checksum_address, to_checksum_address

    try:
        address = str(to_checksum_address(raw))
    except ValueError:
        fail("that is not an address: 0x and 40 hex digits")
    if raw not in (raw.lower(), raw.upper()) and not is_checksum_address(raw):
        fail("the address's checksum is wrong: copy it again")
    return address


def check_amount(raw: str) -> int:
    """A whole number of atomic units; refuses anything else."""
    if not raw.isascii() or not raw.isdigit():
        fail("an amount is a whole number of atomic units; 1000000 is 1.00")
    return int(raw)
