"""Starts the process of one isolated DApp, exchanges messages with it and kills it when it misbehaves.

A child that hangs, ends or breaks the protocol is killed: the call at hand fails and costs nothing, and the next call
starts a fresh child. The replica validates every answer.
"""

from __future__ import annotations

import logging
import re
import socket
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import orjson

from dapps import IntakeRefused
from serving.errors import CallError, StartError
from serving.isolation.messages import Blobs, BrokenWire, Json, receive, send
from serving.isolation.spec import SANDBOX, Isolation, environment
from serving.protocol import STATUS

log = logging.getLogger("leben.isolated")
START_TIMEOUT_S = 120.0
CODE = re.compile(r"[a-z][a-z_]{0,39}")
PLACE = re.compile(r"\w{1,64} at [\w.<>-]{1,64}:\d{1,6}")
MAX_TEXT = 500
T = TypeVar("T")


class Child:
    """The process of one isolated DApp; answers one message at a time. Thread-safe.

    Args:
        isolation: its limits.

    Attributes:
        run: how many processes have been started.
        gone: cases, by process and number, that the child may forget.
    """

    def __init__(self, isolation: Isolation) -> None:
        self._isolation = isolation
        self._turn = threading.Lock()
        """Held for one exchange; the holder alone starts and ends processes."""
        self._state = threading.Lock()
        """Held for a moment: no process starts once `_closed` is set."""
        self._closed = False
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._begun: Json = {}
        self._declared: tuple[Json, list[memoryview]] = ({}, [])
        self._called = False
        self.run = 0
        self.gone: deque[tuple[int, int]] = deque()

    @property
    def current(self) -> int:
        """The number of the process that runs; 0 if none does."""
        return self.run if self._process else 0

    @property
    def pid(self) -> int:
        """Process id, outside the sandbox, of the process that waits for the child; 0 if none runs."""
        return self._process.pid if self._process else 0

    def ask(self, message: Json, blobs: Blobs = (), run: int = 0) -> tuple[int, Json, list[memoryview]]:
        """Sends one message; returns the number of the process that answered, and its answer.

        Args:
            message: `do` names a method of the child.
            blobs: byte strings that go along.
            run: if not 0, only this process may answer.

        Raises:
            CallError: `dapp_hung` or `dapp_crashed`, and the child is gone; `internal` if the DApp raised.
            IntakeRefused: the DApp refuses the case.
        """
        with self._turn:
            if run not in (0, self.current):
                raise _crashed()
            if self._process is None:
                self._start()
                if self._begun:
                    self._exchange(self._begun, (), START_TIMEOUT_S)
            self._called = True
            answer, data = self._exchange({**message, "forget": self._forgotten()}, blobs, self._isolation.call_s)
            return self.run, answer, data

    def begin(self, message: Json) -> Json:
        """Sends the message that loads the DApp, to this process and to every later one; returns the answer.

        Raises:
            CallError: as `ask`.
        """
        with self._turn:
            if self._process is None:
                self._start()
            answer, _ = self._exchange(message, (), START_TIMEOUT_S)
            self._begun = message
            return answer

    def describe(self) -> tuple[Json, list[memoryview]]:
        """The DApp's declaration, from a process that is started for it if none runs.

        Raises:
            StartError: the process cannot be started, or was closed.
        """
        try:
            with self._turn:
                if self._process is None:
                    self._start()
                return self._declared
        except CallError as error:
            raise StartError(f"{self._isolation.dapp}: {error.message}") from error

    def close(self) -> None:
        """Kills the child, whatever it does, and starts none again: an exchange under way fails at once."""
        with self._state:
            self._closed = True
            if self._process is not None:
                self._process.kill()
            if self._channel is not None:
                # Wakes the thread that waits on it. Closing would free the descriptor under that thread.
                with suppress(OSError):
                    self._channel.shutdown(socket.SHUT_RDWR)
        with self._turn:
            self._kill()

    def _forgotten(self) -> list[int]:
        cases = [self.gone.popleft() for _ in range(len(self.gone))]
        return [case for run, case in cases if run == self.run]

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        scratch = ""
        with theirs, self._state:
            if self._closed:
                ours.close()
                raise _crashed()
            if self._isolation.sandbox_mode == "landlock":
                self._scratch = tempfile.TemporaryDirectory(prefix="leben-isolated-")
                scratch = self._scratch.name
            plan = orjson.dumps(self._isolation.plan(theirs.fileno(), scratch)).decode()
            quiet: Any = subprocess.DEVNULL
            # -S: a package can run code when Python starts, so sandbox.py adds the packages once it is confined.
            self._process = subprocess.Popen(  # noqa: S603 - our own script
                [sys.executable, "-I", "-S", str(SANDBOX), plan], stdin=quiet, stdout=quiet, stderr=quiet,
                env=environment(scratch), pass_fds=[theirs.fileno()], start_new_session=True, cwd="/",
            )  # fmt: skip
            self._channel = ours
            self.run += 1
        ours.settimeout(START_TIMEOUT_S)
        try:
            failure = ours.recv(MAX_TEXT)
        except OSError:
            failure = b"it does not start in time"
        if failure:
            self._kill()
            text = f"the isolated process cannot be made: {failure.decode(errors='replace')}"
            raise CallError("dapp_crashed", f"{text}; docs/isolation.md says what it needs")
        self._declared = self._exchange({"do": "describe"}, (), START_TIMEOUT_S)
        if self._isolation.declared and canonical(*self._declared) != self._isolation.declared:
            self._kill()
            raise CallError("dapp_crashed", "the DApp declares something else than when the mesh started")

    def _exchange(self, message: Json, blobs: Blobs, timeout_s: float) -> tuple[Json, list[memoryview]]:
        channel = self._channel
        if channel is None:
            raise _crashed()
        channel.settimeout(timeout_s)
        try:
            send(channel, message, blobs)
            answer, data = receive(channel, self._isolation.message_bytes)
        except TimeoutError:
            self._kill()
            raise CallError("dapp_hung", "the DApp took too long and was stopped; the call costs nothing") from None
        except (BrokenWire, OSError) as error:
            self._kill()
            if not self._closed:
                log.warning("%s was stopped: %s", self._isolation.dapp, error)
            raise _crashed() from None
        return validated(partial(self._unless_refused, answer)), data

    def _unless_refused(self, answer: Json) -> Json:
        if "refused" in answer:
            code, message = str(answer["code"]), str(answer["message"])[:MAX_TEXT]
            if answer["refused"] == "CallError" and code in ("not_finite", "invalid_tensor", "out_of_memory"):
                raise CallError(code, message)
            if answer["refused"] == "CallError" and code == "device_failed":
                self._kill()  # a CUDA context is lost for good: the next call starts a fresh process
                raise CallError(
                    code, "the DApp's device has failed and its process is replaced; the call costs nothing"
                )
            # One of our own codes would claim what only the mesh can know, e.g. that a payment's outcome is unknown.
            raise IntakeRefused(code if CODE.fullmatch(code) and code not in STATUS else "refused", message)
        if "failed" in answer:
            cause = re.sub(r"[^ -~]", " ", str(answer["failed"]))[:MAX_TEXT]
            if self._called:
                # The DApp chooses these words and has seen patients' data: log a place in its files, or nothing.
                cause = cause if PLACE.fullmatch(cause) else "somewhere"
            log.warning("%s failed: %s", self._isolation.dapp, cause)
            raise CallError("internal", "the DApp failed; the call costs nothing" if self._called else cause)
        return answer

    def _kill(self) -> None:
        """Ends the child; it is the first process of its namespace, so the kernel ends all that it started."""
        with self._state:
            process, self._process = self._process, None
            channel, self._channel = self._channel, None
            scratch, self._scratch = self._scratch, None
        if process is not None:
            process.kill()
            process.wait()
        if channel is not None:
            channel.close()
        if scratch is not None:
            scratch.cleanup()


def canonical(declaration: Json, blobs: list[memoryview]) -> bytes:
    """A declaration as bytes, equal for equal declarations."""
    return orjson.dumps(declaration, option=orjson.OPT_SORT_KEYS) + b"".join(blobs)


def validated(read: Callable[[], T]) -> T:
    """Reads a stranger's answer; every way in which it can be wrong becomes one error.

    Raises:
        CallError: `dapp_crashed`, or what `read` raises itself.
    """
    try:
        return read()
    except (CallError, IntakeRefused):
        raise
    except Exception:
        raise broken() from None  # the text may quote the answer


def _crashed() -> CallError:
    return CallError("dapp_crashed", "the DApp's process ended over this call; the call costs nothing")


def broken() -> CallError:
    """The error of an answer that breaks the DApp's declaration."""
    return CallError("dapp_crashed", "the DApp's answer is not what it declares; the call costs nothing")
