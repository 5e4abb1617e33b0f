"""`leben.yaml`: what may stand in it, what is told of what may not, and that commands keep an operator's own words."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.config import mesh_file
from serving.config.settings import Settings
from serving.errors import StartError

WHOLE = b"""\
# Ours.
dapps:
  chdr: {trusted: true}
  hello:            # from the next room
    package: hello_dapp/0.1.0-aa
    replicas: 2
    where: {gpus: 0.25, resources: {room_7: 1}}
    price: {per_item: 60}
  away: {enabled: false}
  plain:
"""


def test_without_a_file_the_settings_say_what_is_served(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path, trusted_dapps=frozenset({"chdr", "strokedr"}))
    file = mesh_file.read(settings)
    assert {name: entry.trusted for name, entry in file.enabled.items()} == {"chdr": True, "strokedr": True}
    assert file.digest == ""


def test_a_file_says_which_where_how_many_and_at_what_price(tmp_path: Path) -> None:
    (tmp_path / mesh_file.FILE).write_bytes(WHOLE)
    file = mesh_file.read(Settings(data=tmp_path))
    assert sorted(file.enabled) == ["chdr", "hello", "plain"] and len(file.digest) == 64
    hello = file.dapps["hello"]
    assert hello.replicas is not None
    assert (hello.replicas.least, hello.where.gpus, hello.where.resources) == (2, 0.25, {"room_7": 1.0})
    assert hello.config == {"price": {"per_item": 60}}
    assert file.dapps["plain"].config == {}
    assert not file.dapps["plain"].trusted, "nothing is trusted that is not said to be"


@pytest.mark.parametrize(
    ("old", "new", "line", "says"),
    [
        pytest.param(b"replicas: 2", b"replicas: 0", 6, "dapps.hello.replicas", id="no-replica"),
        pytest.param(b"replicas: 2", b"replicas: two", 6, "dapps.hello.replicas", id="a-word"),
        pytest.param(b"replicas: 2", b"replicas: {least: 4, most: 2}", 6, "at least `least`", id="fewer-than-least"),
        pytest.param(b"replicas: 2", b"replica: 2", 6, "dapps.hello.replica", id="unknown-key"),
        pytest.param(b"per_item: 60", b"per_item: 0.5", 8, "dapps.hello.price.per_item", id="float-price"),
        pytest.param(b"hello_dapp/0.1.0-aa", b"../../etc", 5, "dapps.hello.package", id="another-folder"),
        pytest.param(b"  away:", b"  Away:", 2, "no name of a DApp", id="bad-name"),
        pytest.param(b"gpus: 0.25", b"gpus: -1", 7, "gpus", id="less-than-no-gpu"),
        pytest.param(b"dapps:", b"apps:", 2, "dapps", id="no-dapps"),
        pytest.param(b"  plain:", b"\tplain:", 10, "no YAML", id="a-tab"),
        pytest.param(
            b"  plain:", b"  two: {package: hello_dapp/0.2.0-bb}", 2, "two versions of hello_dapp", id="two-versions"
        ),
    ],
)
def test_what_may_not_stand_there_is_told_with_its_line(old: bytes, new: bytes, line: int, says: str) -> None:
    assert old in WHOLE
    with pytest.raises(StartError, match=rf"leben\.yaml, line {line}") as refused:
        mesh_file.parse(WHOLE.replace(old, new, 1))
    assert says in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"- a", b"\xff\xfe", b"dapps: &a\n  x: *a\n"])
def test_what_is_no_mesh_file_at_all_is_refused(content: bytes) -> None:
    with pytest.raises(StartError, match=r"leben\.yaml"):
        mesh_file.parse(content)


def test_a_change_keeps_comments_and_order_and_whatever_it_does_not_name(tmp_path: Path) -> None:
    path = tmp_path / mesh_file.FILE
    path.write_bytes(WHOLE)
    settings = Settings(data=tmp_path)
    mesh_file.change(settings, "hello", package="hello_dapp/0.2.0-bb", previous="hello_dapp/0.1.0-aa", replicas=None)
    mesh_file.change(settings, "plain", enabled=False)
    text = path.read_text()
    assert text.startswith("# Ours.\ndapps:\n  chdr: {trusted: true}\n  hello:") and "# from the next room" in text
    file = mesh_file.read(settings)
    assert (file.dapps["hello"].package, file.dapps["hello"].replicas) == ("hello_dapp/0.2.0-bb", None)
    assert file.dapps["hello"].previous == "hello_dapp/0.1.0-aa" and "plain" not in file.enabled


def test_the_first_change_writes_down_what_the_settings_said(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path / "new", trusted_dapps=frozenset({"chdr", "strokedr"}))
    before = mesh_file.read(settings).dapps
    mesh_file.change(settings, "more", package="more/1.0-aa")
    after = mesh_file.read(settings).dapps
    assert {name: after[name] for name in before} == before and sorted(after) == ["chdr", "more", "strokedr"]
    assert (settings.home / mesh_file.FILE).read_text().startswith("# Which DApps this mesh serves")


def test_a_change_that_would_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / mesh_file.FILE
    path.write_bytes(WHOLE)
    with pytest.raises(StartError):
        mesh_file.change(Settings(data=tmp_path), "hello", replicas=-1)
    assert path.read_bytes() == WHOLE
