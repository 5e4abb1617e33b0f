"""Runs an author's code while it is checked: in one thread, as on a mesh, with limits on time and memory.

A step that does not end is reported with the line at which it hangs, and its thread stays behind. Knows no rule.
"""

from __future__ import annotations

import queue
import resource
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import psutil

from dapps.conformance.failure import CheckFailed


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one step of the check.

    Args:
        step_s: seconds; to load the weights is one step.
        memory_bytes: of this process, at its highest.
    """

    step_s: float = 120.0
    memory_bytes: int = 8 << 30


class Bench:
    """Runs one step after the other in one thread.

    Args:
        limits: of a step.
        folder: of the author's code, to name the line at which it hangs.
    """

    def __init__(self, limits: Limits, folder: Path | None) -> None:
        self._limits, self._folder = limits, folder
        self._steps: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="device", daemon=True)
        self._thread.start()

    def do(self, step: Callable[[], None], quiet: str) -> None:
        """Runs a step, and raises what it raises.

        Args:
            step: calls the author's code.
            quiet: the method to change if the step prints; empty if it may print.

        Raises:
            CheckFailed: `time`, `memory`, `quiet` or `processes`.
        """
        ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        output = StringIO()

        def run() -> None:
            try:
                with redirect_stdout(output), redirect_stderr(output):
                    step()
                ended.put(None)
            except BaseException as error:
                ended.put(error)

        before = {child.pid for child in psutil.Process().children()}
        self._steps.put(run)
        try:
            error = ended.get(timeout=self._limits.step_s)
        except queue.Empty:
            cause = f"it has not ended after {self._limits.step_s:g} s"
            raise CheckFailed("time", cause, place=self._hangs_at()) from None
        if error is not None:
            raise _memory(error) if _out_of_memory(error) else error
        if self.peak_bytes > self._limits.memory_bytes:
            cause = f"it needs {self.peak_bytes >> 20} MiB, more than {self._limits.memory_bytes >> 20}"
            raise CheckFailed("memory", cause, "load")
        if quiet and output.getvalue():
            raise CheckFailed("quiet", "it prints: its output could carry a patient's data into a log", quiet)
        if {child.pid for child in psutil.Process().children()} - before:
            raise CheckFailed(
                "processes", "it leaves processes of its own behind; an isolated DApp has none", "forward"
            )

    def close(self) -> None:
        """Ends the thread, unless it hangs."""
        self._steps.put(None)

    @property
    def peak_bytes(self) -> int:
        """The peak memory of this process."""
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

    def _work(self) -> None:
        while (step := self._steps.get()) is not None:
            step()

    def _hangs_at(self) -> str:
        frame = sys._current_frames().get(self._thread.ident or 0)
        frames = traceback.extract_stack(frame) if frame else []
        ours = [line for line in frames if self._folder and Path(line.filename).is_relative_to(self._folder)]
        return f"{ours[-1].filename}:{ours[-1].lineno}" if ours else ""


def _out_of_memory(error: BaseException) -> bool:
    # On the CPU torch raises a RuntimeError instead of a MemoryError.
    return isinstance(error, MemoryError) or "allocate memory" in str(error) or "out of memory" in str(error)


def _memory(error: BaseException) -> CheckFailed:
    failure = CheckFailed("memory", "it needs more memory than it may have")
    failure.__cause__ = error
    return failure
