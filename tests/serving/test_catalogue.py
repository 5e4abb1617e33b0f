"""The catalogue and its pages: what is told of a DApp, and that no author's text gets further than its place."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from dapps import DApp
from dapps.api.types import BASIS_POINTS
from dapps.evaluation import plots
from dapps.packages import registry
from serving.catalogue import entry
from serving.cli.main import app
from serving.control.pages import HEADERS, Pages, amount, asset, snippets
from tests.examples import examples
from tests.serving.conftest import Doubler

MESH = {"url": "http://127.0.0.1:8700", "network": "eip155:1", "asset": "0xA", "receipts": "0xB"}
UP = {"state": "READY", "reason": ""}
EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{ 7 * 7 }}{% raw %}"
SHARES = (("knowledge", "0xC", 7_500), ("operator", "0xD", 2_500))
DOUBLER = entry.entry("doubler", Doubler(), SHARES)


@pytest.fixture(scope="module")
def rows() -> dict[str, Any]:
    return {name: entry.entry(name, registry.load(name), SHARES) for name in ("chdr", "strokedr")}


def test_a_row_tells_all_that_a_caller_can_know(rows: dict[str, Any]) -> None:
    row, dapp = rows["strokedr"], registry.load("strokedr")
    assert row["title"] == "StrokeDr." and row["digest"] == dapp.digest == dapp.manifest.dapp
    price = row["price"]
    assert row["versions"] == [{"version": dapp.version, "default": True, "digest": dapp.digest, "price": price}]
    assert int(row["price"]["maximum"]) == dapp.price.of(dapp.price.maximum_items)
    assert sum(share["basisPoints"] for share in row["shares"]) == BASIS_POINTS
    assert row["inputs"][0] == {
        "name": "SLICE",
        "datatype": "UINT8",
        "shape": [-1, 1, 128, 128],
        "unit": dapp.inputs[0].unit,
        "optional": True,
    }
    assert [card["name"] for card in row["cards"]] == ["StrokeDr haemorrhage", "StrokeDr prognosis"]
    assert row["samples"] == list(dapp.samples()) and not row["cardProblems"]
    assert [guideline["id"] for guideline in row["digests"]["guidelines"]] == list(dapp.guidelines)
    assert json.loads(json.dumps(row, allow_nan=False)) == row
    assert not {"cards", "samples"} & set(entry.listed(row))


def test_a_class_without_a_card_is_listed_too() -> None:
    row = entry.entry("doubler", Doubler(), SHARES)
    assert row["title"] == "Doubler" and row["cards"] == [] and row["samples"] == ["sample"]


def test_samples_that_cannot_be_made_stop_nobody() -> None:
    class Broken(Doubler):
        def samples(self) -> Any:
            raise RuntimeError("no disk")

    assert entry.entry("doubler", Broken(), SHARES)["samples"] == []


BOMB = b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n".encode() for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"[1, 2]", id="no mapping"),
        pytest.param(b"a: [", id="no YAML"),
        pytest.param(b"a: \xff", id="no text"),
        pytest.param(b"!!python/object/apply:os.system ['true']", id="code"),
        pytest.param(BOMB, id="references upon references"),
        pytest.param(b"a: &a\n  b: *a", id="a card within itself"),
        pytest.param(b"a: &a {x: 1}\nb: {<<: [*a, *a]}", id="merge keys"),
        pytest.param(b"a: " + b"x" * entry.CARD_BYTES, id="too long"),
        pytest.param(b"a: " + b"[" * 5_000 + b"]" * 5_000, id="too deep"),
    ],
)
def test_a_card_that_cannot_be_read_is_told_of_and_stops_nobody(
    content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DApp, "card_files", (("CARD.yaml", content), ("b/CARD.yaml", b"name: B")))
    readable, problems = entry.cards(registry.load("chdr"))
    assert readable == [{"name": "B"}]
    assert len(problems) == 1 and problems[0].startswith("CARD.yaml cannot be read") and len(problems[0]) < 500


def test_numbers_of_a_card_survive_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    card = b"1: .nan\nwhen: 2026-01-02\nlarge: 9007199254740993\n2.5: [1.5, null]"
    monkeypatch.setattr(DApp, "card_files", (("CARD.yaml", card),))
    readable, _ = entry.cards(registry.load("chdr"))
    assert readable == [{"1": None, "when": "2026-01-02", "large": "9007199254740993", "2.5": [1.5, None]}]


class Read(HTMLParser):
    """What a browser would make of a page: its tags and attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def evil_row(rows: dict[str, Any]) -> dict[str, Any]:
    """A row in which every text is an attack."""

    def poisoned(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: poisoned(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [poisoned(inner) for inner in value]
        return value if not isinstance(value, str) or value.isdigit() else EVIL

    row = rows["chdr"]
    evil = poisoned(row)
    for key in ("inputs", "outputs"):
        for tensor, real in zip(evil[key], row[key], strict=True):
            tensor["datatype"] = real["datatype"]
    # Names come from the registry, which takes letters, digits, - and _ alone.
    return dict(evil | {"name": "chdr", "cards": [*evil["cards"], {EVIL: {EVIL: [EVIL, {EVIL: EVIL}]}}]})


def test_no_text_of_an_author_becomes_markup(rows: dict[str, Any]) -> None:
    pages, evil = Pages("1", MESH), evil_row(rows)
    down = {"state": "UNAVAILABLE", "reason": EVIL}
    unserved = [{"name": EVIL, "state": "broken", "reason": EVIL}]
    rows = [
        pages.home([evil | {"health": down}], unserved),
        pages.dapp(evil | {"health": down}),
        pages.answer(evil, EVIL, EVIL, markdown=False, picture=True),
        pages.answer(evil, EVIL, f"# {EVIL}\n\n| a |\n| --- |\n| {EVIL} |\n", markdown=True, picture=False),
    ]
    for page in rows:
        read = Read(page)
        assert "script" not in read.tags and "alert(1)" in read.text and "{{ 7 * 7 }}" in read.text
        assert not [name for name, _ in read.attributes if name.startswith("on") or name == "style"]
    images = [Read(page).tags.count("img") for page in rows]
    assert images == [0, 0, 1, 0], "the one of our own"


def test_markdown_of_a_report_makes_no_links_and_no_images() -> None:
    text = "[see](https://evil.example) ![x](https://evil.example/x.png) <https://evil.example> <b>bold</b> a<br>b"
    page = Pages("1", MESH).answer(
        {"name": "chdr", "title": "T", "diagnose": True}, "s", text, markdown=True, picture=False
    )
    article = page[page.index("<article") : page.index("</article>")]
    assert not {"a", "img", "b"} & set(Read(article).tags) and "a<br>b" in article


def test_pages_fetch_nothing_from_elsewhere_and_run_nothing(rows: dict[str, Any]) -> None:
    pages = Pages("1", MESH)
    for page in (pages.home([rows["chdr"] | {"health": UP}], []), pages.dapp(rows["strokedr"] | {"health": UP})):
        fetched = re.findall(r'(?:src|href|action)="([^"]*)"', page)
        assert fetched and all(where.startswith("/") for where in fetched)
        assert not {"script", "style", "iframe", "object"} & set(Read(page).tags)
    assert b"url(" not in asset("style.css") and b"@import" not in asset("style.css")
    assert HEADERS["content-security-policy"].startswith("default-src 'none'") and "unsafe" not in str(HEADERS)


def test_every_model_of_the_cards_has_its_plots(rows: dict[str, Any]) -> None:
    drawn = [model for row in rows.values() for card in row["cards"] for model in plots.of_card(card)]
    assert len(drawn) == 7 and all(len(model.measures) == 5 and model.bins for model in drawn)
    first = drawn[0]
    auc = rows["chdr"]["cards"][0]["results"]["held_out"]["murmur_recording"]["auc"]
    assert first.part == "held-out" and [first.measures[0].value, first.measures[0].low] == auc[:2]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(["auc", "reliability", "n", "positive", "item", "sensitivity_at_low"])


@settings(max_examples=examples(50))
@given(results=VALUES | st.dictionaries(st.sampled_from(["held_out", "development"]), st.dictionaries(NAMES, VALUES)))
def test_a_card_laid_out_otherwise_draws_nothing_and_breaks_nothing(results: Any) -> None:
    card = {"name": 5, "results": results, "limits": results, "purpose": results}
    row = DOUBLER | {"cards": [card], "health": UP}
    assert "<svg" not in Pages("1", MESH).dapp(row) or plots.of_card(card)


@pytest.mark.parametrize(
    ("atomic", "text"), [("0", "0"), ("1", "0.000001"), ("400", "0.0004"), ("1000000", "1"), ("12500000", "12.5")]
)
def test_amounts_are_told_without_a_float(atomic: str, text: str) -> None:
    assert amount(atomic) == text


@settings(max_examples=examples(50))
@given(name=st.text(max_size=30), unit=st.text(max_size=10))
def test_names_of_an_author_stay_literals_in_the_code(name: str, unit: str) -> None:
    (taken,), (given_back,) = DOUBLER["inputs"], DOUBLER["outputs"]
    row = DOUBLER | {"inputs": [taken | {"name": name, "unit": unit}], "outputs": [given_back | {"name": name}]}
    for way in snippets.all_of(MESH["url"], row)[1:]:
        tree = compile(way.code, way.title, "exec")
        assert "InferInput" not in way.code or name in tree.co_consts or name in str(tree.co_consts)


def test_what_is_installed_is_a_table_where_no_mesh_runs(tmp_path: Any) -> None:
    shown = CliRunner().invoke(app, ["dapps", "--data", str(tmp_path)], env={"COLUMNS": "120"})
    assert shown.exit_code == 0 and "strokedr" in shown.output and "no mesh runs" in shown.output
    listed = CliRunner().invoke(app, ["dapps", "--data", str(tmp_path), "--json"])
    names = [row["name"] for row in json.loads(listed.stdout)["dapps"]]
    assert {"chdr", "strokedr"} <= set(names)
