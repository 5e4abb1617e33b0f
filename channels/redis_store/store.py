"""`RedisStore`: every step of metering in one Lua script on Redis or Valkey.

What each step is given, and what its answer means; how steps travel is `store_rounds.py`'s.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from itertools import chain
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from channels.errors import NotReady, OutcomeUnknown
from channels.metering import (
    ABANDONED_LIMIT,
    ABANDONED_WINDOW_MS,
    AMOUNT_LIMIT,
    Attempt,
    ChannelSnapshot,
    Entry,
    HoldRequest,
    LedgerSnapshot,
    Outcome,
    StepResult,
    Store,
    clock_skew,
)
from channels.redis_store import keys
from channels.redis_store.check import check, foreign
from channels.redis_store.pipeline import ScriptPipeline, Values
from channels.redis_store.replies import read_answer, read_entry, read_text
from channels.redis_store.script_loader import CALLS, call_keys

RESTORED_AT_ONCE = 1_000


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
        self._rounds = ScriptPipeline(self._redis, timeout_s)
        self._exposure_cap, self._abandoned_limit = exposure_cap, abandoned_limit
        self._mesh = mesh

    async def hold(self, ask: HoldRequest, extra: int = 0, dry: bool = False) -> StepResult:
        """See `Store.hold`."""
        values: Values = [ask.price, ask.maximum, ask.signature.hex(), ask.ttl_ms, extra, int(dry)]
        values.append(self._abandoned_limit)
        return await self._call("hold", ask.attempt, values)

    async def charge(self, ask: HoldRequest, actual: int, body: str, answer: bytes, answer_ttl_ms: int) -> StepResult:
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

    async def release(self, attempt: Attempt, abandoned: bool = False) -> StepResult:
        """See `Store.release`."""
        return await self._call("release", attempt, [int(abandoned), ABANDONED_WINDOW_MS])

    async def renew(self, attempt: Attempt, ttl_ms: int) -> StepResult:
        """See `Store.renew`."""
        return await self._call("renew", attempt, [ttl_ms])

    async def mirror(self, mirror: LedgerSnapshot, token: int) -> None:
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
        _newest(await self._rounds.run("mirror", [keys.token(number), keys.channel(mirror.channel_id)], values))

    async def reserve_refund(self, channel_id: str, amount: int, nonce: int, charged: int, token: int) -> str:
        """See `Store.reserve_refund`."""
        names = [keys.token(keys.bucket(channel_id)), keys.channel(channel_id)]
        return str((await self._rounds.run("reserve_refund", names, [token, amount, nonce, charged])).decode())

    async def begin_reconcile(self, token: int) -> bool:
        """See `Store.begin_reconcile`."""
        gates = (self._readiness(token, number, opening=False) for number in range(keys.BUCKETS))
        return "closed" in await asyncio.gather(*gates)

    async def open_for_service(self, token: int, drained: Sequence[str] = ()) -> None:
        """See `Store.open_for_service`."""
        upto = drained or ["0-0"] * keys.BUCKETS
        gates = (self._readiness(token, number, opening=True, drained=upto[number]) for number in range(keys.BUCKETS))
        if "lost" in await asyncio.gather(*gates):
            raise NotReady("not_ready", "the store was emptied while it was reconciled")

    async def restore(self, copy: ChannelSnapshot, token: int) -> None:
        """See `Store.restore`."""
        channel = copy.channel_id
        names = [keys.token(keys.bucket(channel)), keys.channel(channel), keys.holds(channel)]
        head: Values = [token, copy.charged, copy.seq, copy.proof_maximum, copy.proof_signature.hex()]
        calls = [(keys.half(call_id), keys.half(digest)) for call_id, digest in copy.charged_calls.items()]
        # In parts: the server does nothing else while it takes one, and a busy channel's took longer than we wait.
        for first in range(0, max(1, len(calls)), RESTORED_AT_ONCE):
            part = chain.from_iterable(calls[first : first + RESTORED_AT_ONCE])
            _newest(await self._rounds.run("restore", [*names, keys.charged(channel)], [*head, *part]))

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
        return clock_skew.ahead_s(asked_s, seconds + micros / 1e6, time.time())

    async def close(self) -> None:
        """Closes the connections."""
        self._rounds.close()
        await self._redis.aclose()

    async def _readiness(self, token: int, number: int, opening: bool, drained: str = "0-0") -> str:
        names = [keys.token(number), keys.readiness(number), keys.journal(number), keys.mesh(number)]
        said = await self._rounds.run("readiness", names, [token, int(opening), drained, self._mesh])
        _newest(said)
        if said.startswith(b"foreign:"):
            raise foreign(said[8:].decode(errors="replace"), self._mesh)
        return str(said.decode())

    async def _call(self, name: str, attempt: Attempt, values: Values) -> StepResult:
        head: Values = [name, attempt.call_id, attempt.token, int(attempt.keyed), attempt.digest]
        answer = read_answer(await self._rounds.run(CALLS, call_keys(attempt.channel_id), head + values))
        if answer.outcome is Outcome.NOT_READY:
            raise NotReady("not_ready", "the store is being reconciled with the ledger; nothing was charged, retry")
        return answer

    async def _ask(self, *command: str) -> Any:
        try:
            return await self._redis.execute_command(*command)  # type: ignore[no-untyped-call]
        except (RedisError, OSError) as error:
            raise NotReady("store_unavailable", "the payment store cannot be reached; retry") from error


def _newest(said: bytes) -> None:
    """Raises NotReady if a step was refused because its treasury has been replaced."""
    if said == b"stale":
        raise NotReady("stale_treasury", "a newer treasury has taken over this store")


def _fits(store: RedisStore) -> Store:
    return store
