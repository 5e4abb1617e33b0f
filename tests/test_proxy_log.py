"""What the proxy tells the machine's syslog: nothing of a call, for a query may hold a patient's name."""

from __future__ import annotations

import re
import socket
import subprocess
import time
from pathlib import Path

import httpx

from serving.config.settings import Settings
from tests.conftest import RunningMesh, free_ports

LOG = re.compile(r"(?m)^( +log )127\.0\.0\.1:514( .*)$")


def syslog_of(config: str, folder: Path) -> str:
    """What an HAProxy on a mesh's configuration says of a call with a query, and of a server that is not there."""
    from ray.serve._private.haproxy import get_haproxy_binary

    ports = iter(range(free_ports(), 65_000))
    web = next(ports)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as syslog:
        syslog.bind(("127.0.0.1", 0))
        syslog.settimeout(30)
        text = LOG.sub(rf"\g<1>127.0.0.1:{syslog.getsockname()[1]}\g<2>", config)
        text = re.sub(r"(?m)^ *(server-state-|load-server-state|stats socket|errorfile).*\n", "", text)
        text = re.sub(r"(?m)^( +bind )\S*:\d+", lambda bind: f"{bind[1]}127.0.0.1:{next(ports)}", text)
        text += f"\nfrontend ours\n  bind 127.0.0.1:{web}\n  default_backend gone\n"
        text += f"backend gone\n  server gone 127.0.0.1:{next(ports)} check inter 100ms\n"
        (folder / "haproxy.cfg").write_text(text)
        process = subprocess.Popen([get_haproxy_binary(), "-db", "-f", str(folder / "haproxy.cfg")])
        try:
            heard = [syslog.recv(4096)]
            while b"has no server" not in heard[-1]:
                heard.append(syslog.recv(4096))
            assert httpx.post(f"http://127.0.0.1:{web}/v2/models/chdr/infer?name=Jane+Roe").status_code == 503
            syslog.settimeout(2)
            until_s = time.monotonic() + 10
            while time.monotonic() < until_s:
                heard.append(syslog.recv(4096))
        except TimeoutError:
            pass
        finally:
            process.terminate()
            process.wait()
    return b"\n".join(heard).decode()


def written(mesh: RunningMesh) -> str:
    """The configuration that Ray Serve has written for a mesh."""
    return next(Settings(data=mesh.data).runtime.rglob("haproxy.cfg")).read_text()


def test_the_proxy_tells_syslog_of_a_lost_replica_and_never_of_a_call(mesh: RunningMesh, tmp_path: Path) -> None:
    """The mesh's own configuration, with a server that is gone added to it."""
    config = written(mesh)
    assert LOG.search(config)
    output = syslog_of(config, tmp_path)
    assert "backend gone has no server available" in output
    assert "Jane" not in output and "infer" not in output


def test_as_ray_serve_writes_it_the_call_would_be_told(mesh: RunningMesh, tmp_path: Path) -> None:
    """Or the test above would show nothing."""
    config = written(mesh)
    assert "Jane+Roe" in syslog_of(config.replace("local0 notice #", ""), tmp_path)
