"""Decides which tests run, on which worker of pytest-xdist and in which order.

All tests with a mesh are in two groups (`xdist_group`), and one worker runs a whole group: at most two meshes run side
by side while other workers compute. In a group the tests of one mesh follow each other.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

OWN = "starts_mesh"
"""The mark of a test that starts a mesh of its own."""
STOPS = "stops_mesh"
"""The mark of a test that stops the mesh that it shares: it comes last, so that nobody has to start that again."""
MESHES = {
    "simple_once": "meshes-1",
    "hello_mesh": "meshes-1",
    "mesh": "meshes-2",
    "cluster": "meshes-2",
    OWN: "meshes-1",
}
"""The group of the tests with a mesh, by the fixture that starts it; in the order in which a worker comes to them."""
OTHERS = {"wheel": "wheel"}
"""Groups of tests that share something else that is slow to make."""


def mesh(item: pytest.Item) -> str:
    """The fixture of the mesh that a test uses; empty without one."""
    names = set(getattr(item, "fixturenames", ())) | {mark.name for mark in item.iter_markers(OWN)}
    return next((name for name in MESHES if name in names), "")


def assign_groups(items: list[pytest.Item]) -> None:
    """Marks each test with its group."""
    for item in items:
        name = mesh(item) or next((name for name in OTHERS if name in getattr(item, "fixturenames", ())), "")
        if name:
            item.add_marker(pytest.mark.xdist_group((MESHES | OTHERS)[name]))


def check_groups(session: pytest.Session) -> None:
    """Ends a worker whose pytest-xdist does not know the groups: it would start meshes on all workers at once.

    Raises:
        UsageError: a test's id does not end with its group.
    """
    if hasattr(session.config, "workerinput"):
        for item in session.items:
            if (mark := item.get_closest_marker("xdist_group")) and not item.nodeid.endswith(f"@{mark.args[0]}"):
                raise pytest.UsageError(f"pytest-xdist does not send {item.nodeid} to its group: use constraints.txt")


def sort(items: list[pytest.Item]) -> None:
    """Puts each group's tests together: meshes first, tests without a group last."""
    order = {name: at for at, name in enumerate(MESHES)}

    def place(item: pytest.Item) -> tuple[bool, str, int, bool]:
        mark = item.get_closest_marker("xdist_group")
        name = str(mark.args[0]) if mark else ""
        return mesh(item) == "", name or "~", order.get(mesh(item), 0), item.get_closest_marker(STOPS) is not None

    items.sort(key=place)


def deselect_full(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves tests and parameters marked `full` to runs with `--full`, except in a conformance suite."""
    if config.getoption("full"):
        return
    heavy = {item for item in items if item.get_closest_marker("full") and not item.get_closest_marker("conformance")}
    items[:] = [item for item in items if item not in heavy]
    config.hook.pytest_deselected(items=list(heavy))


def forbid_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turns a skip into a failure where CI=true: a test that never runs there proves nothing to anybody."""
    if os.environ.get("CI") == "true" and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
        report.outcome, report.longrepr = "failed", f"with CI=true nothing may be skipped: {reason}"


@contextmanager
def one_at_a_time(name: str) -> Iterator[Path]:
    """A block that one process at a time is in, over all workers and test runs of this user; gives the lock's file."""
    path = Path(tempfile.gettempdir()) / f"leben-tests-{os.getuid()}-{name}"
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield path
