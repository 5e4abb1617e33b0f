"""What every command shares: the two consoles, the options that name a mesh, and how a refusal is said."""

from __future__ import annotations

import os
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


class Stopped(BaseException):
    """A start was told to stop. Not an `Exception`: what forgives a failure on its way must not forgive this one.

    Args:
        number: the signal that said so.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} before it had started")
        self.status = 128 + number
        """What a shell makes of a command that this signal ended."""


class Stop(threading.Event):
    """Set by Ctrl-C and SIGTERM, which say so at once; a second one interrupts whatever is going on."""

    _number = 0

    def check(self) -> None:
        """For every step and every wait of a start.

        Raises:
            Stopped: it has been set.
        """
        if self.is_set():
            raise Stopped(self._number)

    def on_signal(self, number: int, frame: object) -> None:
        """The handler. It starts nothing and ends nothing: Ray must not be left in the middle of what it does."""
        if self.is_set():
            raise KeyboardInterrupt
        self._number = number
        self.set()
        os.write(2, "stopping …\n".encode())  # as it stands: this may come in the middle of another line's printing


def stopping() -> Stop:
    """The event that Ctrl-C and SIGTERM set from now on."""
    stop = Stop()
    signal.signal(signal.SIGINT, stop.on_signal)
    signal.signal(signal.SIGTERM, stop.on_signal)
    return stop
