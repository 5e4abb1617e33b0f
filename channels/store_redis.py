"""`RedisStore`: every step of metering in one Lua script on Redis or Valkey.

One connection per event loop; steps taken in one turn of the loop travel in one pipeline (a pool of 64 connections
costs a third of the throughput), and those of one channel in one run of the script. Scripts
carry the server's `run_id` in their text: after a restart they are unknown there, so no process can go on with the
memory of another server by mistake. Next: `scripts/_head.lua`, `hold.lua`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from itertools import chain
from typing import Any

from hiredis import pack_command
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError

from channels import clocks, keys, store_scripts
from channels.channel import ABANDONED_LIMIT, ABANDONED_WINDOW_MS, AMOUNT_LIMIT, Outcome
from channels.errors import NotReady, OutcomeUnknown
from channels.store import Answer, Ask, Attempt, Copy, Entry, Mirror, Store
from channels.store_check import check, foreign
from channels.store_pipe import Pipe
from channels.store_replies import read_answer, read_entry, read_text
from channels.store_scripts import CALLS, call_keys

Values = list[str | bytes | int]
Command = tuple[str, Sequence[str], Sequence[Values]]
"""A script, its keys, and what each of the steps is given that it takes."""
Step = tuple[str, Sequence[str], Values, "asyncio.Future[Any]"]
MOST_STEPS, MOST_BYTES = 64, 1 << 20
"""Of one script, of which the server does nothing else until it has ended."""


class RedisStore:
    """The `Store` on a Redis or Valkey server.

    Args:
        url: ``redis://…`` or ``unix://…``; may hold a password, so it is never shown.
        exposure_cap: atomic units a channel may owe before its charges are claimed.
        timeout_s: longest wait for an answer of the server.
        abandoned_limit: how many calls without a key may be hung up on in a minute.
        mesh: names the ledger of the mesh that the store has to belong to; empty: not asked.
    """

    def __init__(
        self,
        url: str,
        exposure_cap: int,
        timeout_s: float = 5.0,
        abandoned_limit: int = ABANDONED_LIMIT,
        mesh: str = "",
    ) -> None:
        self._redis: Redis = Redis.from_url(
            url,
            single_connection_client=True,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
        )
        self._pipe: Pipe | None = None
        self._timeout_s = timeout_s
        self._exposure_cap, self._abandoned_limit = exposure_cap, abandoned_limit
        self._mesh = mesh
        self._run_id = ""
        self._shas: dict[str, str] = {}
        self._waiting: list[Step] = []
        self._sender: asyncio.Task[None] | None = None

    async def hold(self, ask: Ask, extra: int = 0, dry: bool = False) -> Answer:
        """See `Store.hold`."""
        values: Values = [ask.price, ask.maximum, ask.signature.hex(), ask.ttl_ms, extra, int(dry)]
        values.append(self._abandoned_limit)
        return await self._call("hold", ask.attempt, values)

    async def charge(self, ask: Ask, actual: int, body: str, answer: bytes, answer_ttl_ms: int) -> Answer:
        """See `Store.charge`.

        Raises:
            OutcomeUnknown: if the server's reply was lost twice: the call may or may not be charged.
        """
        values: Values = [actual, body, answer, answer_ttl_ms, ask.maximum]
        try:
            return await self._call("charge", ask.attempt, values)
        except NotReady:
            pass
        try:  # Idempotent by its token: asking again tells what became of the first.
            return await self._call("charge", ask.attempt, values)
        except NotReady as error:
            message = "the charge was sent but its outcome is not known; repeat the call with the same Idempotency-Key"
            raise OutcomeUnknown("outcome_unknown", message) from error

    async def release(self, attempt: Attempt, abandoned: bool = False) -> Answer:
        """See `Store.release`."""
        return await self._call("release", attempt, [int(abandoned), ABANDONED_WINDOW_MS])

    async def renew(self, attempt: Attempt, ttl_ms: int) -> Answer:
        """See `Store.renew`."""
        return await self._call("renew", attempt, [ttl_ms])

    async def mirror(self, mirror: Mirror, token: int) -> None:
        """See `Store.mirror`."""
        number = keys.bucket(mirror.channel_id)
        values: Values = [
            token,
            min(mirror.balance, AMOUNT_LIMIT - 1),
            mirror.claimed,
            int(mirror.withdrawing),
            mirror.refund_nonce,
            mirror.version,
        ]
        values += [self._exposure_cap, token]
        _newest(await self._run("mirror", [keys.token(number), keys.channel(mirror.channel_id)], values))

    async def refunding(self, channel_id: str, amount: int, nonce: int, charged: int, token: int) -> str:
        """See `Store.refunding`."""
        names = [keys.token(keys.bucket(channel_id)), keys.channel(channel_id)]
        return str((await self._run("refunding", names, [token, amount, nonce, charged])).decode())

    async def unready(self, token: int) -> bool:
        """See `Store.unready`."""
        gates = (self._gate(token, number, opening=False) for number in range(keys.BUCKETS))
        return "closed" in await asyncio.gather(*gates)

    async def ready(self, token: int, drained: Sequence[str] = ()) -> None:
        """See `Store.ready`."""
        upto = drained or ["0-0"] * keys.BUCKETS
        gates = (self._gate(token, number, opening=True, drained=upto[number]) for number in range(keys.BUCKETS))
        if "lost" in await asyncio.gather(*gates):
            raise NotReady("not_ready", "the store was emptied while it was reconciled")

    async def restore(self, copy: Copy, token: int) -> None:
        """See `Store.restore`."""
        channel = copy.channel_id
        names = [keys.token(keys.bucket(channel)), keys.channel(channel), keys.holds(channel)]
        values: Values = [token, copy.charged, copy.seq, copy.proof_maximum, copy.proof_signature.hex()]
        for call_id, record in copy.charged_calls.items():
            values += [call_id, record]
        _newest(await self._run("restore", [*names, keys.charged(channel)], values))

    async def read_journal(self, bucket: int, after: str, count: int) -> list[Entry]:
        """See `Store.read_journal`."""
        found = await self._ask("XRANGE", keys.journal(bucket), f"({after}", "+", "COUNT", str(count))
        return [(read_text(stream_id), read_entry(fields)) for stream_id, fields in found]

    async def trim_journal(self, bucket: int, upto: str) -> None:
        """See `Store.trim_journal`."""
        first, _, last = upto.partition("-")
        await self._ask("XTRIM", keys.journal(bucket), "MINID", f"{first}-{int(last) + 1}")

    async def check(self) -> None:
        """Refuses a server that would lose charges, see `store_check.check`.

        Raises:
            NotReady: it does, or cannot be reached.
        """
        try:
            info = await self._redis.info()
        except (RedisError, OSError) as error:
            raise NotReady("store_unavailable", "the payment store cannot be reached; retry") from error
        check(info)

    async def ahead_s(self) -> float:
        """Seconds by which the server's clock is ahead of this machine's, see `clocks.ahead_s`."""
        asked_s = time.time()
        seconds, micros = await self._ask("TIME")
        return clocks.ahead_s(asked_s, seconds + micros / 1e6, time.time())

    async def close(self) -> None:
        """Closes the connections."""
        if self._pipe is not None:
            self._pipe.close()
        await self._redis.aclose()

    async def _gate(self, token: int, number: int, opening: bool, drained: str = "0-0") -> str:
        names = [keys.token(number), keys.gate(number), keys.journal(number), keys.mesh(number)]
        said = await self._run("gate", names, [token, int(opening), drained, self._mesh])
        _newest(said)
        if said.startswith(b"foreign:"):
            raise foreign(said[8:].decode(errors="replace"), self._mesh)
        return str(said.decode())

    async def _call(self, name: str, attempt: Attempt, values: Values) -> Answer:
        head: Values = [name, attempt.call_id, attempt.token, int(attempt.keyed), attempt.digest]
        answer = read_answer(await self._run(CALLS, call_keys(attempt.channel_id), head + values))
        if answer.outcome is Outcome.NOT_READY:
            raise NotReady("not_ready", "the store is being reconciled with the ledger; nothing was charged, retry")
        return answer

    async def _run(self, script: str, names: Sequence[str], values: Values) -> Any:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((script, names, values, future))
        if self._sender is None or self._sender.done():
            self._sender = asyncio.create_task(self._send())
        return await future

    async def _send(self) -> None:
        while self._waiting:
            waiting, self._waiting = self._waiting, []
            rounds = _together(waiting)
            # One step that fails must not take those along that it shared a script with. None of them was taken, for a
            # script fails at its first write or not at all; and each may be repeated, with its token.
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
        if not self._run_id:
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
            self._pipe = Pipe(connection)
            await pool.release(connection)
        packed = b"".join([self._packed(*command) for command in commands])
        return await self._pipe.ask(packed, len(commands), self._timeout_s)

    def _packed(self, script: str, names: Sequence[str], steps: Sequence[Values]) -> bytes:
        words = ("EVALSHA", self._shas[script], len(names), *names, *chain.from_iterable(steps))
        packed: bytes = pack_command(words)  # type: ignore[arg-type]  # its stub means a tuple of any length
        return packed

    async def _load(self) -> None:
        info = await self._redis.info("server")
        self._run_id = str(info["run_id"])
        for name in store_scripts.names():
            text = f"local RUN = '{self._run_id}'\n{store_scripts.source(name)}"
            self._shas[name] = str(await self._redis.script_load(text))

    async def _ask(self, *command: str) -> Any:
        try:
            return await self._redis.execute_command(*command)  # type: ignore[no-untyped-call]
        except (RedisConnectionError, OSError) as error:
            raise NotReady("store_unavailable", "the payment store cannot be reached; retry") from error


def _newest(said: bytes) -> None:
    """Raises NotReady if a step was refused because its treasury has been replaced."""
    if said == b"stale":
        raise NotReady("stale_treasury", "a newer treasury has taken over this store")


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


def _fits(store: RedisStore) -> Store:
    return store
