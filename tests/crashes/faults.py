"""Named points at which a process of the ring, or the store under it, is killed with SIGKILL.

The points are found from outside: a child process runs the real replica or treasury, and the objects that it is made
of are wrapped here. Nothing in the product knows of them, so nothing in the product can be told to die.

A step on the store has three points: `before_send` (it never arrives), `after_send` (it arrives, nobody hears the
reply) and `after_reply` (the reply is in hand, nothing has been done with it). A step in SQL has `before`,
`before_commit` and `after`.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from sqlalchemy import Connection, event

from channels.redis_store.connection import RedisConnection
from channels.redis_store.script_loader import CALLS

STORE = ("before_send", "after_send", "after_reply")
SQL = ("before", "before_commit", "after")
ARMED, STRUCK, STORE_PID = "armed", "struck", "store.pid"
"""Files in a world's folder: the fault in force, the mark that it has struck, the process id of the store."""


@dataclass(frozen=True)
class Fault:
    """Kill `victim` when `process` comes to `point` for the `nth` time after the fault was armed.

    `victim` is the process itself, the `store`, or `sleep`: then the process is stopped, not killed.
    """

    process: str
    point: str
    victim: str
    nth: int = 1

    def __str__(self) -> str:
        times = f" #{self.nth}" if self.nth > 1 else ""
        happens = "it sleeps" if self.victim == "sleep" else f"{self.victim} dies"
        return f"{happens} at {self.process}:{self.point}{times}"


def kill(pid: int) -> None:
    """Kills a process and returns when the kernel has ended it."""
    ended = os.pidfd_open(pid)
    try:
        os.kill(pid, signal.SIGKILL)
        select.select([ended], [], [])
    finally:
        os.close(ended)


class Points:
    """The points of one process. A fault is armed by a file in `folder` and strikes once, whoever comes to it."""

    def __init__(self, process: str, folder: Path) -> None:
        self._process, self._folder = process, folder
        self._fault: tuple[str, Fault | None] = ("", None)
        self._seen = 0
        self._lock = threading.Lock()
        self._inside = threading.local()

    def next_is(self, point: str) -> Fault | None:
        """The fault, if reaching `point` now would be fatal."""
        fault = self._armed()
        return fault if fault and fault.point == point and self._seen + 1 == fault.nth else None

    def reach(self, point: str) -> bool:
        """Dies here if the fault says so; True if it was the store that died."""
        with self._lock:
            armed, fault = self._armed(), self.next_is(point)
            if armed and armed.point == point:
                self._seen += 1
            if fault is None:
                return False
            self._strike()
            if fault.victim == "sleep":
                # To this very thread: else it might take some steps more before the process stops.
                signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
                return False
            kill(self._store_pid() if fault.victim == "store" else os.getpid())
            return True

    def wrap_store(self, store: Any) -> None:
        """Puts points around every step that a `RedisStore` makes."""
        evaluate, execute = store.pipeline.evaluate, store.client.execute_command

        async def evaluated(commands: Sequence[Any]) -> Any:
            names = {step(script, values) for script, _, taken in commands for values in taken}
            return await self._sent(names, lambda: evaluate(commands))

        async def executed(*command: Any, **named: Any) -> Any:
            verb = {"XRANGE": "drain.read", "XTRIM": "drain.trim"}.get(command[0], command[0])
            return await self._sent({verb}, lambda: execute(*command, **named))

        store.pipeline.evaluate, store.client.execute_command = evaluated, executed

    def wrap_sql(self, owner: Any, method: str, point: str) -> None:
        """Puts points around one transaction."""
        real = getattr(owner, method)

        def wrapped(*words: Any, **named: Any) -> Any:
            self.reach(f"{point}.before")
            self._inside.point = point
            try:
                done = real(*words, **named)
            finally:
                self._inside.point = None
            self.reach(f"{point}.after")
            return done

        setattr(owner, method, wrapped)

    def wrap_commits(self, database: Any) -> None:
        """Puts a point between the last statement of a transaction and its commit."""

        def committing(conn: Connection) -> None:
            point = getattr(self._inside, "point", None)
            if point and conn.get_execution_options().get("writes"):
                self.reach(f"{point}.before_commit")

        event.listen(database.engine, "commit", committing)

    def _store_pid(self) -> int:
        return int(self._store.read_text())  # read late: the store may have been started again

    async def _sent(self, names: set[str], send: Any) -> Any:
        for name in names:
            self.reach(f"{name}.before_send")
        for name in names:
            fault = self.next_is(f"{name}.after_send")
            if fault and fault.victim != "store":
                self._die_once_written()
        replies = await send()
        for name in names:
            if self.reach(f"{name}.after_send"):
                raise RedisConnectionError("the server was killed before its reply arrived")
        for name in names:
            self.reach(f"{name}.after_reply")
        return replies

    def _die_once_written(self) -> None:
        """The server sleeps while the step is written and its sender dies: the step lands afterwards."""
        real, plain = AbstractConnection.send_packed_command, RedisConnection.exchange
        os.kill(self._store_pid(), signal.SIGSTOP)

        def die() -> None:
            self._strike()
            kill(os.getpid())

        async def written(*words: Any, **named: Any) -> None:
            await real(*words, **named)
            die()

        async def read_then_die(*words: Any, **named: Any) -> list[Any]:
            asyncio.get_running_loop().call_later(0.1, die)  # it writes, then waits for a sleeping server
            return await plain(*words, **named)

        AbstractConnection.send_packed_command = written  # type: ignore[method-assign]
        RedisConnection.exchange = read_then_die  # type: ignore[method-assign]

    def _armed(self) -> Fault | None:
        try:
            text = (self._folder / ARMED).read_text()
        except FileNotFoundError:
            return None
        if text != self._fault[0]:
            _, process, point, victim, nth = json.loads(text)
            self._fault, self._seen = (text, Fault(process, point, victim, nth)), 0
        fault = self._fault[1]
        spent = (self._folder / STRUCK).exists()
        return fault if fault and fault.process == self._process and not spent else None

    def _strike(self) -> None:
        (self._folder / STRUCK).touch(exist_ok=False)

    def _store_pid(self) -> int:
        number = self._folder / STORE_PID  # read late: the store may have been started again, or be about to
        while not number.exists():
            time.sleep(0.001)
        return int(number.read_text())


def arm(folder: Path, fault: Fault) -> None:
    """From here on the fault's point is fatal, once."""
    put(folder / ARMED, json.dumps([uuid.uuid4().hex, fault.process, fault.point, fault.victim, fault.nth]))


def put(path: Path, text: str) -> None:
    """Makes a file that is there whole or not at all."""
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    fresh.rename(path)


def disarm(folder: Path) -> None:
    """No point is fatal any more."""
    for name in (ARMED, STRUCK):
        (folder / name).unlink(missing_ok=True)


def step(script: str, values: Sequence[Any]) -> str:
    """The name of a script's step."""
    name = str(values[0]) if script == CALLS else script
    if name == "hold" and values[10]:
        return "probe"
    if name == "readiness":
        return "reconcile.open" if values[1] else "reconcile.check"
    return {"restore": "reconcile.restore", "reserve_refund": "refund.mark"}.get(name, name)
