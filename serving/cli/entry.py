"""The command's first second, in which Python reads what `cli.py` needs: whoever stops it then gets one line too.

Nothing is started by then, so nothing is there to be ended.
"""

from __future__ import annotations

import os
import signal


def main() -> None:
    """Runs a command."""
    before = {number: signal.signal(number, _leave) for number in (signal.SIGINT, signal.SIGTERM)}
    from serving.cli import main

    for number, handler in before.items():
        signal.signal(number, handler)
    main.main()


def _leave(number: int, frame: object) -> None:
    # Not by an exception: what is being imported may forgive it.
    os.write(2, f"leben: stopped by {signal.Signals(number).name} before it had started\n".encode())
    os._exit(128 + number)
