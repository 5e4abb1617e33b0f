"""`leben up --join`: this machine as a node of a mesh that runs elsewhere, and what is told of it."""

from __future__ import annotations

import re

import httpx

from serving.cli.console import Stop, err, fail
from serving.cluster import data_folder
from serving.cluster.node import FILE, Node
from serving.config import Settings

HEAD = re.compile(r"(?:http://)?([A-Za-z0-9.-]+)(?::(\d{4,5}))?/?")


def run_node(settings: Settings, join: str, stop: Stop) -> None:
    """Joins and stays until Ctrl-C. Prints `joined URL as ADDRESS` and what the node brings, once it takes replicas."""
    found = HEAD.fullmatch(join)
    if found is None:
        fail(f"--join {join}: it is the address of the machine where the mesh was started, such as 10.0.0.5:8700")
    host, port = found[1], int(found[2] or settings.port)
    with err.status("starting") as status:
        node = Node(
            Settings.model_validate(settings.model_dump() | {"port": port}),
            host,
            lambda step: status.update(f"{step} …"),
            stop.check,
        )
        try:
            brings = node.start()
            told = _told(brings, settings.labels)
            print(f"joined http://{host}:{port} as {node.settings.listen} ({told})", flush=True)
            err.print(f"data {settings.home}   Ctrl-C leaves the mesh in order", soft_wrap=True, markup=False)
            status.stop()
            while not stop.wait(0.5):
                if not node.alive():
                    fail(f"the mesh at {host} has gone, or has given this node up: see {settings.home / 'node.log'}")
        finally:
            status.stop()
            node.stop()
            err.print("left the mesh" if node.joined else "it had not joined")


def node_rows(settings: Settings) -> list[tuple[str, str]]:
    """What `leben status` tells on a machine that joins, has joined or leaves a mesh; nothing where none does."""
    facts = data_folder.running(settings, FILE)
    if facts is None:
        return []
    try:
        answers = httpx.get(f"{facts['mesh']}/v2", timeout=2).is_success
    except httpx.TransportError:
        answers = False
    rows = [
        ("node", f"{facts['address']}   (process {facts['pid']})"),
        ("state", f"{facts['state']}; what Ray says is in {settings.home / 'node.log'}"),
        ("mesh", f"{facts['mesh']}   ({'answers' if answers else 'does not answer'})"),
    ]
    return [*rows, ("brings", _told(facts["brings"], facts["labels"]))] if facts["brings"] else rows


def _told(brings: dict[str, float], labels: dict[str, str]) -> str:
    hidden = ("node:", "acc")
    told = [
        f"{name} {amount:g}"
        for name, amount in sorted(brings.items())
        if not name.startswith(hidden) and "memory" not in name
    ]
    return ", ".join([*told, *(f"{name}={value}" for name, value in sorted(labels.items()))])
