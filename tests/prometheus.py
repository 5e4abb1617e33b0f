"""A real Prometheus by the configuration that is shipped, pointed at a test's mesh."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import yaml

from tests.conftest import RunningMesh

DEPLOY = Path(__file__).parents[1] / "deploy"


@contextmanager
def prometheus(mesh: RunningMesh, folder: Path) -> Iterator[httpx.Client]:
    """A client of a Prometheus that answers where the mesh was told it does; reads once a second."""
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(DEPLOY / "prometheus" / "alerts.yml")]
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{mesh.port + 4}"]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    url = mesh.environment["RAY_PROMETHEUS_HOST"]
    command = ["prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([*command, f"--web.listen-address={url[7:]}"], stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=url, timeout=30) as client:
            until = time.monotonic() + 150
            while not _ready(client):
                assert time.monotonic() < until and process.poll() is None, (folder / "log").read_text()
                time.sleep(0.2)
            yield client
    finally:
        process.terminate()
        process.wait(30)


def _ready(client: httpx.Client) -> bool:
    try:
        return client.get("/-/ready").status_code == 200
    except httpx.HTTPError:
        return False
