"""Provides a store of either kind with a clock that the test moves, and ways to leave a rule out.

A rule is left out by changing the text that enforces it: a script on its way to Valkey, or a function's source. Both
must contain the changed text exactly once, so a row whose rule has moved fails instead of testing nothing.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import CodeType, FunctionType
from typing import Any

from channels.errors import ChannelError
from channels.metering.memory_store import MemoryStore
from channels.metering.store import Attempt, ChannelSnapshot, HoldRequest, LedgerSnapshot, StepResult
from channels.redis_store.store import RedisStore
from tests.channels.twins import ABANDONED, CLOCK, START_MS, Patch, Server, patched

CHANNEL = "0x" + "00" * 32
CAP, BALANCE = 50, 1_000
TTL_MS, ANSWER_MS = 6_000, 600_000


class Place:
    """A store at a point in time, and short words for its steps."""

    def __init__(self, store: RedisStore | MemoryStore, server: Server | None, make_world: Callable[[], Any]) -> None:
        self.store, self.server, self.make_world = store, server, make_world
        self.now_ms = START_MS
        self.requests: dict[tuple[str, str], HoldRequest] = {}

    async def opened(self, balance: int = BALANCE, channel: str = CHANNEL) -> None:
        await self.store.begin_reconcile(1)
        await self.store.mirror(LedgerSnapshot(channel, balance, 0, False, 0, 1), 1)
        await self.store.open_for_service(1)

    async def lossy(self, charged: int = 80, balance: int = BALANCE) -> None:
        """A channel that was rebuilt from SQL, everything charged by then claimed."""
        await self.opened(balance)
        await self.store.restore(ChannelSnapshot(CHANNEL, charged, 3, charged, b"\1" * 65), 1)
        await self.mirror(balance, claimed=charged)

    async def mirror(
        self,
        balance: int,
        claimed: int = 0,
        withdrawing: bool = False,
        nonce: int = 0,
        version: int = 2,
        token: int = 1,
    ) -> None:
        await self.store.mirror(LedgerSnapshot(CHANNEL, balance, claimed, withdrawing, nonce, version), token)

    async def hold(
        self, call: str, price: int, maximum: int, by: str = "t", keyed: bool = True, digest: str = "d"
    ) -> StepResult:
        # The signature tells the ceilings apart.
        signature = (maximum % 251).to_bytes(65, "big")
        request = HoldRequest(Attempt(CHANNEL, call, by, keyed, digest), price, maximum, signature, TTL_MS)
        self.requests[call, by] = request
        return await self.store.hold(request)

    async def charge(self, call: str, actual: int, by: str = "t") -> StepResult:
        return await self.store.charge(self.requests[call, by], actual, "{}", f"{call} {by}".encode(), ANSWER_MS)

    async def release(self, call: str, by: str = "t", gone: bool = False) -> StepResult:
        return await self.store.release(self.requests[call, by].attempt, gone)

    async def renew(self, call: str, ttl_ms: int, by: str = "t") -> StepResult:
        return await self.store.renew(self.requests[call, by].attempt, ttl_ms)

    async def reserve_refund(self, amount: int, nonce: int = 0, charged: int = 0, token: int = 1) -> str:
        return await self.store.reserve_refund(CHANNEL, amount, nonce, charged, token)

    async def now(self) -> StepResult:
        """The channel's amounts."""
        return await self.store.amounts(CHANNEL)

    async def code(self, step: Awaitable[Any]) -> str:
        """How a step is refused; empty if it is not."""
        try:
            await step
            return ""
        except ChannelError as error:
            return error.code

    def wait(self, ms: int) -> None:
        self.now_ms += ms
        if self.server:
            self.server.at(self.now_ms)

    def restart(self) -> None:
        """The store's server comes back with all its memory, but with another `run_id`."""
        if self.server:
            self.server.restart(self.server.dump())
        if isinstance(self.store, MemoryStore):
            self.store.restart(self.store.memory())


Scenario = Callable[[Place], Awaitable[None]]


@contextmanager
def on_valkey(url: str, make_world: Callable[[], Any], *patches: Patch) -> Iterator[Place]:
    """A place on a real Valkey whose scripts are changed."""
    server = Server(url)
    yield Place(patched(url, CAP, *CLOCK, *patches), server, make_world)
    server.close()


@contextmanager
def in_memory(make_world: Callable[[], Any]) -> Iterator[Place]:
    """A place in this process."""
    times: list[Place] = []
    times.append(Place(MemoryStore(CAP, lambda: times[0].now_ms, ABANDONED), None, make_world))
    yield times[0]


@dataclass(frozen=True)
class Swap:
    """A change of one function's source, which must contain `old` exactly once."""

    function: Any
    old: str
    new: str

    @contextmanager
    def applied(self) -> Iterator[None]:
        plain: FunctionType = inspect.unwrap(self.function)
        before = plain.__code__
        text = textwrap.dedent(inspect.getsource(plain))
        if text.count(self.old) != 1:  # never an AssertionError: that is how a rule that is left out is noticed
            raise LookupError(f"{plain.__qualname__} holds {self.old!r} {text.count(self.old)} times")
        changed = "from __future__ import annotations\n" + text.replace(self.old, self.new)
        codes = compile(changed, f"<{plain.__name__} without a rule>", "exec").co_consts
        plain.__code__ = next(code for code in codes if isinstance(code, CodeType) and code.co_name == plain.__name__)
        try:
            yield
        finally:
            plain.__code__ = before


def cut(file: str) -> Callable[..., Patch]:
    return partial(Patch, file)
