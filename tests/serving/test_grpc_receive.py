"""Callers who send slowly over gRPC are refused in time, and their slots go to others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from serving.control.grpc_receive import MessageReceiver
from serving.control.grpc_server import SERVICE, GrpcServer
from serving.control.models import Models
from tests.conftest import free_ports


async def ready() -> bool:
    return True


def on_server(receiver: MessageReceiver, scenario: Callable[[Any], Awaitable[None]]) -> None:
    async def run() -> None:
        server, port = GrpcServer({}, Models((), None), ready, 1 << 20, receiver), free_ports()
        await server.start(f"127.0.0.1:{port}")
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                await scenario(channel)
        finally:
            await server.stop(grace_s=0)

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


def test_a_caller_that_sends_nothing_is_refused_in_time_and_blocks_nobody() -> None:
    async def scenario(channel: Any) -> None:
        calls = [silent(channel), silent(channel, "ModelMetadata")]
        assert await live(channel)
        assert [await refusal(call) for call in calls] == [SLOW, SLOW]
        assert receiver.receiving == 0

    receiver = MessageReceiver(timeout_s=0.2)
    on_server(receiver, scenario)


def test_the_oldest_message_loses_its_slot_to_a_waiting_one() -> None:
    async def scenario(channel: Any) -> None:
        calls = [silent(channel) for _ in range(3)]
        while receiver.receiving < 3:
            await asyncio.sleep(0.01)
        assert await live(channel)
        refusals = [asyncio.create_task(refusal(call)) for call in calls]
        (first,), others = await asyncio.wait(refusals, return_when=asyncio.FIRST_COMPLETED)
        assert first.result() == SLOW
        assert receiver.receiving == len(others) == 2, "one slot was enough"
        for call, task in zip(calls, refusals, strict=True):
            task.cancel()
            call.cancel()
        while receiver.receiving:
            await asyncio.sleep(0.01)
        assert await live(channel), "a caller who hangs up frees its slot"

    receiver = MessageReceiver(max_receiving=3, grace_s=0.05)
    on_server(receiver, scenario)


def test_a_call_that_ends_without_a_message_is_refused() -> None:
    async def scenario(channel: Any) -> None:
        call = silent(channel)
        await call.done_writing()
        assert await refusal(call) == (grpc.StatusCode.INVALID_ARGUMENT, "400 bad_request")

    on_server(MessageReceiver(), scenario)


def test_calls_of_one_address_that_send_nothing_leave_places_to_others() -> None:
    async def scenario(channel: Any) -> None:
        calls = [silent(channel) for _ in range(3)]
        while receiver.begun < 3:
            await asyncio.sleep(0.01)
        refused = [await refusal(silent(channel)) for _ in range(3)]
        assert set(refused) == {(grpc.StatusCode.UNAVAILABLE, "503 busy")}, "at once"
        message = await receiver.message(_sent(b"x"), "ipv4:192.0.2.7")
        assert message == b"x"
        for call in calls:
            call.cancel()
        while receiver.begun:
            await asyncio.sleep(0.01)
        assert await live(channel), "a caller who hangs up leaves the address its share"

    receiver = MessageReceiver(max_per_peer=3, max_receiving=2, grace_s=0.5)
    on_server(receiver, scenario)


async def _sent(message: bytes) -> AsyncIterator[bytes]:
    yield message


def test_a_client_that_pings_through_a_long_call_without_data_keeps_its_connection() -> None:
    """Of gRPC's own defaults a server ends the connection at the third ping."""
    options = [
        ("grpc.keepalive_time_ms", 2_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]

    async def long() -> bool:
        await asyncio.sleep(10)
        return True

    async def run() -> None:
        server, port = GrpcServer({}, Models((), None), long, 1 << 20), free_ports()
        await server.start(f"127.0.0.1:{port}")
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options) as channel:
                stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
                assert (await stub.ServerReady(service_pb2.ServerReadyRequest())).ready
        finally:
            await server.stop(grace_s=0)

    asyncio.run(run())
