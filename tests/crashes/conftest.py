"""One world for many cases: each goes on where the last one left its books, and a broken one is thrown away."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crashes.world import World

HERE = Path(__file__).parent
CASES = 12
"""Cases in a world: each reconciles and verifies what all before it have left in its books."""
_worlds: list[World] = []


@pytest.hookimpl(tryfirst=True)  # before all tests are sorted by group
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Groups as many cases as share a world: one worker runs them, and several worlds wait side by side."""
    cases = [item for item in items if item.path.parent == HERE and "world" in getattr(item, "fixturenames", ())]
    for at, item in enumerate(cases):
        item.add_marker(pytest.mark.xdist_group(f"crashes-{at // CASES:02}"))


@pytest.fixture
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """Processes that run; the next case meets whatever this one left behind, unless this one failed."""
    if not _worlds:
        _worlds.append(World())
    failed = request.session.testsfailed
    yield _worlds[0]
    if request.session.testsfailed != failed:
        _worlds.pop().close()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Ends a world after the last case of its group."""
    if _worlds and (nextitem is None or _group(nextitem) != _group(item)):
        _worlds.pop().close()


def _group(item: pytest.Item) -> str:
    mark = item.get_closest_marker("xdist_group")
    return str(mark.args[0]) if mark else ""
