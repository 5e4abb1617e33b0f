"""Describes how one DApp is isolated, and plans the process that does it."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dapps.packages import GROUP

SANDBOX = Path(__file__).with_name("sandbox.py")
"""Run as a script and never imported: it changes the process that runs it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Isolation:
    """The limits of an isolated DApp.

    Attributes:
        dapp: its name.
        hidden: folders that do not exist in the sandbox even where its packages lie around them: data and runtime
            folder.
        memory_bytes: maximum address space of each of its processes; 0: no limit, as on a machine with CUDA.
        message_bytes: maximum size of one answer, and of one file that it writes.
        call_s: seconds that it may take over one batch, intake or report before it is killed.
        tasks: maximum number of processes and threads.
        sandbox_mode: ``"namespaces"``, or ``"landlock"`` on a machine that refuses those.
        declared: its declaration when the mesh started; a replica's child must declare the same. Empty: anything.
        package: folder of an installed version beside the environment, on the child's path alone: on the replica's
            path, a stranger's module would be imported by any code that looks for a missing one. Empty: the environment
            offers the DApp.
    """

    dapp: str
    hidden: tuple[str, ...] = ()
    memory_bytes: int = 8 << 30
    message_bytes: int = 1 << 30
    call_s: float = 60.0
    tasks: int = 64
    sandbox_mode: str = "namespaces"
    declared: bytes = field(default=b"", repr=False)
    package: str = ""

    def plan(self, control: int, scratch: str) -> dict[str, Any]:
        """What `sandbox.py` reads from its command line.

        Args:
            control: descriptor of the child's end of the control socket.
            scratch: a folder of the machine that the child may write; empty with namespaces, which have their own.
        """
        path, readable = [folder for folder in sys.path if folder], _readable(self.dapp)
        if self.package:  # the other versions of its package may be trusted, and on our path: the child sees none
            versions = Path(self.package).parent
            path = [*(folder for folder in path if Path(folder).parent != versions), self.package]
            readable.append(self.package)
        return {
            "dapp": self.dapp,
            "sandbox_mode": self.sandbox_mode,
            "control": control,
            "scratch": scratch,
            "readable": readable,
            "path": path,
            # The last / lets the next mesh on this folder recognise a child that outlived this one.
            "hidden": [f"{folder.rstrip('/')}/" for folder in self.hidden],
            # CUDA maps more address space than there is memory.
            "memory_bytes": 0 if Path("/dev/nvidiactl").exists() else self.memory_bytes,
            "file_bytes": self.message_bytes,
            "tasks": self.tasks,
        }


def environment(scratch: str) -> dict[str, str]:
    """The child's whole environment: of ours, only where libraries and devices are."""
    home = scratch or "/dev/shm"  # noqa: S108 - a folder of the child's own root
    inherited = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES") if name in os.environ}
    return {
        "PATH": "/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "USER": "leben",
        "HOME": home,
        "TMPDIR": home,
        "MPLCONFIGDIR": home,
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        **inherited,
    }


def _readable(dapp: str) -> list[str]:
    """Python, its path, our packages and the DApp's, found without importing the DApp's."""
    paths = [sys.prefix, sys.base_prefix, sys.exec_prefix, *sys.path, str(Path(sys.executable).resolve().parent.parent)]
    packages = [point.value.partition(":")[0].partition(".")[0] for point in entry_points(group=GROUP, name=dapp)]
    for package in ("serving", "channels", "dapps", *packages):
        spec = find_spec(package)
        if spec is not None:
            paths += spec.submodule_search_locations or ([spec.origin] if spec.origin else [])
    here = os.getcwd()
    return [path for path in paths if path and Path(path).exists() and os.path.abspath(path) not in ("/", here)]
