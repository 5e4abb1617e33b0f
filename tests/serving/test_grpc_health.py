"""gRPC's health service answers what a stock probe asks."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from serving.control import grpc_health
from serving.control.grpc_server import SERVICE, GrpcServer
from serving.control.models import Models
from tests.conftest import free_ports


def check(body: bytes, is_ready: bool = True) -> bytes:
    async def ready() -> bool:
        return is_ready

    async def run() -> bytes:
        server, port = GrpcServer({}, Models((), None), ready, 1 << 20), free_ports()
        await server.start(f"127.0.0.1:{port}")
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                return bytes(await channel.unary_unary("/grpc.health.v1.Health/Check")(body))
        finally:
            await server.stop(grace_s=0)

    return asyncio.run(run())


NAMED = b"\x0a" + bytes([len(SERVICE)]) + SERVICE.encode()


@pytest.mark.parametrize("body", [b"", NAMED], ids=["the server", "the service"])
def test_the_health_service_follows_readiness(body: bytes) -> None:
    assert check(body) == grpc_health.SERVING
    assert check(body, is_ready=False) == grpc_health.NOT_SERVING


@pytest.mark.parametrize("body", [b"\x0a\x01x", b"\x0a", b"\x0a\xff" + b"x" * 300, NAMED * 2, b"\x12\x00"])
def test_an_unknown_service_is_not_found(body: bytes) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        check(body)
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND


def test_a_watch_tells_each_change_and_ends_with_its_client() -> None:
    states = iter([True, True, False, False, True])

    async def ready() -> bool:
        return next(states, True)

    async def run() -> list[bytes]:
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((grpc_health.handlers(SERVICE, ready, watch_s=0.01),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                watch = channel.unary_stream("/grpc.health.v1.Health/Watch")
                unknown = watch(b"\x0a\x01x")
                assert await unknown.read() == grpc_health.SERVICE_UNKNOWN
                call = watch(NAMED)
                return [await call.read() for _ in range(3)]
        finally:
            await server.stop(None)

    assert asyncio.run(run()) == [grpc_health.SERVING, grpc_health.NOT_SERVING, grpc_health.SERVING]


def test_more_watches_than_are_allowed_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_health, "MAX_WATCHES", 1)

    async def ready() -> bool:
        return True

    async def run() -> grpc.StatusCode:
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((grpc_health.handlers(SERVICE, ready),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                watch = channel.unary_stream("/grpc.health.v1.Health/Watch")
                first = watch(b"")
                await first.read()
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await watch(b"").read()
                return refused.value.code()
        finally:
            await server.stop(None)

    assert asyncio.run(run()) is grpc.StatusCode.RESOURCE_EXHAUSTED
