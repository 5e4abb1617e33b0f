"""Drives both stores as one: the scripts on a real Valkey and `MemoryStore` take each step and must agree.

Valkey's clock cannot be set, so the scripts are loaded with a clock that the test sets: the same text except where it
reads the server's time or lets a key expire.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import redis

from channels.errors import NotReady, OutcomeUnknown
from channels.metering.memory import Memory
from channels.metering.memory_store import MemoryStore
from channels.metering.store import StepResult
from channels.redis_store import keys, script_loader
from channels.redis_store.store import RedisStore

SCRIPTS = files("channels.redis_store").joinpath("scripts")
START_MS = 1_000_000_000
ABANDONED = 1
CALL_STEPS = ("hold", "charge", "release", "renew")
STEPS = (*CALL_STEPS, "amounts", "mirror", "reserve_refund", "begin_reconcile", "open_for_service", "restore")


@dataclass(frozen=True)
class Patch:
    """A change of one script's text, which must contain `old` exactly once."""

    file: str
    old: str
    new: str

    def apply(self, text: str) -> str:
        if text.count(self.old) != 1:  # never an AssertionError: that is how a rule that is left out is noticed
            raise LookupError(f"{self.file} holds {self.old!r} {text.count(self.old)} times")
        return text.replace(self.old, self.new)


CLOCK = (
    Patch("_head.lua", "redis.call('TIME')", "redis.call('HMGET', 'test:clock', 's', 'us')"),
    Patch(
        "charge.lua",
        "redis.pcall('PEXPIRE', answer, ttl_ms)",
        "redis.call('ZADD', 'test:ends', whole(now_ms + ttl_ms), answer)",
    ),
    Patch(
        "release.lua",
        "redis.pcall('PEXPIRE', abandoned, window_ms)",
        "redis.call('ZADD', 'test:ends', whole(now_ms + tonumber(window_ms)), abandoned)",
    ),
)


def patched(url: str, cap: int, *patches: Patch) -> RedisStore:
    """A store whose scripts are changed on their way to the server."""
    changed: dict[str, str] = {}
    for patch in patches:
        text = SCRIPTS.joinpath(patch.file).read_text()
        changed[text] = patch.apply(changed.get(text, text))

    def source(name: str) -> str:
        text = script_loader.source(name)
        for before, after in changed.items():
            text = text.replace(before, after)
        return text

    return RedisStore(url, exposure_cap=cap, abandoned_limit=ABANDONED, source=source)


