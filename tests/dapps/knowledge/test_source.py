"""Tests dapps/knowledge/source.py: plain data with lines; YAML that could hide something is refused."""

from __future__ import annotations

from decimal import Decimal

import pytest

from dapps.knowledge.source import GuidelineError, read


def test_plain_data_comes_with_its_lines() -> None:
    tree = read(b"id: a\nn: 4.50\nflag: true\nnone: null\nlist:\n  - deep: >-\n      two\n      lines\n")
    assert tree.data == {"id": "a", "n": Decimal("4.50"), "flag": True, "none": None, "list": [{"deep": "two lines"}]}
    assert tree.line(("n",)) == 2 and tree.line(("list", 0, "deep")) == 6
    assert tree.line(("list", 0, "missing")) == 6 and tree.line(("nowhere",)) == 1


LAUGHS = b"a: &a [x, x]\nb: &b [*a, *a, *a, *a]\nc: [*b, *b, *b]\n"


@pytest.mark.parametrize(
    ("raw", "line", "cause"),
    [
        pytest.param(LAUGHS, 1, "anchors and aliases", id="billion laughs"),
        pytest.param(b"a: 1\nb: " + b"[" * 5000 + b"]" * 5000, 2, "nested deeper", id="deep"),
        pytest.param(b"a: [" + b"1," * 70_000 + b"]", 1, "more than 60000 parts", id="wide"),
        pytest.param(b"x" * 300_000, 1, "larger than", id="large"),
        pytest.param(b"a: 1\na: 2\n", 2, "a is there twice", id="twice"),
        pytest.param(b"a: no\n", 1, "bool is not read", id="no is false"),
        pytest.param(b"a: 1:30\n", 1, "int is not read", id="base 60"),
        pytest.param(b"a: 0x1F\n", 1, "int is not read", id="hex"),
        pytest.param(b"a: .inf\n", 1, "float is not read", id="infinite"),
        pytest.param(b"a: 2026-01-26\n", 1, "timestamp is not read", id="date"),
        pytest.param(b"a: !!python/object/apply:os.system [id]\n", 1, "tags", id="tag"),
        pytest.param(b"a: 1\n1: b\n", 2, "a key is", id="number as key"),
        pytest.param(b"? [a]\n: b\n", 1, "a key is", id="list as key"),
        pytest.param(b"a: 1\n b: 2\n", 2, "not YAML", id="broken"),
        pytest.param(b"a: 1\n---\nb: 2\n", 2, "not YAML", id="two documents"),
        pytest.param(b"a: \xff\n", 1, "not UTF-8", id="not UTF-8"),
        pytest.param(b"a: \x07\n", 1, "not YAML", id="control character"),
        pytest.param(b"", 1, "is a mapping", id="empty"),
        pytest.param(b"- a\n", 1, "is a mapping", id="list"),
    ],
)
def test_what_could_hide_something_is_refused_with_its_line(raw: bytes, line: int, cause: str) -> None:
    with pytest.raises(GuidelineError, match=cause) as caught:
        read(raw)
    assert caught.value.flaws[0].line == line
