"""Checks that bodies which never end take few places of the control application, and none of its other routes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from serving.control.body_arrivals import BodyArrivals
from serving.errors import CallError
from serving.protocol import refused, small_body


class Caller:
    """One request over ASGI, whose body the test sends part by part."""

    def __init__(self, app: Any, method: str = "POST") -> None:
        self._parts: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._messages: list[dict[str, Any]] = []
        scope = {"type": "http", "method": method, "path": "/", "query_string": b"", "headers": []}
        self._task = asyncio.create_task(app(scope, self._parts.get, self._send))

    async def _send(self, message: dict[str, Any]) -> None:
        self._messages.append(message)

    def part(self, body: bytes, more: bool = True) -> None:
        self._parts.put_nowait({"type": "http.request", "body": body, "more_body": more})

    def hang_up(self) -> None:
        self._parts.put_nowait({"type": "http.disconnect"})

    async def answer(self) -> tuple[int, Any]:
        await asyncio.wait_for(self._task, 10)
        return self._messages[0]["status"], orjson.loads(self._messages[1]["body"])


async def size(request: Request) -> Response:
    return JSONResponse(len(await small_body(request, 100)))


async def health(request: Request) -> Response:
    return JSONResponse("live")


def on_app(scenario: Callable[[Any], Awaitable[None]], grace_s: float, places: int = 3) -> None:
    async def run() -> None:
        routes = [Route("/", size, methods=["POST"]), Route("/", health, methods=["GET"])]
        bounded: list[BodyArrivals] = []

        def middleware(app: Any) -> BodyArrivals:
            bounded.append(BodyArrivals(app, places, grace_s))
            return bounded[-1]

        app = Starlette(routes=routes, exception_handlers={CallError: refused})
        app.add_middleware(middleware)  # type: ignore[arg-type]
        app.middleware_stack = app.build_middleware_stack()
        await scenario(app)
        assert bounded[0].arriving == 0, "every place is free again"

    asyncio.run(run())


async def begun(app: Any, count: int) -> list[Caller]:
    callers = [Caller(app) for _ in range(count)]
    for caller in callers:
        caller.part(b"x")
    await asyncio.sleep(0.05)
    return callers


def test_bodies_that_stall_are_refused_beyond_their_places_and_health_answers() -> None:
    async def scenario(app: Any) -> None:
        stalled = await begun(app, 3)
        late = Caller(app)
        assert (await late.answer())[0] == 503, "at once, although nothing of its body has come"
        assert await Caller(app, "GET").answer() == (200, "live")
        stalled[1].part(b"y", more=False)
        assert await stalled[1].answer() == (200, 2)
        next_caller = Caller(app)
        next_caller.part(b"abc", more=False)
        assert await next_caller.answer() == (200, 3), "a place is free again"
        for caller in (stalled[0], stalled[2]):
            caller.hang_up()
            assert (await caller.answer())[1]["code"] == "bad_request"

    on_app(scenario, grace_s=60)


def test_the_oldest_body_gives_way_once_it_has_had_its_time() -> None:
    async def scenario(app: Any) -> None:
        stalled = await begun(app, 3)
        newcomer = Caller(app)
        assert (await stalled[0].answer())[1]["code"] == "slow_body"
        newcomer.part(b"abc", more=False)
        assert await newcomer.answer() == (200, 3)
        for caller in stalled[1:]:
            caller.part(b"", more=False)
            assert await caller.answer() == (200, 1), "only one had to go"

    on_app(scenario, grace_s=0.01)
