"""Prints for every command: two consoles, refusals, progress bars, and what Ctrl-C does."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

out, err = Console(), Console(stderr=True)


def fail(message: str, status: int = 1) -> NoReturn:
    """Prints what went wrong and what to do, without reading markup in it, and exits."""
    err.print(Text.assemble(("leben:", "red"), " ", message), soft_wrap=True)
    raise SystemExit(status)


class Stopped(BaseException):
    """A signal stopped a start. Not an `Exception`, so that no handler of failures on its way catches it.

    Args:
        number: the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} before it had started")
        self.status = 128 + number
        """The exit status by which a shell reports this signal."""


class Stop(threading.Event):
    """Set by Ctrl-C, SIGTERM and SIGHUP, which print a line at once; a second signal interrupts the current step.

    A terminal that closes sends SIGHUP: what cannot be printed any more must not stop the stopping.
    """

    _number = 0

    def check(self) -> None:
        """Called at every step and in every wait of a start.

        Raises:
            Stopped: it has been set.
        """
        if self.is_set():
            raise Stopped(self._number)

    def on_signal(self, number: int, frame: object) -> None:
        """The handler. It ends nothing itself: Ray must not be interrupted in the middle of a step."""
        if self.is_set():
            raise KeyboardInterrupt
        self._number = number
        self.set()
        with suppress(OSError):
            os.write(2, "stopping …\n".encode())  # unbuffered: the signal may arrive while another line is printed


def stopping() -> Stop:
    """Returns an event that Ctrl-C, SIGTERM and SIGHUP set from now on.

    Under nohup SIGHUP stays ignored.
    """
    stop = Stop()
    signal.signal(signal.SIGINT, stop.on_signal)
    signal.signal(signal.SIGTERM, stop.on_signal)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, stop.on_signal)
    return stop


def counting_bar(transient: bool = False) -> Progress:
    """A progress bar with a description and a count."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, console=err, transient=transient)


@contextmanager
def rows_bar(description: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar; the block calls what it is given with (done, total)."""
    with counting_bar() as bar:
        task = bar.add_task(description, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
