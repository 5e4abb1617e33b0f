"""`make test`: the suite in two processes side by side, `python -m tests.lanes` with any words for pytest.

One runs every file that has a mesh: most of it is waiting, and no two meshes start at once, which would keep both cores
so busy that Ray gives up. The other runs all the rest, which computes. A lane's tests are in the order of `arrange`.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHARED = ("simple_once", "mesh")
"""Fixtures of the whole run that are a mesh."""
STOPS = "tests/test_under_load.py"
"""It stops the mesh that it shares: nobody has to start that again after it."""
NOTHING_RAN = 5


def files() -> dict[str, list[str]]:
    """The test files of each lane."""
    lanes: dict[str, list[str]] = {"meshes": [], "rest": []}
    for path in sorted(Path(__file__).parent.rglob("test_*.py")):
        text = path.read_text()
        has_mesh = "RunningMesh" in text or "tests.machines" in text or '"demo", "--ledger"' in text
        lanes["meshes" if has_mesh else "rest"].append(str(path.relative_to(ROOT)))
    return lanes


def mesh_of(item: pytest.Item) -> str:
    """The running mesh that a test shares with others; empty without one, or with one of its module's own."""
    found = item._fixtureinfo.name2fixturedefs  # type: ignore[attr-defined]
    return next((name for name in SHARED if name in found and found[name][-1].scope == "session"), "")


def arrange(items: list[pytest.Item]) -> None:
    """Puts the tests that share a mesh together: it ends with the last of them, an idle one takes a fifth of a core."""
    meshes = ("", *SHARED)
    items.sort(key=lambda item: (meshes.index(mesh_of(item)), item.nodeid.startswith(STOPS)))


def last_of(items: list[pytest.Item]) -> dict[str, pytest.Item]:
    """After which test each mesh is used no more."""
    return {name: item for item in items if (name := mesh_of(item))}


def main(words: list[str]) -> int:
    """Runs both lanes; the exit status is not zero if either's is not.

    What the meshes' lane says is shown as it comes, what the other says once both have ended.
    """
    began, running = time.monotonic(), {}
    with tempfile.TemporaryFile("w+") as said:
        for lane, names in files().items():
            out = said if lane == "rest" else None
            command = [sys.executable, "-m", "pytest", *words, *names]
            running[lane] = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT if out else None)
        # Whoever ends this ends both, and each ends its meshes: a terminal's Ctrl-C reaches them by itself.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda *_: [one.send_signal(signal.SIGINT) for one in running.values()])
        ended = {lane: process.wait() for lane, process in running.items()}
        said.seek(0)
        print(said.read(), flush=True)
    if NOTHING_RAN in ended.values() and 0 in ended.values():  # pytest's words may leave a lane without a test
        ended = dict.fromkeys(ended, 0)
    told = ", ".join(f"{lane} {'failed' if status else 'passed'}" for lane, status in ended.items())
    print(f"{told}: {time.monotonic() - began:.0f} s")
    return max(map(abs, ended.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
