"""`Child`: the process of one isolated DApp, seen from the replica: started, asked, and killed when it must be.

A child that hangs, ends or breaks the protocol is killed, the call at hand fails and costs nothing, and the next call
finds a fresh one. Nothing that it sends is believed.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import orjson

from dapps import IntakeRefused
from dapps.packages import GROUP
from serving.errors import CallError, StartError
from serving.isolation import sandbox
from serving.isolation.messages import Blobs, BrokenWire, Json, receive, send
from serving.isolation.spec import Isolation
from serving.protocol import STATUS

START_TIMEOUT_S = 120.0
SCRATCH = ("HOME", "TMPDIR", "MPLCONFIGDIR")
CODE = re.compile(r"[a-z][a-z_]{0,39}")
PLACE = re.compile(r"\w{1,64} at [\w.<>-]{1,64}:\d{1,6}")
MAX_TEXT = 500
T = TypeVar("T")


class Child:
    """The process of one isolated DApp; answers one message at a time. Safe for threads.

    Args:
        isolation: its limits.

    Attributes:
        run: how many processes there have been.
        started: what every fresh process is asked first, so that it is as the one before.
        gone: cases, by process and number, that need not be kept any longer.
    """

    def __init__(self, isolation: Isolation) -> None:
        self._isolation = isolation
        self._turn = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self.run = 0
        self.started: Json = {}
        self._described: tuple[Json, list[memoryview]] = ({}, [])
        self._closed = False
        self._answering = False
        self.gone: deque[tuple[int, int]] = deque()

    @property
    def current(self) -> int:
        """The number of the process there is; 0 if there is none."""
        return self.run if self._process else 0

    @property
    def pid(self) -> int:
        """Of the process that stands for the child in our own space; 0 if there is none."""
        return self._process.pid if self._process else 0

    def ask(self, message: Json, blobs: Blobs = (), run: int = 0) -> tuple[int, Json, list[memoryview]]:
        """One message and its answer, with the number of the child that gave it.

        Args:
            message: `do` names a method of the child.
            blobs: byte strings that go along.
            run: if not 0, only this child can answer.

        Raises:
            CallError: `dapp_hung` or `dapp_crashed`; the child is gone. `internal` if the DApp raised.
            IntakeRefused: the DApp refuses the case.
        """
        with self._turn:
            if self._closed or run not in (0, self.current):
                raise _crashed()
            if self._process is None:
                self._start()
                if self.started:
                    self._exchange(self.started, (), START_TIMEOUT_S)
            self._answering = True
            answer, found = self._exchange({**message, "forget": self._forgotten()}, blobs, self._isolation.call_s)
            return self.run, answer, found

    def begin(self, message: Json) -> Json:
        """Starts the DApp in the child, and in every later one; its answer.

        Raises:
            CallError: as `ask`.
        """
        with self._turn:
            if self._process is None:
                self._start()
            answer, _ = self._exchange(message, (), START_TIMEOUT_S)
            self.started = message
            return answer

    def describe(self) -> tuple[Json, list[memoryview]]:
        """What the DApp says of itself, in a child that is started for it if there is none.

        Raises:
            StartError: it cannot.
        """
        try:
            with self._turn:
                if self._process is None:
                    self._start()
                return self._described
        except CallError as error:
            raise StartError(f"{self._isolation.dapp}: {error.message}") from error

    def close(self) -> None:
        """Kills the child, whatever it does."""
        self._closed = True
        self._kill()

    def _forgotten(self) -> list[int]:
        gone = [self.gone.popleft() for _ in range(len(self.gone))]
        return [case for run, case in gone if run == self.run]

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        plan, environment = _plan(self._isolation, theirs.fileno()), _environment()
        if self._isolation.sandbox_mode == "landlock":
            self._scratch = tempfile.TemporaryDirectory(prefix="leben-isolated-")
            plan["scratch"] = self._scratch.name
            environment |= dict.fromkeys(SCRATCH, self._scratch.name)
        # -S: packages can run code when Python starts, so their folder is read behind the walls, by sandbox.py.
        words = [sys.executable, "-I", "-S", sandbox.__file__, orjson.dumps(plan).decode()]
        quiet: Any = subprocess.DEVNULL
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - our own script
                words, stdin=quiet, stdout=quiet, stderr=quiet, env=environment,
                pass_fds=[theirs.fileno()], start_new_session=True, cwd="/",
            )  # fmt: skip
        self._channel = ours
        self.run += 1
        ours.settimeout(START_TIMEOUT_S)
        try:
            told = ours.recv(MAX_TEXT)
        except OSError:
            told = b"it does not start in time"
        if told:
            self._kill()
            text = f"the isolated process cannot be made: {told.decode(errors='replace')}"
            raise CallError("dapp_crashed", f"{text}; docs/isolation.md says what it needs")
        self._described = self._exchange({"do": "describe"}, (), START_TIMEOUT_S)
        declared = canonical(*self._described)
        if self._isolation.declared and declared != self._isolation.declared:
            self._kill()
            raise CallError("dapp_crashed", "the DApp says something else of itself than when the mesh started")

    def _exchange(self, message: Json, blobs: Blobs, timeout_s: float) -> tuple[Json, list[memoryview]]:
        channel = self._channel
        if channel is None:
            raise _crashed()
        channel.settimeout(timeout_s)
        try:
            send(channel, message, blobs)
            answer, found = receive(channel, self._isolation.message_bytes)
        except TimeoutError:
            self._kill()
            raise CallError("dapp_hung", "the DApp took too long and was stopped; the call costs nothing") from None
        except (BrokenWire, OSError) as error:
            self._kill()
            logging.getLogger("leben.isolated").warning("%s was stopped: %s", self._isolation.dapp, error)
            raise _crashed() from None
        return validated(partial(self._unless_refused, answer)), found

    def _unless_refused(self, answer: Json) -> Json:
        if "refused" in answer:
            code, message = str(answer["code"]), str(answer["message"])[:MAX_TEXT]
            if answer["refused"] == "CallError" and code in ("not_finite", "invalid_tensor", "out_of_memory"):
                raise CallError(code, message)
            if answer["refused"] == "CallError" and code == "device_failed":
                self._kill()  # a CUDA context is lost for good: the next call finds a fresh process
                raise CallError(
                    code, "the DApp's device has failed and its process is replaced; the call costs nothing"
                )
            # A code of ours would say what only we can know, e.g. that the outcome of the payment is unknown.
            raise IntakeRefused(code if CODE.fullmatch(code) and code not in STATUS else "refused", message)
        if "failed" in answer:
            told = re.sub(r"[^ -~]", " ", str(answer["failed"]))[:MAX_TEXT]
            if answering := self._answering:
                # It chooses these words itself, and has seen patients' data: a place in its files, or nothing.
                told = told if PLACE.fullmatch(told) else "somewhere"
            logging.getLogger("leben.isolated").warning("%s failed: %s", self._isolation.dapp, told)
            raise CallError("internal", "the DApp failed; the call costs nothing" if answering else told)
        return answer

    def _kill(self) -> None:
        """Ends the child; as it is the first process of its space, the kernel ends all that it started."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._scratch is not None:
            self._scratch.cleanup()
            self._scratch = None


