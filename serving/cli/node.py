"""Runs this machine as a node of a mesh that runs elsewhere, `leben up --join`, and shows its state."""

from __future__ import annotations

import re

import httpx

from serving.cli.console import Stop, err, fail
from serving.cluster import data_folder
from serving.cluster.node import FILE, Node
from serving.config import Settings

HEAD = re.compile(r"(?:http://)?([A-Za-z0-9.-]+)(?::(\d{4,5}))?/?")


def run_node(settings: Settings, join: str, stop: Stop) -> None:
    """Joins until Ctrl-C. Prints `joined URL as ADDRESS` and the node's resources, once it takes replicas."""
    address = HEAD.fullmatch(join)
    if address is None:
        fail(f"--join {join}: give the address of the machine where the mesh was started, such as 10.0.0.5:8700")
    host, port = address[1], int(address[2] or settings.port)
    with err.status("starting") as status:
        node = Node(
            Settings.model_validate(settings.model_dump() | {"port": port}),
            host,
            progress=lambda step: status.update(f"{step} …"),
            check=stop.check,
        )
        try:
            brings = node.start()
            resources = _resources(brings, settings.labels)
            print(f"joined http://{host}:{port} as {node.settings.listen} ({resources})", flush=True)
            err.print(f"data {settings.home}   Ctrl-C leaves the mesh in order", soft_wrap=True, markup=False)
            status.stop()
            while not stop.wait(0.5):
                if not node.alive():
                    fail(f"the mesh at {host} has ended, or has dropped this node: see {settings.home / 'node.log'}")
        finally:
            status.stop()
            node.stop()
            err.print("left the mesh" if node.joined else "it had not joined")


def node_rows(settings: Settings) -> list[tuple[str, str]]:
    """The rows of `leben status` on a node that joins, has joined or leaves a mesh; none elsewhere."""
    facts = data_folder.running(settings, FILE)
    if facts is None:
        return []
    try:
        answers = httpx.get(f"{facts['mesh']}/v2", timeout=2, trust_env=False).is_success
    except httpx.TransportError:
        answers = False
    rows = [
        ("node", f"{facts['address']}   (process {facts['pid']})"),
        ("state", f"{facts['state']}; Ray's log is {settings.home / 'node.log'}"),
        ("mesh", f"{facts['mesh']}   ({'answers' if answers else 'does not answer'})"),
    ]
    return [*rows, ("brings", _resources(facts["brings"], facts["labels"]))] if facts["brings"] else rows


def _resources(brings: dict[str, float], labels: dict[str, str]) -> str:
    hidden = ("node:", "acc")
    words = [
        f"{name} {amount:g}"
        for name, amount in sorted(brings.items())
        if not name.startswith(hidden) and "memory" not in name
    ]
    return ", ".join([*words, *(f"{name}={value}" for name, value in sorted(labels.items()))])
