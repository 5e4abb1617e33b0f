"""Tests serving/replica/memory.py: Linux ends a replica first when memory runs out, and nothing else of the mesh."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil

from serving.cluster.ray_environment import environment
from serving.config.settings import Settings
from tests.conftest import RunningMesh


def score(process: int | str) -> int:
    return int(Path(f"/proc/{process}/oom_score_adj").read_text())


def test_ray_ends_no_worker_because_another_program_uses_the_memory(tmp_path: Path) -> None:
    assert environment(Settings(data=tmp_path))["RAY_memory_monitor_refresh_ms"] == "0"


def test_a_process_offers_itself_and_its_children_inherit_it() -> None:
    code = "from serving.replica import memory; memory.end_first(); import subprocess, sys; "
    code += "sys.exit(subprocess.call(['grep', '-qx', '1000', '/proc/self/oom_score_adj']))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_replicas_of_a_mesh_end_first(mesh: RunningMesh) -> None:
    assert mesh.process is not None
    processes = psutil.Process(mesh.process.pid).children(recursive=True)
    names = {process.pid: " ".join(process.cmdline()) for process in processes}
    replicas = {
        pid for pid, name in names.items() if name.startswith(("ray::ServeReplica:chdr", "ray::ServeReplica:str"))
    }
    assert len(replicas) >= 2 and {score(pid) for pid in replicas} == {1000}
    own = score("self")
    assert {names[pid]: score(pid) for pid in names.keys() - replicas if score(pid) > own} == {}
