"""Counts the calls of one model and adds the counts of its replicas up in the store, as V2's statistics.

Counts are kept in memory and written once a second and before each read, so that no call waits for them. A store that
cannot be reached delays a count and never a call. No counter names a caller.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any, Protocol

from redis.asyncio import Redis
from redis.exceptions import RedisError

from serving.errors import CallError
from serving.telemetry.calls import CallRecord
from serving.telemetry.usage import Execution

log = logging.getLogger("leben.statistics")
WRITE_PAUSE_S = 1.0
LAST = "last_inference"
DURATIONS = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss")


def key(dapp: str) -> str:
    """Hash, no expiry: the counters of one DApp (`success.count`, `success.ns`, `batch.8.ns`, …) by name."""
    return f"leben:stats:{dapp}"


class Counters(Protocol):
    """Adds counters up."""

    async def add(self, deltas: Mapping[str, int], last_ms: int) -> None:
        """Adds to counters and sets the time of the last inference, in Unix milliseconds."""

    async def read(self) -> dict[str, int]:
        """All counters by name."""


class RedisCounters:
    """The counters of one DApp in the store, shared by its replicas."""

    def __init__(self, url: str, dapp: str) -> None:
        self._redis: Redis = Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2)
        self._key = key(dapp)

    async def add(self, deltas: Mapping[str, int], last_ms: int) -> None:
        """See `Counters.add`."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for name, delta in deltas.items():
                pipe.hincrby(self._key, name, delta)
            pipe.hset(self._key, LAST, str(last_ms))
            await pipe.execute()

    async def read(self) -> dict[str, int]:
        """See `Counters.read`."""
        counters: dict[Any, Any] = await self._redis.hgetall(self._key)
        return {name.decode(): int(value) for name, value in counters.items()}

    async def close(self) -> None:
        """Closes the connections."""
        await self._redis.aclose()


class LocalCounters:
    """The counters of one process alone."""

    def __init__(self) -> None:
        self._counters: Counter[str] = Counter()

    async def add(self, deltas: Mapping[str, int], last_ms: int) -> None:
        """See `Counters.add`."""
        self._counters.update(deltas)
        self._counters[LAST] = last_ms

    async def read(self) -> dict[str, int]:
        """See `Counters.read`."""
        return dict(self._counters)


class Exporter(Protocol):
    """Receives the same counts for dashboards; see `Metrics`."""

    def count(self, deltas: Mapping[str, int]) -> None:
        """Adds to counters."""

    def executed(self, execution: Execution) -> None:
        """Observes a batch that ran."""

    def held(self, took_s: float) -> None:
        """Observes how long it took to hold a call's price."""


class Statistics:
    """Counts the calls of one model.

    Args:
        counters: where the counts add up.
        exporter: receives them too.
    """

    def __init__(self, counters: Counters, exporter: Exporter | None = None) -> None:
        self._counters, self._exporter = counters, exporter
        self._fresh: dict[str, int] = {}
        self._unwritten: Counter[str] = Counter()
        self._last_ms = 0
        self._writing = asyncio.Lock()
        self._writer: asyncio.Task[None] | None = None

    def executed(self, execution: Execution) -> None:
        """Counts a batch that ran."""
        calls, took_ns = execution.calls, execution.took_ns
        if self._exporter is not None:
            self._exporter.executed(execution)
        self._count(
            {
                "inference_count": execution.rows,
                "execution_count": 1,
                "device.ns": took_ns,
                f"batch.{execution.rows}.count": 1,
                f"batch.{execution.rows}.ns": took_ns,
                "queue.count": calls,
                "queue.ns": execution.queued_ns,
                "compute_infer.count": calls,
                "compute_infer.ns": calls * took_ns,
            }
        )

    def finished(self, call: CallRecord) -> None:
        """Counts a call that has ended: what it computed, how it ended for its caller, and what it was charged.

        A refusal of payment is no inference: it counts neither as a success nor as a failure.
        """
        deltas: dict[str, int] = {}
        if call.computed:
            self._last_ms = int(time.time() * 1000)
            deltas = {
                "success.count": 1,
                "success.ns": call.work_ns,
                "compute_input.count": 1,
                "compute_input.ns": call.input_ns,
                "compute_output.count": 1,
                "compute_output.ns": call.output_ns,
            }
        elif call.computed is False:
            deltas = {"fail.count": 1, "fail.ns": call.work_ns}
        if call.outcome is not None:
            deltas[f"calls.{call.outcome}"] = 1
            if call.outcome == "charged" and call.money is not None:
                deltas["charged.units"] = call.money.charged
            elif call.outcome in ("refused", "failed"):
                deltas[f"refused.{call.code}"] = 1
        if call.hold_s is not None and self._exporter is not None:
            self._exporter.held(call.hold_s)
        if deltas:
            self._count(deltas)

    async def read(self, name: str, version: str) -> dict[str, Any]:
        """One entry of V2's `model_stats`, with what this process has counted so far.

        Raises:
            CallError: `busy`: the store does not answer.
        """
        try:
            await self._write()
            counters = await self._counters.read()
        except (RedisError, OSError) as error:
            raise CallError("busy", "the store that holds the statistics does not answer: try again shortly") from error

        def duration(name: str) -> dict[str, int]:
            return {"count": counters.get(f"{name}.count", 0), "ns": counters.get(f"{name}.ns", 0)}

        sizes = sorted(
            int(field.split(".")[1]) for field in counters if field.startswith("batch.") and field[-2:] == "ns"
        )
        return {
            "name": name,
            "version": version,
            "last_inference": counters.get(LAST, 0),
            "inference_count": counters.get("inference_count", 0),
            "execution_count": counters.get("execution_count", 0),
            "inference_stats": {step: duration(step) for step in DURATIONS},
            "batch_stats": [{"batch_size": size, "compute_infer": duration(f"batch.{size}")} for size in sizes],
        }

    @property
    def unwritten(self) -> dict[str, int]:
        """Counts that the store has not taken yet."""
        return dict(self._unwritten)

    def _count(self, deltas: Mapping[str, int]) -> None:
        fresh = self._fresh  # a plain dict: Counter.update would take half as long as decoding a small call
        for name, delta in deltas.items():
            fresh[name] = fresh.get(name, 0) + delta
        if self._writer is None or self._writer.done():
            self._writer = asyncio.get_running_loop().create_task(self._later())

    async def _later(self) -> None:
        await asyncio.sleep(WRITE_PAUSE_S)
        try:
            await self._write()
        except (RedisError, OSError) as error:
            log.warning("statistics are kept for later: %s", type(error).__name__)

    async def _write(self) -> None:
        async with self._writing:
            fresh, self._fresh = self._fresh, {}
            if fresh and self._exporter is not None:
                self._exporter.count(fresh)
            self._unwritten.update(fresh)
            if not self._unwritten:
                return
            deltas, self._unwritten = self._unwritten, Counter()
            try:
                await self._counters.add(deltas, self._last_ms)
            except (RedisError, OSError):
                self._unwritten.update(deltas)
                raise
