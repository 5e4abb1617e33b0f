"""A start that is interrupted ends at once, reports it in one line, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from serving.cluster import processes
from serving.config.settings import Settings
from tests.conftest import LEBEN, free_ports
from tests.scheduling import one_at_a_time


@contextmanager
def starting(data: Path, *words: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    pipe, variables = subprocess.PIPE, os.environ | environment
    with subprocess.Popen(
        [LEBEN, "up", "--data", str(data), *words], stdout=pipe, stderr=pipe, text=True, env=variables
    ) as up:
        try:
            yield up
        finally:
            up.kill()


def once(what: Callable[[], bool], up: subprocess.Popen[str], limit_s: float = 60) -> None:
    until = time.monotonic() + limit_s
    while not what():
        assert up.poll() is None and time.monotonic() < until
        time.sleep(0.01)


def minds(pid: int) -> bool:
    """True once a process has a handler of its own for SIGTERM."""
    caught = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


def left(settings: Settings) -> list[psutil.Process]:
    """The processes that still run for the mesh of these settings."""
    return processes.orphans(settings)


@pytest.mark.starts_mesh
@pytest.mark.skipif(sys.platform != "linux", reason="whether a signal is caught is read as Linux tells it")
def test_a_start_ends_where_it_is_and_leaves_nothing(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path / "data")
    ray = settings.runtime / "ray" / "session_latest"
    points = ((signal.SIGINT, lambda: minds(up.pid)), (signal.SIGTERM, ray.is_symlink))
    for number, point in points:  # on the same folder each time
        with one_at_a_time("start"), starting(settings.home, "--port", str(free_ports())) as up:
            once(point, up)
            up.send_signal(number)
            printed, output = up.communicate(timeout=90)
        assert (up.returncode, printed) == (128 + number, ""), output
        assert output.splitlines()[-1] == f"leben: stopped by {number.name} before it had started"
        assert left(settings) == [] and not settings.runtime.exists()
    # Of the last one, which had begun.
    assert output.splitlines()[:-1] == ["stopping …", f"stopped; everything is kept in {settings.home}"]


def test_a_node_tells_what_it_is_and_stops_while_it_waits_for_its_mesh(tmp_path: Path) -> None:
    port, token = free_ports(), Settings(data=tmp_path).ray_token
    token.parent.mkdir()
    token.write_text("ab" * 32)
    with starting(tmp_path, "--join", f"localhost:{port}", LEBEN_LISTEN="10.0.0.5") as up:
        once((tmp_path / "node.json").exists, up)
        shown = subprocess.run([LEBEN, "status", "--data", str(tmp_path)], capture_output=True, text=True).stdout
        rows = [line.split() for line in shown.splitlines()]
        assert rows[0] == ["node", "10.0.0.5", "(process", f"{up.pid})"], shown
        assert rows[1][:2] == ["state", "joining;"], shown
        assert ["mesh", f"http://localhost:{port}", "(does", "not", "answer)"] in rows, shown
        up.send_signal(signal.SIGTERM)
        _, output = up.communicate(timeout=60)
    assert up.returncode == 128 + signal.SIGTERM and "Traceback" not in output, output
    assert output.splitlines()[-2:] == ["it had not joined", "leben: stopped by SIGTERM before it had started"]
    assert not (tmp_path / "node.json").exists()
