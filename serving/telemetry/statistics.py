"""Statistics of one model as V2 tells them, added up over its replicas in the store.

Counts are kept in memory and written once a second, and before they are read, so that no call waits for them; a
store that cannot be reached costs a late count, never a call. They name no caller.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal, Protocol

from redis.asyncio import Redis
from redis.exceptions import RedisError

from serving.errors import CallError
from serving.telemetry.usage import Execution

log = logging.getLogger("leben.statistics")
WRITE_PAUSE_S = 1.0
LAST = "last_inference"
Outcome = Literal["charged", "replayed", "free", "refused", "failed"]
"""How a call can end for its caller; alerts and dashboards ask for these words."""
DURATIONS = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss")


def key(dapp: str) -> str:
    """Hash, no expiry: the counters of one DApp (`success.count`, `success.ns`, `batch.8.ns`, …) by name."""
    return f"leben:stats:{dapp}"


class Counters(Protocol):
    """Where counters add up."""

    async def add(self, deltas: Mapping[str, int], last_ms: int) -> None:
        """Adds to counters, and notes the time of the last inference."""

    async def read(self) -> dict[str, int]:
        """All counters."""


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
        found: dict[Any, Any] = await self._redis.hgetall(self._key)
        return {name.decode(): int(value) for name, value in found.items()}


class LocalCounters:
    """Counters of one process alone."""

    def __init__(self) -> None:
        self._found: Counter[str] = Counter()

    async def add(self, deltas: Mapping[str, int], last_ms: int) -> None:
        """See `Counters.add`."""
        self._found.update(deltas)
        self._found[LAST] = last_ms

    async def read(self) -> dict[str, int]:
        """See `Counters.read`."""
        return dict(self._found)


class Exporter(Protocol):
    """Where the same counts go on their way to dashboards: see `metrics.py`."""

    def count(self, deltas: Mapping[str, int]) -> None:
        """Adds to counters."""

    def executed(self, execution: Execution) -> None:
        """One batch that ran."""

    def held(self, took_s: float) -> None:
        """A call's price was set aside in this time."""


class Statistics:
    """Counts the calls of one model.

    Args:
        counters: where they add up.
        exporter: told of all of it too.
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

    def succeeded(self, took_ns: int, input_ns: int, output_ns: int) -> None:
        """Counts a call that was answered: in all, reading its inputs, and writing its outputs."""
        self._last_ms = int(time.time() * 1000)
        self._count(
            {
                "success.count": 1,
                "success.ns": took_ns,
                "compute_input.count": 1,
                "compute_input.ns": input_ns,
                "compute_output.count": 1,
                "compute_output.ns": output_ns,
            }
        )

    def failed(self, took_ns: int) -> None:
        """Counts a call whose inputs or run failed; refusals of payment are no inferences."""
        self._count({"fail.count": 1, "fail.ns": took_ns})

    def outcome(self, name: Outcome, deltas: Mapping[str, int] | None = None) -> None:
        """Counts how a call ended for its caller; how much, or why."""
        self._count({f"calls.{name}": 1, **(deltas or {})})

    def held(self, took_s: float) -> None:
        """A call's price was set aside, or refused, in this time."""
        if self._exporter is not None:
            self._exporter.held(took_s)

    async def read(self, name: str, version: str) -> dict[str, Any]:
        """One entry of V2's `model_stats`; what this process has counted is in it.

        Raises:
            CallError: `busy`: the store does not answer.
        """
        try:
            await self._write()
            found = await self._counters.read()
        except (RedisError, OSError) as error:
            raise CallError("busy", "the store that holds the statistics does not answer: try again shortly") from error

        def duration(of: str) -> dict[str, int]:
            return {"count": found.get(f"{of}.count", 0), "ns": found.get(f"{of}.ns", 0)}

        sizes = sorted(int(field.split(".")[1]) for field in found if field.startswith("batch.") and field[-2:] == "ns")
        return {
            "name": name,
            "version": version,
            "last_inference": found.get(LAST, 0),
            "inference_count": found.get("inference_count", 0),
            "execution_count": found.get("execution_count", 0),
            "inference_stats": {each: duration(each) for each in DURATIONS},
            "batch_stats": [{"batch_size": size, "compute_infer": duration(f"batch.{size}")} for size in sizes],
        }

    def _count(self, deltas: Mapping[str, int]) -> None:
        fresh = self._fresh  # not a Counter: its `update` would take half as long as reading a small call
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
