"""One world for many cases: each goes on where the last one left its books, and a broken one is thrown away."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.crashes.world import World

_worlds: list[World] = []


@pytest.fixture
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """Processes that run; the next case meets whatever this one left behind."""
    if not _worlds:
        _worlds.append(World())
    failed = request.session.testsfailed
    yield _worlds[0]
    if request.session.testsfailed != failed:
        _worlds.pop().close()


@pytest.fixture(scope="package", autouse=True)
def _end() -> Iterator[None]:
    yield
    while _worlds:
        _worlds.pop().close()
