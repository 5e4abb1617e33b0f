"""Starts the command, so that Ctrl-C and SIGTERM end it with one line from the first moment on."""

from __future__ import annotations

from serving.cli.early_signals import early_signals


def main() -> None:
    """Runs a command."""
    with early_signals():
        from serving.cli.main import main as run
    run()