def canonical(told: Json, blobs: list[memoryview]) -> bytes:
    """A declaration as bytes, the same for the same."""
    return orjson.dumps(told, option=orjson.OPT_SORT_KEYS) + b"".join(blobs)


def validated(read: Callable[[], T]) -> T:
    """What a stranger's answer says, or one code for all the ways in which it can be wrong."""
    try:
        return read()
    except (CallError, IntakeRefused):
        raise
    except Exception:
        raise broken() from None  # the text may quote the answer


def _crashed() -> CallError:
    return CallError("dapp_crashed", "the DApp's process ended over this call; the call costs nothing")


def broken() -> CallError:
    """An answer that cannot be one."""
    return CallError("dapp_crashed", "the DApp's answer is not what it declares; the call costs nothing")


def _plan(isolation: Isolation, control: int) -> Json:
    package, path = [isolation.package] if isolation.package else [], [path for path in sys.path if path]
    if package:  # of its other versions, which may be trusted here, it sees none
        path = [each for each in path if Path(each).parent != Path(isolation.package).parent]
    return {
        "dapp": isolation.dapp,
        "sandbox_mode": isolation.sandbox_mode,
        "control": control,
        "readable": _readable(isolation.dapp) + package,
        "path": path + package,
        # The last / also lets the next mesh on this folder find a child that was left behind.
        "hidden": [f"{path.rstrip('/')}/" for path in isolation.hidden],
        # CUDA maps more address space than there is memory.
        "memory_bytes": 0 if Path("/dev/nvidiactl").exists() else isolation.memory_bytes,
        "file_bytes": isolation.message_bytes,
        "tasks": isolation.tasks,
    }


def _readable(dapp: str) -> list[str]:
    """Python, what is on its path, our own packages and the DApp's: found without importing it."""
    found = [sys.prefix, sys.base_prefix, sys.exec_prefix, *sys.path, str(Path(sys.executable).resolve().parent.parent)]
    tops = [point.value.partition(":")[0].partition(".")[0] for point in entry_points(group=GROUP, name=dapp)]
    for top in ("serving", "channels", "dapps", *tops):
        spec = find_spec(top)
        if spec is not None:
            found += spec.submodule_search_locations or ([spec.origin] if spec.origin else [])
    here = os.getcwd()
    return [path for path in found if path and Path(path).exists() and os.path.abspath(path) not in ("/", here)]


def _environment() -> dict[str, str]:
    """All that the child's environment holds: not one variable of ours but where libraries and devices are."""
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES") if name in os.environ}
    scratch = "/dev/shm"  # noqa: S108 - a folder of the child's own root
    own = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "USER": "leben", "HOME": scratch, "TMPDIR": scratch}
    return {**own, "MPLCONFIGDIR": scratch, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", **kept}
