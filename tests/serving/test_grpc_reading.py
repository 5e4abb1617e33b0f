"""Callers who are slow to send by gRPC: they are told after a while, and their places go to those who are not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from serving.control.grpc_receive import Reading
from serving.control.grpc_server import SERVICE, GrpcDoor
from serving.control.models import Models
from tests.conftest import free_ports


async def ready() -> bool:
    return True


def on_door(reading: Reading, scenario: Callable[[Any], Awaitable[None]]) -> None:
    async def run() -> None:
        door, port = GrpcDoor({}, Models((), None), ready, 1 << 20, reading), free_ports()
        await door.start(f"127.0.0.1:{port}")
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                await scenario(channel)
        finally:
            await door._server.stop(None)

    asyncio.run(run())


def silent(channel: Any, method: str = "ModelInfer") -> Any:
    """A call that is begun, and of whose message nothing comes."""
    return channel.stream_unary(f"/{SERVICE}/{method}")()


async def live(channel: Any) -> bool:
    return bool(
        (await service_pb2_grpc.GRPCInferenceServiceStub(channel).ServerLive(service_pb2.ServerLiveRequest())).live
    )


async def refusal(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    return refused.value.code(), dict(refused.value.trailing_metadata())["leben-error"]


SLOW = (grpc.StatusCode.DEADLINE_EXCEEDED, "408 slow_body")


def test_who_sends_nothing_is_told_after_a_while_and_keeps_nobody_out() -> None:
    async def scenario(channel: Any) -> None:
        calls = [silent(channel), silent(channel, "ModelMetadata")]
        assert await live(channel)
        assert [await refusal(call) for call in calls] == [SLOW, SLOW]
        assert not reading._readers

    reading = Reading(timeout_s=0.2)
    on_door(reading, scenario)


def test_a_place_goes_from_the_slowest_to_who_waits_for_one() -> None:
    async def scenario(channel: Any) -> None:
        calls = [silent(channel) for _ in range(3)]
        while len(reading._readers) < 3:
            await asyncio.sleep(0.01)
        assert await live(channel)
        refused = [asyncio.create_task(refusal(call)) for call in calls]
        (first,), others = await asyncio.wait(refused, return_when=asyncio.FIRST_COMPLETED)
        assert first.result() == SLOW
        assert len(reading._readers) == len(others) == 2, "one was enough"
        for call, told in zip(calls, refused, strict=True):
            told.cancel()
            call.cancel()
        while reading._readers:
            await asyncio.sleep(0.01)
        assert await live(channel), "a caller who hangs up leaves its place"

    reading = Reading(places=3, patience_s=0.05)
    on_door(reading, scenario)


def test_a_call_that_ends_without_a_message_is_refused() -> None:
    async def scenario(channel: Any) -> None:
        call = silent(channel)
        await call.done_writing()
        assert await refusal(call) == (grpc.StatusCode.INVALID_ARGUMENT, "400 bad_request")

    on_door(Reading(), scenario)
