"""Sends steps to the server's scripts in rounds and hands each step its reply.

One connection per event loop. Steps that arrive while a round is under way go together in the next round, and those of
one channel go in one run of a script (a pool of 64 connections loses a third of the throughput). Each script's text
contains the server's `run_id`: a restarted server does not know the script, so no process can go on with another
server's memory by mistake.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError

from channels.errors import NotReady
from channels.redis_store import script_loader
from channels.redis_store.connection import RedisConnection, pack
from channels.redis_store.script_loader import CALLS

Values = list[str | bytes | int]
Command = tuple[str, Sequence[str], Sequence[Values]]
"""A script, its keys, and the arguments of each of its steps."""
Step = tuple[str, Sequence[str], Values, "asyncio.Future[Any]"]
MAX_STEPS, MAX_BYTES = 64, 1 << 20
"""Bounds of one script's run: the server does nothing else until the run ends."""


class ScriptPipeline:
    """Sends rounds of steps, one round at a time.

    Args:
        redis: loads the scripts; its connection settings are used for the connection.
        timeout_s: longest wait for a round's replies.
        source: gives a script's text by its name.
    """

    def __init__(self, redis: Redis, timeout_s: float, source: Callable[[str], str] = script_loader.source) -> None:
        self._redis, self._timeout_s, self._source = redis, timeout_s, source
        self._connection: RedisConnection | None = None
        self._run_id = ""
        self._shas: dict[str, str] = {}
        self._waiting: list[Step] = []
        self._sender: asyncio.Task[None] | None = None

    @property
    def connected(self) -> bool:
        """True while the connection to the server is open."""
        return self._connection is not None and self._connection.is_open

    async def run(self, script: str, names: Sequence[str], values: Values) -> Any:
        """Runs one step and returns its reply.

        Args:
            script: the script's name.
            names: the keys that the script may touch.
            values: the step's arguments.

        Raises:
            NotReady: `store_unavailable`: the server cannot be reached, or refused the step.
        """
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((script, names, values, future))
        if self._sender is None or self._sender.done():
            self._sender = asyncio.create_task(self._send())
        return await future

    async def _send(self) -> None:
        while self._waiting:
            waiting, self._waiting = self._waiting, []
            # A step that fails must not fail the steps that share its script: they are repeated one by one. None of
            # them was taken, for a full or read-only store refuses a script's first write or none; and each step may be
            # repeated, with its token.
            for steps in await self._exchange(_grouped(waiting)):
                await self._exchange([[step] for step in steps])

    async def _exchange(self, groups: Sequence[list[Step]]) -> list[list[Step]]:
        """Runs each group in one script and resolves its steps; returns the groups whose script failed."""
        try:
            replies = await self._round([(group[0][0], group[0][1], [step[2] for step in group]) for group in groups])
        except Exception as error:  # whatever it is, no step may wait for ever
            self._run_id = ""
            for group in groups:
                _resolve(group, [error] * len(group))
            return []
        failed = []
        for group, reply in zip(groups, replies, strict=True):
            if isinstance(reply, Exception) and len(group) > 1:
                failed.append(group)
            elif group[0][0] == CALLS and isinstance(reply, list):
                _resolve(group, reply)
            else:
                _resolve(group, [reply] * len(group))
        return failed

    async def _round(self, commands: Sequence[Command]) -> list[Any]:
        if not self._run_id or not self.connected:
            # A new connection may lead to a new server, or to a restarted one that remembers our scripts.
            await self._load()
        replies = await self.evaluate(commands)
        # A server that does not know a script did not run it, so the script may run once more.
        missed = [i for i, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if missed:
            await self._load()
            for i, reply in zip(missed, await self.evaluate([commands[i] for i in missed]), strict=True):
                replies[i] = reply
        return replies

    async def evaluate(self, commands: Sequence[Command]) -> list[Any]:
        """Sends one round of loaded scripts and returns their replies.

        Raises:
            ConnectionError: the connection ended before all replies came; any of the scripts may have run.
        """
        if self._connection is None or not self._connection.is_open:
            target = self._redis.connection_pool.make_connection()  # type: ignore[no-untyped-call]
            self._connection = await RedisConnection.open(target, self._timeout_s)
        packed = b"".join([self._packed(*command) for command in commands])
        return await self._connection.exchange(packed, len(commands), self._timeout_s)

    def _packed(self, script: str, names: Sequence[str], steps: Sequence[Values]) -> bytes:
        words = ("EVALSHA", self._shas[script], len(names), *names, *chain.from_iterable(steps))
        return pack(words)

    async def _load(self) -> None:
        try:
            info = await self._redis.info("server")
        except RedisConnectionError:  # an idle connection was closed; redis-py opens another one now
            info = await self._redis.info("server")
        self._run_id = str(info["run_id"])
        for name in script_loader.names():
            text = f"local RUN = '{self._run_id}'\n{self._source(name)}"
            self._shas[name] = str(await self._redis.script_load(text))

    async def close(self) -> None:
        """Waits for the steps under way, up to the timeout, and closes the connection."""
        if self._sender is not None:
            await asyncio.wait({self._sender}, timeout=self._timeout_s)
        if self._connection is not None:
            self._connection.close()


def _grouped(waiting: Sequence[Step]) -> list[list[Step]]:
    """Groups steps by the run of a script: those of one channel share a run, in their order, up to the bounds."""
    groups: list[list[Step]] = []
    newest: dict[Sequence[str], tuple[list[Step], int]] = {}
    for step in waiting:
        script, names, values, _ = step
        size = sum(len(value) for value in values if isinstance(value, bytes))
        group, total = newest.get(names, ([], 0)) if script == CALLS else ([], 0)
        if not group or len(group) == MAX_STEPS or total + size > MAX_BYTES:
            group, total = [], 0
            groups.append(group)
        group.append(step)
        if script == CALLS:
            newest[names] = (group, total + size)
    return groups


def _resolve(group: Sequence[Step], replies: Sequence[Any]) -> None:
    for (_, _, _, future), reply in zip(group, replies, strict=True):
        if future.done():  # its caller has gone
            continue
        if isinstance(reply, Exception):
            failure = NotReady("store_unavailable", "the payment store cannot be reached or refused a step; retry")
            failure.__cause__ = reply
            future.set_exception(failure)
        else:
            future.set_result(reply)
