"""Tests dapps/knowledge/library.py: installed guidelines are found, checked and pinned like built-in ones."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from dapps.knowledge import GuidelineError, UnknownGuideline, explain, find, library, names
from tests.dapps.knowledge.small import changed

BUILT_IN = {"cchd-aap-2011", "cchd-aap-2025", "cchd-joint-2025", "stroke-ivt-2018", "stroke-ivt-2026"}


def install(monkeypatch: pytest.MonkeyPatch, folder: Path, raw: bytes, name: str = "small") -> None:
    """A package on the path with one guideline, offered by an entry point as an installed one would be."""
    package = folder / "some_guidelines"
    package.mkdir()
    (package / "__init__.py").write_text('"""Guidelines of a hospital."""\n')
    (package / f"{name}.yaml").write_bytes(raw)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "some_guidelines", raising=False)
    offer(monkeypatch, name)


def offer(monkeypatch: pytest.MonkeyPatch, *offered: str, value: str = "some_guidelines") -> None:
    points = [EntryPoint(name=name, value=value, group=library.GROUP) for name in offered]
    monkeypatch.setattr(library, "entry_points", lambda group: points if group == "leben.guidelines" else [])


def test_the_built_in_guidelines_are_found() -> None:
    assert set(names()) >= BUILT_IN
    for name in BUILT_IN:
        assert find(name).id == name and len(find(name).digest) == 64


def test_a_guideline_from_outside_is_found_and_weighed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path, changed())
    assert set(names()) == BUILT_IN | {"small"}
    assert explain(find("small"), {})["recommended"] == "ask"
    assert library.open_file("small") == changed()


def test_a_pinned_digest_is_held_to(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path, changed())
    digest = find("small").digest
    assert find("small", digest) is find("small", "0x" + digest.upper())
    (tmp_path / "some_guidelines" / "small.yaml").write_bytes(changed(("score >= 40", "score >= 41")))
    with pytest.raises(UnknownGuideline, match="not the file that was pinned"):
        find("small", digest)


def test_a_flawed_one_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path, changed(("if: allergy", "if: alergy")))
    with pytest.raises(GuidelineError, match="alergy"):
        find("small")


def test_nobody_takes_the_name_of_another(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path, changed(), name="stroke-ivt-2026")
    with pytest.raises(UnknownGuideline, match="the name of a built-in guideline"):
        names()
    assert find("stroke-ivt-2026").document.title != "A small guideline"
    offer(monkeypatch, "other")
    (tmp_path / "some_guidelines" / "other.yaml").write_bytes(changed())
    with pytest.raises(UnknownGuideline, match="the file of other has the id small"):
        find("other")
    points = [EntryPoint(name="small", value=value, group=library.GROUP) for value in ("one", "two")]
    monkeypatch.setattr(library, "entry_points", lambda group: points)
    with pytest.raises(UnknownGuideline, match="two installed packages"):
        names()


@pytest.mark.parametrize("value", ["no_such_package", "some_guidelines"])
def test_a_package_without_its_file_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, value: str) -> None:
    install(monkeypatch, tmp_path, changed())
    offer(monkeypatch, "missing", value=value)
    with pytest.raises(UnknownGuideline, match=f"{value} offers missing"):
        find("missing")


def test_an_unknown_name_lists_what_there_is() -> None:
    with pytest.raises(UnknownGuideline, match="cchd-aap-2025"):
        find("nothing")
    with pytest.raises(UnknownGuideline, match="no guideline named"):
        library.open_file("nothing")
    with pytest.raises(FileNotFoundError):
        library.open_file("./nothing.yaml")
