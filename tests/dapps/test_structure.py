"""Checks the bounds on the parts of JSON and YAML: what is small passes, what multiplies is refused unparsed."""

from __future__ import annotations

import json

import orjson
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dapps.structure import CASE_JSON, LARGE_JSON, SMALL_JSON, JsonBounds, StructureRefused, check_json, check_yaml

MANY = 30_000_000
TIGHT = JsonBounds(arrays=2, objects=2, fields=3, values=4, strings=5)
REFUSED = [
    pytest.param(b"[" + b"[]," * MANY + b"0]", "arrays", id="empty arrays"),
    pytest.param(b"[" + b"{}," * MANY + b"0]", "objects", id="empty objects"),
    pytest.param(b"[" + b"1," * MANY + b"0]", "values", id="numbers"),
    pytest.param(b"[" + b'"",' * MANY + b'""]', "strings", id="empty strings"),
    pytest.param(b"{" + b'"a":1,' * MANY + b'"b":1}', "fields|strings|values", id="fields"),
    pytest.param(b"[" * MANY, "arrays", id="nesting"),
    pytest.param(b'["\\\\",' + b"[]," * MANY + b'"]', "arrays", id="a string that ends in a backslash"),
]


@pytest.mark.parametrize("bounds", [LARGE_JSON, CASE_JSON, SMALL_JSON], ids=["large", "case", "small"])
@pytest.mark.parametrize(("text", "kind"), REFUSED)
def test_json_with_too_many_parts_is_refused(text: bytes, kind: str, bounds: JsonBounds) -> None:
    with pytest.raises(StructureRefused, match=kind):
        check_json(text, bounds)


def test_a_million_numbers_pass_flat_and_nested() -> None:
    numbers = [0.123456] * 1_000_000
    check_json(orjson.dumps({"inputs": [{"name": "X", "data": numbers}]}), LARGE_JSON)
    check_json(orjson.dumps({"inputs": [{"name": "X", "data": [[number] for number in numbers]}]}), LARGE_JSON)


TEXTS = st.text('",:[]{}\\ a')
VALUES = st.recursive(
    st.none() | st.integers(0, 9) | TEXTS, lambda parts: st.lists(parts) | st.dictionaries(TEXTS, parts), max_leaves=12
)


@given(VALUES)
def test_parts_are_counted_outside_of_strings(value: object) -> None:
    text = orjson.dumps(value)
    marks = json.dumps(_without_texts(value))
    few = (marks.count("["), marks.count("{"), marks.count(":"), marks.count(","), marks.count('"') // 2)
    bounds = (TIGHT.arrays, TIGHT.objects, TIGHT.fields, TIGHT.values, TIGHT.strings)
    if all(count <= bound for count, bound in zip(few, bounds, strict=True)):
        check_json(text, TIGHT)
    else:
        with pytest.raises(StructureRefused):
            check_json(text, TIGHT)


def _without_texts(value: object) -> object:
    if isinstance(value, dict):
        return {f"n{number}": _without_texts(part) for number, part in enumerate(value.values())}
    if isinstance(value, list):
        return [_without_texts(part) for part in value]
    return "" if isinstance(value, str) else value


MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n}\n  <<: [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10))


@pytest.mark.parametrize(
    ("text", "cause", "line"),
    [
        pytest.param(MERGES, "anchors", 1, id="merge keys nine deep"),
        pytest.param("a: !!python/object:os.system {}", "tags", 1, id="tags"),
        pytest.param("a:\n- " + "[" * 20, "deeper than 12", 2, id="nesting"),
        pytest.param("- a\n" * 200, "more than 100 parts", 99, id="parts"),
    ],
)
def test_yaml_beyond_plain_data_is_refused_before_anything_is_built(text: str, cause: str, line: int) -> None:
    with pytest.raises(StructureRefused, match=cause) as refused:
        check_yaml(text, max_events=100, max_depth=12)
    assert refused.value.line == line


def test_plain_yaml_passes_and_broken_yaml_is_no_yaml() -> None:
    check_yaml("a: 1\nb: [1, 2, {c: d}]", max_events=100, max_depth=12)
    with pytest.raises(yaml.YAMLError):
        check_yaml("a: [", max_events=100, max_depth=12)
