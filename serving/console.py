"""What every command shares: the two consoles, the options that name a mesh, and how a refusal is said."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.text import Text

out, err = Console(), Console(stderr=True)

Data = Annotated[Path, typer.Option(help="Folder of keys, ledger and store.", envvar="LEBEN_DATA")]
Port = Annotated[int, typer.Option(help="HTTP port; the 99 above it are used too.", envvar="LEBEN_PORT")]
HERE = Path(".leben")


def fail(message: str) -> NoReturn:
    """Prints what went wrong and what to do, as it is: `[…]` in it is no markup. Exits with 1."""
    err.print(Text.assemble(("leben:", "red"), " ", message), soft_wrap=True)
    raise SystemExit(1)


_STOP = threading.Event()


def stopping() -> threading.Event:
    """An event that Ctrl-C and SIGTERM set; a second one interrupts at once."""

    def on_signal(number: int, frame: object) -> None:
        if _STOP.is_set():
            raise KeyboardInterrupt
        _STOP.set()

    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGTERM, on_signal)
    return _STOP
