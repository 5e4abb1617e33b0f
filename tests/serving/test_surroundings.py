"""Tests serving/cluster/surroundings.py: a shell's proxies, limits and working directory do a mesh no harm."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import httpx
import pytest

from channels.payer import ChannelAuth
from dapps.packages import registry
from serving.cli.arguments import uses_proxy
from serving.cluster import surroundings
from serving.cluster.network import check_port
from serving.config.settings import Settings
from tests.conftest import LEBEN, RunningMesh, free_ports

NO_PROXY_HERE = "http://127.0.0.1:9"
"""Nothing listens there: a call that goes by this proxy fails."""


def run(*words: str, limit: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """A command in a shell of its own."""
    command = ["bash", "-c", f'{limit} exec "$@"', "bash", LEBEN, *words]
    return subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture
def proxied(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, NO_PROXY_HERE)
    monkeypatch.setenv("no_proxy", "localhost,127.0.0.1,.hospital.example")
    for name, value in surroundings.direct(Settings(data=tmp_path)).items():
        monkeypatch.setenv(name, value)
    yield


def test_grpc_between_addresses_goes_by_no_proxy(proxied: None) -> None:
    """Ray Serve's calls between processes name an address, this machine's or a node's."""
    handler = grpc.unary_unary_rpc_method_handler(lambda request, context: b"answered")
    server = grpc.server(ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("mesh", {"Call": handler}),))
    port = server.add_insecure_port("0.0.0.0:0")
    server.start()
    try:
        for host in ("127.0.0.1", "127.0.0.2"):  # only the first is in the shell's list
            with grpc.insecure_channel(f"{host}:{port}") as channel:
                assert channel.unary_unary("/mesh/Call")(b"", timeout=30) == b"answered"
    finally:
        server.stop(None)


def test_a_name_that_the_shell_excludes_stays_excluded(proxied: None) -> None:
    assert ".hospital.example" in os.environ["no_proxy"].split(",")
    assert ".hospital.example" in os.environ["no_grpc_proxy"].split(",")  # noqa: SIM112 - gRPC reads this spelling


@pytest.mark.parametrize(
    ("url", "proxy"),
    [
        ("http://127.0.0.1:8700", False),
        ("http://localhost:8700", False),
        ("http://[::1]:8700", False),
        ("https://mesh.example", True),
        ("http://192.0.2.77:8700", True),
    ],
)
def test_commands_reach_this_machine_directly_and_others_by_the_proxy(url: str, proxy: bool) -> None:
    assert uses_proxy(url) is proxy


def test_too_few_open_files_are_refused_with_the_remedy(tmp_path: Path) -> None:
    done = run("up", "--data", str(tmp_path / "data"), limit="ulimit -n 4096;")
    assert done.returncode == 1 and "Traceback" not in done.stderr and "stopped" not in done.stderr
    assert "4096" in done.stderr and "ulimit -Hn" in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_low_soft_limit_is_raised() -> None:
    code = (
        "import resource; from serving.cluster import surroundings; surroundings.raise_file_limit(); "
        "print(*resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    command = ["bash", "-c", f'ulimit -Sn 1024; exec {sys.executable} -c "{code}"']
    soft, after = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert soft == min(hard, surroundings.WANTED_FILES) and after == hard


def test_a_folder_whose_name_is_no_utf8_is_refused(tmp_path: Path) -> None:
    done = subprocess.run(
        [LEBEN.encode(), b"up", b"--data", os.fsencode(tmp_path) + b"/caf\xe9"], capture_output=True, check=False
    )
    assert done.returncode == 1 and b"Traceback" not in done.stderr and b"is not UTF-8" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_variables_of_another_ray_are_dropped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    surroundings.prepare(Settings(data=tmp_path))
    assert "RAY_ADDRESS" not in os.environ


def test_the_working_directory_is_left_and_paths_keep_their_meaning(tmp_path: Path) -> None:
    code = (
        "import os, shutil; from serving.cluster import surroundings; surroundings.leave_working_directory(); "
        f"shutil.rmtree({str(tmp_path / 'here')!r}); print(os.getcwd(), os.environ['PYTHONPATH'])"
    )
    here = tmp_path / "here"
    here.mkdir()
    root = Path(surroundings.__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": f"lib{os.pathsep}{root}"}
    done = subprocess.run([sys.executable, "-c", code], cwd=here, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["/", f"{here / 'lib'}{os.pathsep}{root}"], done.stderr


@pytest.mark.starts_mesh
def test_a_mesh_in_a_hard_place_serves_pays_and_stops_in_order_when_its_terminal_closes(tmp_path: Path) -> None:
    """Proxies, a long TMPDIR, another Ray's address, a low soft limit, no assertions, a directory that goes away."""
    place, long = tmp_path / "place", tmp_path / ("t" * 120)
    place.mkdir()
    long.mkdir()
    hard = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), NO_PROXY_HERE)
    hard |= {"no_proxy": "localhost,127.0.0.1", "TMPDIR": str(long), "RAY_ADDRESS": "auto", "PYTHONOPTIMIZE": "2"}
    program = tmp_path / "leben"
    program.write_text(
        f'#!/bin/bash\nulimit -Sn 1024\ncd {place}\nrmdir {place}\nexec env --default-signal=HUP {LEBEN} "$@"\n'
    )
    program.chmod(0o755)
    mesh = RunningMesh(tmp_path / "data", free_ports(), environment=hard, program=str(program))
    with mesh:
        body = registry.load("chdr").sample().data
        with httpx.Client(auth=ChannelAuth(mesh.payer()), timeout=60, trust_env=False) as client:
            answer = client.post(f"{mesh.url}/v2/models/chdr/diagnose", content=body)
        assert answer.status_code == 200, answer.text
        assert httpx.get(f"{mesh.url}/v2/health/ready", trust_env=False).status_code == 200
        up = mesh.process
        assert up is not None and up.stdout is not None
        up.send_signal(signal.SIGHUP)
        assert up.wait(timeout=120) == 0
        assert "stopped; everything is kept" in mesh.log.read_text()
        check_port("127.0.0.1", mesh.port, "--port", patience_s=20)
        up.stdout.close()
        mesh.process = None
