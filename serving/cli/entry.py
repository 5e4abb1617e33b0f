"""Starts the command, so that Ctrl-C and SIGTERM end it with one line from the first moment on."""

from __future__ import annotations

import os
import sys

from serving.cli.early_signals import early_signals


def main() -> None:
    """Runs a command."""
    _keep_docstrings()
    with early_signals():
        from serving.cli.main import main as run
    run()


def _keep_docstrings() -> None:
    """Starts this process anew without PYTHONOPTIMIZE: Ray and the commands' help read docstrings, which 2 removes."""
    if os.environ.pop("PYTHONOPTIMIZE", ""):
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - the same words
