"""`docs/attacks.md` names every case, every test of this folder under its own case, and no test that is not there."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent.parent
ROW = re.compile(r"^\| (\d+) \| .*? \| (.*?) \| (.*) \|$", re.M)
PAGE = (TESTS.parent / "docs" / "attacks.md").read_text()


def test_every_case_has_its_row_and_a_test_or_a_reason() -> None:
    rows = ROW.findall(PAGE)
    assert [int(number) for number, _, _ in rows] == list(range(1, len(rows) + 1)) and len(rows) >= 52
    for number, happens, shown in rows:
        assert "`test_" in shown or "not driven here" in happens, number


def test_every_test_that_the_page_names_exists() -> None:
    defined = {name for file in TESTS.rglob("test_*.py") for name in re.findall(r"def (test_\w+)", file.read_text())}
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    assert len(named) > 100 and not named - defined


def test_every_test_of_a_case_is_named_in_its_row() -> None:
    shown = {number: tests for number, _, tests in ROW.findall(PAGE)}
    names = [
        (number, name)
        for file in Path(__file__).parent.glob("test_*.py")
        for name, number in re.findall(r"^def (test_case_(\d+)_\w+)", file.read_text(), re.M)
    ]
    assert len(names) > 60
    assert not [name for number, name in names if f"`{name}`" not in shown[number]]
