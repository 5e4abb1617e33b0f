"""`RedisStore` runs every step of metering as one Lua script on Redis or Valkey.

It gives each script its arguments and interprets its reply; `pipeline.py` carries them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
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
from channels.redis_store import keys, script_loader
from channels.redis_store.check import check, foreign
from channels.redis_store.pipeline import ScriptPipeline, Values
from channels.redis_store.replies import read_entry, read_result, read_text
from channels.redis_store.script_loader import CALLS, call_keys

MAX_CALLS_RESTORED = 1_000
"""Charged keys in one script: the server does nothing else while it runs, and all keys of a busy channel take longer
than callers wait.
"""


class RedisStore:
    """The `Store` on a Redis or Valkey server.

    `client` and `pipeline` are the two ways to the server; a test may wrap them.

    Args:
        url: ``redis://…``, ``rediss://…`` or ``unix://…``; may hold a password, so no text shows it.
        exposure_cap: atomic units that a channel may owe before its charges are claimed.
        timeout_s: longest wait for a reply of the server.
        abandoned_limit: how many unkeyed calls of a channel may be abandoned in a minute.
        mesh: names the ledger of the mesh that must own the store; empty: not checked.
        source: gives a script's text by its name.
    """

    def __init__(
        self,
        url: str,
        exposure_cap: int,
        timeout_s: float = 5.0,
        abandoned_limit: int = ABANDONED_LIMIT,
        mesh: str = "",
        source: Callable[[str], str] = script_loader.source,
    ) -> None:
        self.client: Redis = Redis.from_url(
            url,
            single_connection_client=True,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
        )
        self.pipeline = ScriptPipeline(self.client, timeout_s, source)
        self._exposure_cap, self._abandoned_limit = exposure_cap, abandoned_limit
        self._mesh = mesh

    async def hold(self, request: HoldRequest, extra: int = 0, dry: bool = False) -> StepResult:
        """See `Store.hold`."""
        values: Values = [request.price, request.maximum, request.signature.hex(), request.ttl_ms, extra, int(dry)]
        return await self._call("hold", request.attempt, [*values, self._abandoned_limit])

    async def charge(
        self, request: HoldRequest, actual: int, body: str, answer: bytes, answer_ttl_ms: int
    ) -> StepResult:
        """See `Store.charge`.

        Raises:
            OutcomeUnknown: the server's reply was lost twice: the call may or may not be charged.
        """
        values: Values = [actual, body, answer, answer_ttl_ms, request.maximum]
        try:
            return await self._call("charge", request.attempt, values)
        except NotReady:
            pass
        try:  # The step is idempotent by its token: the second reply shows whether the first one charged.
            return await self._call("charge", request.attempt, values)
        except NotReady as error:
            message = "the charge was sent but its outcome is not known; repeat the call with the same Idempotency-Key"
            raise OutcomeUnknown("outcome_unknown", message) from error

    async def release(self, attempt: Attempt, abandoned: bool = False) -> StepResult:
        """See `Store.release`."""
        return await self._call("release", attempt, [int(abandoned), ABANDONED_WINDOW_MS])

    async def renew(self, attempt: Attempt, ttl_ms: int) -> StepResult:
        """See `Store.renew`."""
        return await self._call("renew", attempt, [ttl_ms])

    async def amounts(self, channel_id: str) -> StepResult:
        """See `Store.amounts`."""
        return await self._call("amounts", Attempt(channel_id, call_id="", token="", keyed=False, digest=""), [])

    async def mirror(self, snapshot: LedgerSnapshot, token: int) -> None:
        """See `Store.mirror`."""
        names = [keys.token(keys.bucket(snapshot.channel_id)), keys.channel(snapshot.channel_id)]
        values: Values = [
            token,
            min(snapshot.balance, AMOUNT_LIMIT - 1),
            snapshot.claimed,
            int(snapshot.withdrawing),
            snapshot.refund_nonce,
            snapshot.version,
            self._exposure_cap,
            token,  # the incarnation of a channel that is new
        ]
        _check_newest(await self.pipeline.run("mirror", names, values))

    async def reserve_refund(self, channel_id: str, amount: int, nonce: int, charged: int, token: int) -> str:
        """See `Store.reserve_refund`."""
        names = [keys.token(keys.bucket(channel_id)), keys.channel(channel_id)]
        return read_text(await self.pipeline.run("reserve_refund", names, [token, amount, nonce, charged]))

    async def begin_reconcile(self, token: int) -> bool:
        """See `Store.begin_reconcile`."""
        buckets = range(keys.BUCKETS)
        replies = await asyncio.gather(*(self._set_readiness(token, number, opening=False) for number in buckets))
        return "closed" in replies

    async def open_for_service(self, token: int, drained: Sequence[str] = ()) -> None:
        """See `Store.open_for_service`."""
        upto = drained or ["0-0"] * keys.BUCKETS
        buckets = range(keys.BUCKETS)
        replies = await asyncio.gather(
            *(self._set_readiness(token, number, opening=True, drained=upto[number]) for number in buckets)
        )
        if "lost" in replies:
            raise NotReady("not_ready", "the store was emptied while it was reconciled")

    async def restore(self, snapshot: ChannelSnapshot, token: int) -> None:
        """See `Store.restore`."""
        channel = snapshot.channel_id
        names = [keys.token(keys.bucket(channel)), keys.channel(channel), keys.holds(channel), keys.charged(channel)]
        head: Values = [
            token,
            snapshot.charged,
            snapshot.seq,
            snapshot.proof_maximum,
            snapshot.proof_signature.hex(),
        ]
        calls = [(keys.half(call_id), keys.half(digest)) for call_id, digest in snapshot.charged_calls.items()]
        for first in range(0, max(1, len(calls)), MAX_CALLS_RESTORED):
            part = chain.from_iterable(calls[first : first + MAX_CALLS_RESTORED])
            _check_newest(await self.pipeline.run("restore", names, [*head, *part]))

    async def read_journal(self, bucket: int, after: str, count: int) -> list[Entry]:
        """See `Store.read_journal`."""
        entries = await self._execute("XRANGE", keys.journal(bucket), f"({after}", "+", "COUNT", str(count))
        return [(read_text(stream_id), read_entry(fields)) for stream_id, fields in entries]

    async def trim_journal(self, bucket: int, upto: str) -> None:
        """See `Store.trim_journal`."""
        time_ms, _, number = upto.partition("-")
        await self._execute("XTRIM", keys.journal(bucket), "MINID", f"{time_ms}-{int(number) + 1}")

    async def check(self) -> None:
        """Refuses a server that would lose charges, see `channels.redis_store.check`.

        Raises:
            NotReady: the server would lose charges, or cannot be reached.
        """
        try:
            info = await self.client.info()
        except (RedisError, OSError) as error:
            raise NotReady("store_unavailable", "the payment store cannot be reached; retry") from error
        check(info)

    async def ahead_s(self) -> float:
        """Seconds by which the server's clock is ahead of this machine's, see `clock_skew.ahead_s`."""
        before_s = time.time()
        seconds, micros = await self._execute("TIME")
        return clock_skew.ahead_s(before_s, seconds + micros / 1e6, time.time())

    async def close(self) -> None:
        """Waits for the steps under way and closes the connections."""
        await self.pipeline.close()
        await self.client.aclose()

    async def _set_readiness(self, token: int, number: int, opening: bool, drained: str = "0-0") -> str:
        names = [keys.token(number), keys.readiness(number), keys.journal(number), keys.mesh(number)]
        reply: bytes = await self.pipeline.run("readiness", names, [token, int(opening), drained, self._mesh])
        _check_newest(reply)
        if reply.startswith(b"foreign:"):
            raise foreign(reply[8:].decode(errors="replace"), self._mesh)
        return reply.decode()

    async def _call(self, step: str, attempt: Attempt, values: Values) -> StepResult:
        head: Values = [step, attempt.call_id, attempt.token, int(attempt.keyed), attempt.digest]
        result = read_result(await self.pipeline.run(CALLS, call_keys(attempt.channel_id), head + values))
        if result.outcome is Outcome.NOT_READY:
            raise NotReady("not_ready", "the store is being reconciled with the ledger; nothing was charged, retry")
        return result

    async def _execute(self, *command: str) -> Any:
        try:
            return await self.client.execute_command(*command)  # type: ignore[no-untyped-call]
        except (RedisError, OSError) as error:
            raise NotReady("store_unavailable", "the payment store cannot be reached; retry") from error


def _check_newest(reply: bytes) -> None:
    """Raises NotReady if the script refused the token of a treasury that was replaced."""
    if reply == b"stale":
        raise NotReady("stale_treasury", "a newer treasury has taken over this store")


def _fits(store: RedisStore) -> Store:
    return store
