"""One world for many cases: each goes on where the last one left its books, and a broken one is thrown away."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.crashes.world import World

CASES = 12
"""After so many cases a world is replaced: each reconciles and verifies what all before it have left in its books."""
_worlds: list[World] = []
_cases = 0


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