class Server:
    """A Valkey whose clock, memory and restarts a test decides."""

    def __init__(self, url: str) -> None:
        self.client = redis.Redis.from_url(url)
        self.client.flushall()
        self.client.script_flush()
        self.now_ms = START_MS
        self.at(START_MS)

    def at(self, now_ms: int) -> None:
        """Sets the clock; answers end at their millisecond, as the server ends them."""
        self.now_ms = now_ms
        self.client.hset("test:clock", mapping={"s": now_ms // 1000, "us": now_ms % 1000 * 1000})
        ended = self.client.zrangebyscore("test:ends", "-inf", now_ms)
        if ended:
            self.client.delete(*ended)
            self.client.zrem("test:ends", *ended)

    def dump(self) -> dict[bytes, bytes]:
        """Everything it remembers."""
        names = [name for name in self.client.keys("*") if name != b"test:clock"]
        pipe = self.client.pipeline(transaction=False)
        for name in names:
            pipe.dump(name)
        return dict(zip(names, pipe.execute(), strict=True))

    def restart(self, memory: dict[bytes, bytes]) -> None:
        """Comes back with `memory`; its readiness keys hold the `run_id` of the server that wrote them."""
        self.client.flushall()
        pipe = self.client.pipeline(transaction=False)
        for name, value in memory.items():
            pipe.restore(name, 0, value)
        for number in range(keys.BUCKETS):
            if keys.readiness(number).encode() in memory:
                pipe.set(keys.readiness(number), "the server before")
        pipe.execute()
        self.at(self.now_ms)

    def close(self) -> None:
        self.client.close()


Memories = tuple[dict[bytes, bytes], Memory]
"""What the server and the model remember."""


class Twins:
    """The `Store` twice: a step returns the result of both, and fails where they differ."""

    def __init__(self, url: str, cap: int, *patches: Patch) -> None:
        self.server = Server(url)
        self.real = patched(url, cap, *CLOCK, *patches)
        self.model = MemoryStore(cap, lambda: self.server.now_ms, ABANDONED)

    async def __call__(self, step: str, *words: Any, **named: Any) -> Any:
        """Takes a step on both; a refusal's code is a result too."""
        assert step in STEPS
        real, model = [await _take(store, step, *words, **named) for store in (self.real, self.model)]
        assert real == model, f"{step}{words}: Valkey gives {real}, memory {model}"
        return real

    async def together(self, *taken: tuple[Any, ...]) -> list[Any]:
        """Takes steps of calls in flight: on Valkey in one turn of the loop, so one script takes those of a channel."""
        assert all(step in CALL_STEPS for step, *_ in taken)
        real = await asyncio.gather(*(_take(self.real, step, *words) for step, *words in taken))
        model = [await _take(self.model, step, *words) for step, *words in taken]
        assert real == model, f"{taken}: Valkey gives {real}, memory {model}"
        return model

    def snapshot(self) -> Memories:
        """What both remember now."""
        return self.server.dump(), self.model.memory()

    def lose(self, memories: Memories | None) -> None:
        """Both come back with an older memory, or none."""
        dump, memory = memories or ({}, None)
        self.server.restart(dump)
        self.model.restart(memory)

    def agree(self, channels: Sequence[str]) -> None:
        """Fails unless both remember exactly the same of these channels."""
        pipe = self.server.client.pipeline(transaction=False)
        for channel in channels:
            pipe.hgetall(keys.channel(channel)).hgetall(keys.holds(channel)).hgetall(keys.charged(channel))
        hashes = iter(pipe.execute())
        for channel in channels:
            real = _real(next(hashes), next(hashes), next(hashes))
            assert real == self._modelled(channel), channel

    def _modelled(self, channel: str) -> dict[str, Any]:
        account = self.model.accounts.get(channel)
        if account is None:
            return {}
        state, mirrored = account.state, account.version >= 0
        assert state.held == sum(hold.amount for hold in account.holds.values()), "what is held is the sum of the holds"
        remembered: dict[str, Any] = {
            "balance": state.balance if mirrored else 0,
            "version": account.version,
            "inc": account.incarnation,
            "refunding_nonce": account.refunding_nonce,
            "proof_sig": account.proof[1].hex(),
            "proof_max": account.proof[0],
            "holds": {name: (h.token, h.amount, h.digest, h.ends_ms) for name, h in account.holds.items()},
            "charged_calls": sorted(
                (keys.half(name), keys.half(charged.digest))
                for name, charged in account.charged.items()
                if charged.keyed
            ),
            "last": account.last if account.last[0] else ("", 0, ""),
        }
        for name in ("claimed", "charged", "held", "highest", "refunding"):
            remembered[name] = getattr(state, name)
        remembered |= {"withdrawing": state.withdrawing, "lossy": state.lossy, "seq": account.seq}
        return remembered | {"lossy_max": account.lossy_max, "lossy_call": account.lossy_call}

    async def close(self) -> None:
        await self.real.close()
        self.server.close()


async def _take(store: Any, step: str, *words: Any, **named: Any) -> StepResult | str | bool | None:
    try:
        result: StepResult | str | bool | None = await getattr(store, step)(*words, **named)
        return result
    except OutcomeUnknown:
        return "not_ready"  # a client cannot distinguish the two, memory can
    except NotReady as error:
        return error.code


def _real(raw: dict[bytes, bytes], holds: dict[bytes, bytes], charged: dict[bytes, bytes]) -> dict[str, Any]:
    if not raw:
        assert not holds and not charged
        return {}
    fields = {name.decode(): value.decode() for name, value in raw.items()}
    remembered: dict[str, Any] = {
        "holds": {},
        "charged_calls": sorted((name.decode(), digest.decode()) for name, digest in charged.items()),
    }
    for name, value in holds.items():
        token, amount, digest, ends = value.decode().split("|")
        remembered["holds"][name.decode()] = (token, int(amount), digest, int(ends))
        assert int(fields["due"]) <= int(ends), "no hold ends before the channel's holds are looked through"
    numbers = ("claimed", "charged", "held", "highest", "refunding", "proof_max", "seq", "lossy_max", "balance")
    remembered |= {name: int(fields.get(name, "0")) for name in numbers}
    remembered |= {name: fields.get(name, "0") == "1" for name in ("withdrawing", "lossy")}
    nonce = fields.get("refunding_nonce")
    remembered |= {"version": int(fields.get("version", "-1")), "inc": int(fields.get("inc", "0"))}
    remembered |= {"refunding_nonce": None if nonce is None else int(nonce), "proof_sig": fields.get("proof_sig", "")}
    last = (fields.get("last_call", ""), int(fields.get("last_max", "0")), fields.get("last_digest", ""))
    return remembered | {"last": last if last[0] else ("", 0, ""), "lossy_call": fields.get("lossy_call", "")}
