"""The steps from what is served to what the mesh file says: one DApp at a time, and never less than before.

Serve itself is driven by `tests/test_write_a_dapp.py`; here stands a note-taker in its place, which may refuse a start.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
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
from serving.errors import CallError, NoNode, NoRoom, StartError
from serving.isolation.dapp import IsolatedDApp
from serving.mesh.dapp_loading import load_dapp
from serving.mesh.rollout import Rollout
from serving.mesh.served import Served

DAPP = """\
from dapps import DApp, Price, Tensor
class Shelved(DApp):
    \"\"\"Has the version of its package.\"\"\"
    price = Price({price})
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
    (folder / "shelved.py").write_text(DAPP.format(price=price))
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: shelved-dapp\nVersion: {version}\n")
    (information / "entry_points.txt").write_text("[leben.dapps]\nshelved = shelved:Shelved\n")
    return f"shelved_dapp/{version}-aa"


@dataclass(frozen=True)
class Spec:
    dapp: str
    version: str
    kind: str
    maximum_batch: int = 0


@dataclass
class Notes:
    """An `ApplicationPort` that notes what it is asked for, and refuses some of it."""

    steps: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    refused: str = ""
    unplaced: str = ""
    full: str = ""
    head: tuple[str, ...] = ("head",)
    gone: str = ""
    pause: Callable[[str], None] = lambda version: None

    def specify(self, name: str, dapp: DApp, entry: Entry, kind: str) -> Spec:
        return Spec(name, dapp.version, kind or type(dapp).__name__)

    def start(self, spec: Spec, check: Callable[[], None] = lambda: None) -> None:
        self.pause(spec.version)
        batch = f" by {spec.maximum_batch}" if spec.maximum_batch else ""
        self.steps.append(f"start {spec.dapp} {spec.version}{batch}")
        if spec.version == self.refused:
            raise StartError("its weights are not there")
        if spec.dapp == self.unplaced:
            raise NoNode("no node has a GPU")
        if spec.dapp == self.full:
            raise NoRoom(f"{spec.dapp}: no node has room")

    def make_room(self, specs: Iterable[Spec]) -> str:
        return f"held by {', '.join(spec.dapp for spec in specs)}"

    def end(self, spec: Spec) -> None:
        self.steps.append(f"delete {spec.dapp}")

    def publish(
        self,
        dapps: Mapping[str, DApp],
        specs: Mapping[str, Spec],
        failed: Mapping[str, str],
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.steps.append("publish " + " ".join(f"{name} {dapp.version}" for name, dapp in sorted(dapps.items())))

    def lost(self, spec: Spec) -> str:
        return "no node" if spec.dapp == self.gone else ""

    def nodes(self) -> tuple[str, ...]:
        return self.head

    def note(self, facts: dict[str, Any]) -> None:
        self.facts.update(facts)


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    settings = Settings(data=tmp_path / "data", trusted_dapps=frozenset({"chdr"}))
    yield settings
    import_path.hide(settings.packages / "shelved_dapp" / "any")


def serve(settings: Settings, notes: Notes) -> tuple[Rollout, Served]:
    """A rollout from the mesh file as it is; nobody answers here, so no route is waited for."""
    file = mesh_file.read(settings)
    dapps = {name: load_dapp(settings, name, entry) for name, entry in file.enabled.items()}
    served = Served(settings, notes, dapps, file.enabled, routes_wait_s=0)
    return Rollout(settings, file, served, notes, noticed_s=0), served


def test_each_version_is_started_published_and_noted_and_the_rest_is_left_alone(settings: Settings) -> None:
    notes = Notes()
    going, served = serve(settings, notes)
    for version in ("1.0", "2.0", "1.0"):
        package = f"shelved_dapp/{version}-aa"
        if not (settings.packages / package).exists():
            shelve(settings, version)
        mesh_file.change(settings, "shelved", package=package, trusted=True)
        going.follow()
        assert notes.steps[-2] == f"start shelved {version}" and notes.steps[-1].endswith(f" shelved {version}")
        assert notes.facts["served"]["shelved"]["version"] == version and notes.facts["failed"] == {}
    assert [step for step in notes.steps if "start chdr" in step] == [], "who is not named is not touched"
    assert served.specs["shelved"].kind == "Shelved"
    mesh_file.change(settings, "shelved", enabled=False)
    going.follow()
    published, deleted = notes.steps[-2:]
    assert deleted == "delete shelved" and published.startswith("publish chdr"), "told before it ends"
    assert "shelved" not in published and notes.facts["dapps"] == ["chdr"]


def test_a_version_that_does_not_start_leaves_the_one_before_it(settings: Settings) -> None:
    notes = Notes(refused="2.0")
    going, served = serve(settings, notes)
    mesh_file.change(settings, "shelved", package=shelve(settings, "1.0"), trusted=True)
    going.follow()
    mesh_file.change(settings, "shelved", package=shelve(settings, "2.0"))
    going.follow()
    assert notes.steps[-2:] == ["start shelved 2.0", "start shelved 1.0"]
    assert "weights are not there" in notes.facts["failed"]["shelved"]
    assert notes.facts["served"]["shelved"]["version"] == "1.0" and served.dapps["shelved"].version == "1.0"


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
    going, served = serve(settings, notes)
    mesh_file.change(settings, "shelved", package=shelve(settings, "1.0"), trusted=True)
    going.follow()
    done = len(notes.steps)
    mesh_file.change(settings, "shelved", **changed)
    going.follow()
    assert says in notes.facts["failed"]["shelved"] and len(notes.steps) == done
    assert served.dapps["shelved"].version == "1.0"


@pytest.mark.skipif(sys.platform != "linux", reason="the walls are Linux's")
def test_a_version_that_is_not_trusted_answers_behind_walls_and_is_on_nobodys_path(settings: Settings) -> None:
    first, second = (shelve(settings, version) for version in ("1.0", "2.0"))
    trusted = load_dapp(settings, "shelved", Entry(package=first, trusted=True))
    isolated = load_dapp(settings, "shelved", Entry(package=second))
    assert isinstance(isolated, IsolatedDApp)
    try:
        assert isolated.version == "2.0", "of the version that is trusted here, its process sees none"
        assert not isinstance(trusted, IsolatedDApp) and trusted.version == "1.0"
        assert str(settings.packages / second) not in sys.path
        assert registry.load("shelved").version == "1.0"
    finally:
        isolated.child.close()


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
    going, served = serve(settings, notes)
    settings.home.mkdir(exist_ok=True)
    (settings.home / mesh_file.FILE).write_text("dapps: {chdr: {replicas: many}}\n")
    going.follow()
    assert "line 1" in notes.facts["failed"][""] and notes.facts["dapps"] == ["chdr"] and notes.steps == []
    (settings.home / mesh_file.FILE).write_text("dapps: {chdr: {trusted: true, price: {per_item: 7, guideline: 1}}}\n")
    going.follow()
    assert notes.facts["failed"] == {} and served.dapps["chdr"].price.per_item == 7
    assert notes.steps[0].startswith("start chdr")


def test_only_one_version_is_seen_and_never_before_the_environment(settings: Settings) -> None:
    import sys

    for version in ("1.0", "2.0"):
        entry = Entry(package=shelve(settings, version), trusted=True)
        assert load_dapp(settings, "shelved", entry).version == version
    ours = [path for path in sys.path if Path(path).is_relative_to(settings.packages)]
    assert ours == sys.path[-1:] == [str(settings.packages / "shelved_dapp" / "2.0-aa")]


def test_a_dapp_without_a_node_is_left_out_and_started_once_one_joins(settings: Settings) -> None:
    settings = settings.model_copy(update={"listen": IPv4Address("10.0.0.5")})
    mesh_file.change(settings, "strokedr", trusted=True)
    notes = Notes(unplaced="strokedr")
    going, served = serve(settings, notes)
    steps: list[str] = []
    going.check_at_start(steps.append)
    assert steps == ["DApp chdr", "DApp strokedr"]
    assert notes.steps[-2:] == ["delete strokedr", f"publish chdr {served.dapps['chdr'].version}"]
    assert notes.facts["dapps"] == ["chdr"] and notes.facts["failed"] == {"strokedr": "no node has a GPU"}

    def tended() -> None:
        going.poll()
        going.wait()

    before = len(notes.steps)
    tended()
    assert len(notes.steps) == before, "as long as no node joins there is nothing to try"
    notes.head, notes.unplaced = ("head", "other"), ""
    tended()
    assert notes.facts["dapps"] == ["chdr", "strokedr"] and notes.facts["failed"] == {}
    assert notes.steps[before].startswith("start strokedr") and "strokedr" in notes.steps[-1]


def test_a_full_machine_is_reported_with_who_holds_it(settings: Settings) -> None:
    notes = Notes(full="shelved")
    going, _ = serve(settings, notes)
    going.check_at_start(lambda step: None)
    mesh_file.change(settings, "shelved", package=shelve(settings, "1.0"), trusted=True)
    going.follow()
    assert notes.facts["failed"] == {"shelved": "shelved: no node has room; held by chdr"}


def test_a_dapp_whose_last_node_has_died_is_taken_off_and_comes_back_with_the_next(settings: Settings) -> None:
    settings = settings.model_copy(update={"listen": IPv4Address("10.0.0.5"), "place_s": 0.1})
    mesh_file.change(settings, "strokedr", trusted=True)
    notes = Notes(head=("head", "other"))
    going, served = serve(settings, notes)
    going.check_at_start(lambda step: None)
    for nodes, gone in ((("head",), "strokedr"), (("head", "third"), "")):
        notes.head, notes.gone, notes.unplaced = nodes, gone, gone
        going.poll()
        going.wait()
        assert notes.facts["failed"] == ({"strokedr": "no node has a GPU"} if gone else {})
        assert notes.facts["dapps"] == ["chdr"] + ["strokedr"] * (not gone)
    assert f"publish chdr {served.dapps['chdr'].version}" in notes.steps
    assert [step for step in notes.steps if step.startswith("delete chdr")] == []


def test_a_machine_alone_that_can_place_nothing_does_not_start(settings: Settings) -> None:
    with pytest.raises(StartError, match="no node has a GPU"):
        serve(settings, Notes(unplaced="chdr"))[0].check_at_start(lambda step: None)


def test_a_load_meanwhile_waits_and_starts_the_version_that_the_rollout_has_started(settings: Settings) -> None:
    notes = Notes()
    going, served = serve(settings, notes)
    mesh_file.change(settings, "shelved", package=shelve(settings, "1.0"), trusted=True)
    going.follow()
    served.unload("shelved")
    assert served.unloaded == {"shelved"} and notes.steps[-1] == "delete shelved"
    reached, resume = threading.Event(), threading.Event()

    def pause(version: str) -> None:
        if version == "2.0":
            reached.set()
            assert resume.wait(60)

    notes.pause = pause
    mesh_file.change(settings, "shelved", package=shelve(settings, "2.0"))
    going.poll()
    assert reached.wait(60)
    caller = threading.Thread(target=served.load, args=("shelved", 3))
    caller.start()
    resume.set()
    caller.join(60)
    going.wait()
    assert [step for step in notes.steps if "2.0" in step and "start" in step] == [
        "start shelved 2.0",
        "start shelved 2.0 by 3",
    ]
    assert served.unloaded == frozenset() and "start shelved 1.0 by 3" not in notes.steps


def test_a_model_that_is_not_served_cannot_be_loaded(settings: Settings) -> None:
    _, served = serve(settings, Notes())
    for change in (served.load, served.unload):
        with pytest.raises(CallError, match="no such model"):
            change("nobody")
