"""One world for many cases: each goes on where the last one left its books, and a broken one is thrown away."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crashes.world import World

CASES = 12
"""Cases in a world: each reconciles and verifies what all before it have left in its books."""
HERE = Path(__file__).parent
_worlds: list[World] = []
_cases = 0


@pytest.hookimpl(tryfirst=True)  # before all tests are sorted by group
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Groups as many cases as share a world: one worker runs them, and several worlds wait side by side."""
    cases = [item for item in items if item.path.parent == HERE and "world" in getattr(item, "fixturenames", ())]
    for at, item in enumerate(cases):
        item.add_marker(pytest.mark.xdist_group(f"crashes-{at // CASES:02}"))


@pytest.fixture
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """Processes that run; the next case meets whatever this one left behind."""
    global _cases
    if not _worlds:
        _worlds.append(World())
        _cases = 0
    failed, _cases = request.session.testsfailed, _cases + 1
    yield _worlds[0]
    if request.session.testsfailed != failed or _cases == CASES:
        _worlds.pop().close()


@pytest.fixture(scope="package", autouse=True)
def _end() -> Iterator[None]:
    yield
    while _worlds:
        _worlds.pop().close()
