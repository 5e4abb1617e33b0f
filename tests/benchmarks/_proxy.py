"""What HAProxy costs that has very many servers: its own configuration, as a mesh writes it, drawn out."""

from __future__ import annotations

import re
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

PORT = 18_980
CHECK_S = 10.0
RESPONDER = """global
    nbthread 1
defaults
    mode http
    timeout connect 5s
    timeout client 30s
    timeout server 30s
frontend well
    bind 127.0.0.1:{port}
    http-request return status 200
"""


@contextmanager
def running(config: Path) -> Iterator[tuple[psutil.Process, float]]:
    """An HAProxy on a configuration, and the seconds until it took a connection on `PORT` or the port after it."""
    from ray.serve._private.haproxy import get_haproxy_binary

    port = int(re.findall(r"bind 127\.0\.0\.1:(\d+)", config.read_text())[0])
    began = time.perf_counter()
    process = subprocess.Popen(
        [get_haproxy_binary(), "-db", "-f", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if process.poll() is not None:
                raise SystemExit("HAProxy does not take the configuration")
            time.sleep(0.01)
        yield psutil.Process(process.pid), time.perf_counter() - began
    finally:
        process.kill()
        process.wait()


def drawn_out(config: str, servers: int, folder: Path) -> str:
    """A mesh's configuration with so many servers behind its DApp, on other ports; each is the responder."""
    text = re.sub(r"stats socket \S+", f"stats socket {folder / 'admin.sock'}", config)
    text = re.sub(r"(?m)^\s*(log |server-state-|load-server-state|log-format-sd|errorfile).*\n", "", text)
    text = re.sub(r"maxconn \d+", "maxconn 1024", text)  # with 4096, ten thousand servers need 20 269 open files
    places = iter(range(PORT, PORT + 10))
    text = re.sub(r"(?m)^(\s+bind )\S+:\d+", lambda bind: f"{bind[1]}127.0.0.1:{next(places)}", text)
    line = next(row for row in text.splitlines() if "server SERVE_REPLICA_" in row)
    many = []
    for number in range(servers):
        many.append(re.sub(r"server \S+ \S+:\d+", f"server r{number} 127.0.0.1:{PORT + 19}", line))
    return text.replace(line, "\n".join(many), 1)


def looked_after(config: str, servers: int) -> dict[str, float]:
    """Start-up seconds, memory and CPU of checks, each server checked every five seconds as Serve has it."""
    with tempfile.TemporaryDirectory(prefix="lh-") as name:
        folder = Path(name)
        (folder / "responder.cfg").write_text(RESPONDER.format(port=PORT + 19))
        (folder / "haproxy.cfg").write_text(drawn_out(config, servers, folder))
        with running(folder / "responder.cfg"), running(folder / "haproxy.cfg") as (process, started_s):
            time.sleep(6)  # the first checks are spread over one interval
            used = process.cpu_times()
            time.sleep(CHECK_S)
            now = process.cpu_times()
            cores = (now.user + now.system - used.user - used.system) / CHECK_S
            return {
                "haproxy_servers_start_s": started_s,
                "haproxy_server_bytes": process.memory_info().rss / servers,
                "haproxy_check_cpu_us": cores / (servers / 5) * 1e6,
            }
