"""Decides which tests run, on which worker of pytest-xdist and in which order.

Tests that share a mesh form a group (`xdist_group`): one worker runs them in turn, so the mesh starts once. Groups run
before all other tests, those with the most waiting first: at the end only short tests are left, and no worker idles.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

GROUPS = {"simple_once": "simple", "mesh": "mesh", "cluster": "cluster", "hello_mesh": "hello", "wheel": "wheel"}
"""The group of the tests that use a fixture."""
FIRST = ("simple", "mesh", "cluster", "hello", "starts")
"""Groups in the order in which workers take them; `starts` has the tests that start a mesh each."""


def group(item: pytest.Item) -> str:
    """The group that a test belongs to; empty if it runs wherever there is room."""
    mark = item.get_closest_marker("xdist_group")
    return str(mark.args[0]) if mark else ""


def assign_groups(items: list[pytest.Item]) -> None:
    """Marks each test with the group of the mesh that it uses."""
    for item in items:
        names = [GROUPS[name] for name in getattr(item, "fixturenames", ()) if name in GROUPS]
        if names and not group(item):
            item.add_marker(pytest.mark.xdist_group(names[0]))


def sort(items: list[pytest.Item]) -> None:
    """Puts each group's tests together, the groups of `FIRST` before other groups, tests without a group last."""
    order = {name: at for at, name in enumerate(FIRST)}

    def place(item: pytest.Item) -> tuple[bool, int, str]:
        name = group(item)
        return not name, order.get(name, len(order)), name

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
