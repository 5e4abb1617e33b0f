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
