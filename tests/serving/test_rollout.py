"""The steps from what is served to what the mesh file says: one DApp at a time, and never less than before.

Serve itself is driven by `tests/test_write_a_dapp.py`; here stands a note-taker in its place, which may refuse a start.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from dapps import DApp
from dapps.packages import import_path, registry
from serving.config import mesh_file
from serving.config.mesh_file import Entry, PriceOverride
from serving.config.settings import Settings
from serving.errors import NoNode, StartError
from serving.isolation.dapp import IsolatedDApp
from serving.mesh.dapp_loading import load_dapp
from serving.mesh.rollout import Builder, Rollout

DAPP = """\
from dapps import DApp, Price, Tensor
class Shelved(DApp):
    \"\"\"Says its version.\"\"\"
    version, price = "{version}", Price({price})
    inputs, outputs = [Tensor("X", "FP32", [1])], [Tensor("Y", "FP32", [1])]
    def load(self, device): pass
    def forward(self, X): return {{"Y": X}}
    def example(self): return {{"X": __import__("numpy").ones((1, 1), "f4")}}
"""


def shelve(settings: Settings, version: str, price: int = 5) -> str:
    """An unpacked version of a package, as `leben dapp install` leaves it."""
    folder = settings.packages / "shelved_dapp" / f"{version}-aa"
    information = folder / f"shelved_dapp-{version}.dist-info"
    information.mkdir(parents=True)
    (folder / "shelved.py").write_text(DAPP.format(version=version, price=price))
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: shelved-dapp\nVersion: {version}\n")
    (information / "entry_points.txt").write_text("[leben.dapps]\nshelved = shelved:Shelved\n")
    return f"shelved_dapp/{version}-aa"


@dataclass
class Notes:
    """Stands in the place of Serve."""

    steps: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    refused: str = ""
    unplaced: str = ""
    nodes: tuple[str, ...] = ("head",)
    lost: str = ""

    def start(self, spec: Any) -> None:
        self.steps.append(f"start {spec.dapp} {spec.version}")
        if spec.version == self.refused:
            raise StartError("its weights are not there")
        if spec.dapp == self.unplaced:
            raise NoNode("no node has a GPU")

    def builder(self) -> Builder:
        @dataclass
        class Spec:
            dapp: str
            version: str
            kind: str

        def specify(name: str, dapp: DApp, entry: Entry, kind: str) -> Spec:
            return Spec(name, dapp.version, kind or type(dapp).__name__)

        def publish(dapps: dict[str, DApp], specs: tuple[Any, ...]) -> None:
            self.steps.append("publish " + " ".join(f"{name} {dapp.version}" for name, dapp in sorted(dapps.items())))

        delete = lambda spec: self.steps.append(f"delete {spec.dapp}")  # noqa: E731
        lost = lambda spec: "no node" if spec.dapp == self.lost else ""  # noqa: E731
        return Builder(specify, self.start, publish, delete, self.facts.update, lambda: self.nodes, lost)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    import serving.mesh.rollout

    monkeypatch.setattr(serving.mesh.rollout, "ROUTES_WAIT_S", 0)  # nobody answers here
    monkeypatch.setattr(serving.mesh.rollout, "NOTICED_S", 0)
    made = Settings(data=tmp_path / "data", trusted_dapps=frozenset({"chdr"}))
    yield made
    import_path.hide(made.packages / "shelved_dapp" / "any")


def rollout(settings: Settings, notes: Notes) -> Rollout:
    file = mesh_file.read(settings)
    return Rollout(settings, file, {name: load_dapp(settings, name, each) for name, each in file.wanted.items()},
                   notes.builder())  # fmt: skip


def test_each_version_is_started_published_and_noted_and_the_rest_is_left_alone(settings: Settings) -> None:
    notes = Notes()
    going = rollout(settings, notes)
    for version in ("1.0", "2.0", "1.0"):
        package = f"shelved_dapp/{version}-aa"
        if not (settings.packages / package).exists():
            shelve(settings, version)
        mesh_file.change(settings, "shelved", package=package, trusted=True)
        going.follow()
        assert notes.steps[-2] == f"start shelved {version}" and notes.steps[-1].endswith(f" shelved {version}")
        assert notes.facts["served"]["shelved"]["version"] == version and notes.facts["failed"] == {}
    assert [step for step in notes.steps if "start chdr" in step] == [], "who is not named is not touched"
    assert going.specs[-1].kind == "Shelved"
    mesh_file.change(settings, "shelved", enabled=False)
    going.follow()
    published, deleted = notes.steps[-2:]
    assert deleted == "delete shelved" and published.startswith("publish chdr"), "told before it ends"
    assert "shelved" not in published and notes.facts["dapps"] == ["chdr"]


def test_a_version_that_does_not_start_leaves_the_one_before_it(settings: Settings) -> None:
    notes = Notes(refused="2.0")
    going = rollout(settings, notes)
    mesh_file.change(settings, "shelved", package=shelve(settings, "1.0"), trusted=True)
    going.follow()
    mesh_file.change(settings, "shelved", package=shelve(settings, "2.0"))
    going.follow()
    assert notes.steps[-2:] == ["start shelved 2.0", "start shelved 1.0"]
    assert "weights are not there" in notes.facts["failed"]["shelved"]
    assert notes.facts["served"]["shelved"]["version"] == "1.0" and going.dapps["shelved"].version == "1.0"


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        pytest.param({"package": "shelved_dapp/3.0-aa"}, "is not unpacked", id="not-there"),
        pytest.param({"price": {"per_item": 10_000_000}}, "LEBEN_EXPOSURE_CAP", id="above-the-cap"),
        pytest.param({"price": {"maximum": 5}}, "maximum goes with", id="no-price"),
    ],
)
def test_what_cannot_be_is_told_and_nothing_is_started(settings: Settings, changed: dict[str, Any], says: str) -> None:
    notes = Notes()
    going = rollout(settings, notes)
    mesh_file.change(settings, "shelved", package=shelve(settings, "1.0"), trusted=True)
    going.follow()
    done = len(notes.steps)
    mesh_file.change(settings, "shelved", **changed)
    going.follow()
    assert says in notes.facts["failed"]["shelved"] and len(notes.steps) == done
    assert going.dapps["shelved"].version == "1.0"


@pytest.mark.skipif(sys.platform != "linux", reason="the walls are Linux's")
def test_a_version_that_is_not_trusted_answers_behind_walls_and_is_on_nobodys_path(settings: Settings) -> None:
    first, second = (shelve(settings, version) for version in ("1.0", "2.0"))
    trusted = load_dapp(settings, "shelved", Entry(package=first, trusted=True))
    found = load_dapp(settings, "shelved", Entry(package=second))
    assert isinstance(found, IsolatedDApp)
    try:
        assert found.version == "2.0", "of the version that is trusted here, its process sees none"
        assert not isinstance(trusted, IsolatedDApp) and trusted.version == "1.0"
        assert str(settings.packages / second) not in sys.path
        assert registry.load("shelved").version == "1.0"
    finally:
        found.child.close()


def test_what_may_not_be_sold_has_no_price_of_the_operators_either(settings: Settings) -> None:
    package = shelve(settings, "1.0", price=0)
    folder = settings.packages / package
    (folder / "shelved").mkdir()
    (folder / "shelved.py").rename(folder / "shelved" / "__init__.py")
    (folder / "shelved" / "CARD.yaml").write_text("data: {licence: CC-BY-NC-4.0, non_commercial: true}\n")
    assert load_dapp(settings, "shelved", Entry(package=package, trusted=True)).price.max_price == 0
    with pytest.raises(StartError, match="non_commercial"):
        load_dapp(settings, "shelved", Entry(package=package, trusted=True, price=PriceOverride(per_item=1)))


def test_a_file_that_cannot_be_read_changes_nothing_and_the_next_one_counts(settings: Settings) -> None:
    notes = Notes()
    going = rollout(settings, notes)
    settings.home.mkdir(exist_ok=True)
    (settings.home / mesh_file.FILE).write_text("dapps: {chdr: {replicas: many}}\n")
    going.follow()
    assert "line 1" in notes.facts["failed"][""] and notes.facts["dapps"] == ["chdr"] and notes.steps == []
    (settings.home / mesh_file.FILE).write_text("dapps: {chdr: {trusted: true, price: {per_item: 7, guideline: 1}}}\n")
    going.follow()
    assert notes.facts["failed"] == {} and going.dapps["chdr"].price.per_item == 7
    assert notes.steps[0].startswith("start chdr")


def test_only_one_version_is_seen_and_never_before_the_environment(settings: Settings) -> None:
    import sys

    for version in ("1.0", "2.0"):
        entry = Entry(package=shelve(settings, version), trusted=True)
        assert load_dapp(settings, "shelved", entry).version == version
    ours = [path for path in sys.path if Path(path).is_relative_to(settings.packages)]
    assert ours == sys.path[-1:] == [str(settings.packages / "shelved_dapp" / "2.0-aa")]


def test_a_dapp_without_a_node_is_left_out_and_started_once_one_joins(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings.model_copy(update={"listen": IPv4Address("10.0.0.5")})
    mesh_file.change(settings, "strokedr", trusted=True)
    notes = Notes(unplaced="strokedr")
    going, told = rollout(settings, notes), []
    going.begin(told.append)
    assert told == ["DApp chdr", "DApp strokedr"]
    assert notes.steps[-2:] == ["delete strokedr", f"publish chdr {going.dapps['chdr'].version}"]
    assert notes.facts["dapps"] == ["chdr"] and notes.facts["failed"] == {"strokedr": "no node has a GPU"}

    def tended() -> None:
        going.poll()
        if going._step is not None:
            going._step.join()

    before = len(notes.steps)
    tended()
    assert len(notes.steps) == before, "as long as no node joins there is nothing to try"
    notes.nodes, notes.unplaced = ("head", "other"), ""
    tended()
    assert notes.facts["dapps"] == ["chdr", "strokedr"] and notes.facts["failed"] == {}
    assert notes.steps[before].startswith("start strokedr") and "strokedr" in notes.steps[-1]


def test_a_dapp_whose_last_node_has_died_is_taken_off_and_comes_back_with_the_next(settings: Settings) -> None:
    settings = settings.model_copy(update={"listen": IPv4Address("10.0.0.5"), "place_s": 0.1})
    mesh_file.change(settings, "strokedr", trusted=True)
    notes = Notes(nodes=("head", "other"))
    going = rollout(settings, notes)
    going.begin(lambda step: None)
    for nodes, gone in ((("head",), "strokedr"), (("head", "third"), "")):
        notes.nodes, notes.lost, notes.unplaced = nodes, gone, gone
        going.poll()
        assert going._step is not None
        going._step.join()
        assert notes.facts["failed"] == ({"strokedr": "no node has a GPU"} if gone else {})
        assert notes.facts["dapps"] == ["chdr"] + ["strokedr"] * (not gone)
    assert f"publish chdr {going.dapps['chdr'].version}" in notes.steps
    assert [step for step in notes.steps if step.startswith("delete chdr")] == []


def test_a_machine_alone_that_can_place_nothing_does_not_start(settings: Settings) -> None:
    with pytest.raises(StartError, match="no node has a GPU"):
        rollout(settings, Notes(unplaced="chdr")).begin(lambda step: None)
