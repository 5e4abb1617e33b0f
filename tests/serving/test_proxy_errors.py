"""Tests serving/cluster/proxy_errors.py: HAProxy's own answers are JSON with a code."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from serving.cluster import proxy_errors
from serving.cluster.ray_environment import environment
from serving.config.settings import Settings
from tests.conftest import RunningMesh, free_ports

SERVE_PAGE = "HTTP/1.1 500 Internal Server Error\r\nContent-Type: text/plain\r\nContent-Length: 4\r\n\r\nFail"


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    """A proxy whose `defaults` end as Serve writes them, and whose only server is not there."""
    from ray.serve._private.haproxy import get_haproxy_binary

    settings = Settings(data=tmp_path)
    (tmp_path / "500.http").write_text(SERVE_PAGE)
    folder = tmp_path / "runtime"
    folder.mkdir()
    proxy_errors.write(folder)
    balance = environment(settings)["RAY_SERVE_HAPROXY_BALANCE_ALGORITHM"].replace(str(settings.runtime), str(folder))
    first = free_ports()
    config = f"""defaults
    mode http
    timeout connect 1s
    timeout client 10s
    timeout server 10s
    errorfile 502 {tmp_path}/500.http
    errorfile 503 {tmp_path}/500.http
    errorfile 504 {tmp_path}/500.http
    balance {balance}
frontend http
    bind 127.0.0.1:{first}
    default_backend lost
backend lost
    server lost 127.0.0.1:{first + 1}
"""
    (tmp_path / "haproxy.cfg").write_text(config)
    process = subprocess.Popen([get_haproxy_binary(), "-db", "-f", str(tmp_path / "haproxy.cfg")])
    try:
        while not listens(first):
            assert process.poll() is None
            time.sleep(0.05)
        yield first
    finally:
        process.terminate()
        process.wait()


def listens(port: int) -> bool:
    with socket.socket() as line:
        return line.connect_ex(("127.0.0.1", port)) == 0


def test_a_call_of_a_dapp_without_replicas_gets_a_code_and_when_to_ask_again(port: int) -> None:
    answer = httpx.post(f"http://127.0.0.1:{port}/v2/models/chdr/infer")
    assert (answer.status_code, answer.json()["code"]) == (503, "no_replica")
    assert answer.headers["content-type"] == "application/json"
    assert int(answer.headers["retry-after"]) > 0
    assert "Idempotency-Key" in answer.json()["error"]


def test_a_running_mesh_is_configured_with_them(mesh: RunningMesh) -> None:
    """Serve's own pages stand before ours in its configuration: the last one counts."""
    config = next(Settings(data=mesh.data).runtime.rglob("haproxy.cfg")).read_text()
    pages = [line.split()[-1] for line in config.splitlines() if line.split()[:2] == ["errorfile", "503"]]
    assert pages[-1] == str(proxy_errors.path_of(Settings(data=mesh.data).runtime, 503))
