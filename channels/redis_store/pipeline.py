"""`ScriptPipeline`: steps on their way to the server's scripts and back.

One connection per event loop. Steps that are taken while a round is under way go together in the next, in one pipeline
(a pool of 64 connections costs a third of the throughput), and those of one channel in one run of a script. Scripts
carry the server's `run_id` in their text: after a restart they are unknown there, so no process can go on with the
memory of another server by mistake.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import chain
from typing import Any

from hiredis import pack_command
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError

from channels.errors import NotReady
from channels.redis_store import script_loader
from channels.redis_store.connection import RedisConnection
from channels.redis_store.script_loader import CALLS

Values = list[str | bytes | int]
Command = tuple[str, Sequence[str], Sequence[Values]]
"""A script, its keys, and what each of the steps is given that it takes."""
Step = tuple[str, Sequence[str], Values, "asyncio.Future[Any]"]
MOST_STEPS, MOST_BYTES = 64, 1 << 20
"""Of one script, of which the server does nothing else until it has ended."""


class ScriptPipeline:
    """Sends steps in rounds, one at a time; `redis` opens the connection and loads the scripts."""

    def __init__(self, redis: Redis, timeout_s: float) -> None:
        self._redis, self._timeout_s = redis, timeout_s
        self._pipe: RedisConnection | None = None
        self._run_id = ""
        self._shas: dict[str, str] = {}
        self._waiting: list[Step] = []
        self._sender: asyncio.Task[None] | None = None

    async def run(self, script: str, names: Sequence[str], values: Values) -> Any:
        """Takes a step: what a script said to it, given its keys and values.

        Raises:
            NotReady: `store_unavailable`: the server cannot be reached, or refused it.
        """
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((script, names, values, future))
        if self._sender is None or self._sender.done():
            self._sender = asyncio.create_task(self._send())
        return await future

    async def _send(self) -> None:
        while self._waiting:
            waiting, self._waiting = self._waiting, []
            rounds = _together(waiting)
            # One step that fails must not take those along that it shared a script with. None of them was taken: a full
            # or read-only store refuses a script's first write or none. And each may be repeated, with its token.
            for steps in await self._exchange(rounds):
                await self._exchange([[step] for step in steps])

    async def _exchange(self, rounds: Sequence[list[Step]]) -> list[list[Step]]:
        """Takes the steps of each round and tells each what was said; returns the rounds whose script failed."""
        try:
            replies = await self._round([(steps[0][0], steps[0][1], [step[2] for step in steps]) for steps in rounds])
        except Exception as error:  # whatever it is, nobody may wait for ever
            self._run_id = ""
            for steps in rounds:
                _tell(steps, [error] * len(steps))
            return []
        failed = []
        for steps, said in zip(rounds, replies, strict=True):
            if isinstance(said, Exception) and len(steps) > 1:
                failed.append(steps)
            else:
                _tell(steps, said if steps[0][0] == CALLS and isinstance(said, list) else [said] * len(steps))
        return failed

    async def _round(self, commands: Sequence[Command]) -> list[Any]:
        if not self._run_id or self._pipe is None or not self._pipe.open:
            # Behind a new connection may be a new server, or one that was started again and remembers our scripts.
            await self._load()
        replies = await self._evaluate(commands)
        # A server that does not know our scripts is not the one we knew: they did not run, so they may run once more.
        missed = [i for i, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if missed:
            await self._load()
            for i, reply in zip(missed, await self._evaluate([commands[i] for i in missed]), strict=True):
                replies[i] = reply
        return replies

    async def _evaluate(self, commands: Sequence[Command]) -> list[Any]:
        if self._pipe is None or not self._pipe.open:
            pool = self._redis.connection_pool
            connection = await pool.get_connection()  # type: ignore[no-untyped-call]
            self._pipe = RedisConnection(connection)
            await pool.release(connection)
        packed = b"".join([self._packed(*command) for command in commands])
        return await self._pipe.ask(packed, len(commands), self._timeout_s)

    def _packed(self, script: str, names: Sequence[str], steps: Sequence[Values]) -> bytes:
        words = ("EVALSHA", self._shas[script], len(names), *names, *chain.from_iterable(steps))
        packed: bytes = pack_command(words)  # type: ignore[arg-type]  # its stub means a tuple of any length
        return packed

    async def _load(self) -> None:
        try:
            info = await self._redis.info("server")
        except RedisConnectionError:  # it was closed while nothing was asked of it: the library opens another one now
            info = await self._redis.info("server")
        self._run_id = str(info["run_id"])
        for name in script_loader.names():
            text = f"local RUN = '{self._run_id}'\n{script_loader.source(name)}"
            self._shas[name] = str(await self._redis.script_load(text))

    def close(self) -> None:
        """Closes the connection; a round that is under way fails."""
        if self._pipe is not None:
            self._pipe.close()


def _together(waiting: Sequence[Step]) -> list[list[Step]]:
    """Steps by the script that takes them: those of one channel share one, in their order, up to a bound."""
    rounds: list[list[Step]] = []
    last: dict[Sequence[str], tuple[list[Step], int]] = {}
    for step in waiting:
        script, names, values, _ = step
        size = sum(len(value) for value in values if isinstance(value, bytes))
        steps, total = last.get(names, ([], 0)) if script == CALLS else ([], 0)
        if not steps or len(steps) == MOST_STEPS or total + size > MOST_BYTES:
            steps, total = [], 0
            rounds.append(steps)
        steps.append(step)
        if script == CALLS:
            last[names] = (steps, total + size)
    return rounds


def _tell(steps: Sequence[Step], replies: Sequence[Any]) -> None:
    for (_, _, _, future), reply in zip(steps, replies, strict=True):
        if future.done():  # its caller has gone
            continue
        if isinstance(reply, Exception):
            failure = NotReady("store_unavailable", "the payment store cannot be reached or refused a step; retry")
            failure.__cause__ = reply
            future.set_exception(failure)
        else:
            future.set_result(reply)
