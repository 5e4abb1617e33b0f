"""What every command shares: the two consoles, the options that name a mesh, and how a refusal is said."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

out, err = Console(), Console(stderr=True)

Data = Annotated[Path, typer.Option(help="Folder of keys, ledger and store.", envvar="LEBEN_DATA")]
Port = Annotated[int, typer.Option(help="HTTP port; the 99 above it are used too.", envvar="LEBEN_PORT")]
HERE = Path(".leben")


def fail(message: str) -> NoReturn:
    """Prints what went wrong and what to do, and exits with 1."""
    err.print(f"[red]leben:[/] {message}", highlight=False, soft_wrap=True)
    raise SystemExit(1)
