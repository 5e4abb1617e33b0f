"""Ends the command with one line at SIGINT, SIGTERM or SIGHUP while Python imports its modules."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def early_signals() -> Iterator[None]:
    """Ends the process at these signals within the block: nothing has started yet that must be ended in order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _leave) for number in NUMBERS if not _is_left_alone(number)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_left_alone(number: int) -> bool:
    """True for SIGHUP under nohup. A shell that runs a command in the background ignores SIGINT for it: we do not."""
    return number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN


def _leave(number: int, frame: object) -> None:
    # Not by an exception: a module that is being imported may catch it.
    os.write(2, f"leben: stopped by {signal.Signals(number).name} before it had started\n".encode())
    os._exit(128 + number)
