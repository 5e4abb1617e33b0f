"""Tests dapps/packages/registry.py: entry points offer DApps, and finding one loads no torch."""

import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest

from dapps.api.dapp import DApp
from dapps.packages import registry


def test_the_built_in_dapps_are_found_like_anyone_elses() -> None:
    assert {"chdr", "strokedr"} <= set(registry.names())


@pytest.mark.parametrize("name", ["chdr", "strokedr"])
def test_a_dapp_is_loaded_by_name_and_described(name: str) -> None:
    dapp = registry.load(name)
    assert isinstance(dapp, DApp)
    assert "Research use only" in dapp.description
    assert len(dapp.digest) == 64 and dapp.digest == registry.load(name).digest


def test_an_unknown_name_lists_what_there_is() -> None:
    with pytest.raises(registry.UnknownDApp, match="chdr"):
        registry.load("nothing")


def test_what_cannot_be_served_is_listed_with_its_reason_and_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    offers = {"odd": "pathlib:Path", "gone": "no_such_package:Nothing", "Upper": "dapps.chdr:CHDr"}
    _install(monkeypatch, ("chdr", "dapps.chdr:CHDr"), *offers.items())
    assert registry.names() == ["chdr", "gone", "odd"] and isinstance(registry.load("chdr"), DApp)
    problems = registry.problems()
    assert sorted(problems) == ["Upper", "gone", "odd"]
    assert "not a DApp class" in problems["odd"] and "ModuleNotFoundError" in problems["gone"]
    with pytest.raises(registry.UnknownDApp, match="cannot be loaded"):
        registry.load("odd")


@pytest.mark.parametrize("name", ["../etc", "Upper", "a b", "", "a" * 64])
def test_a_name_that_could_not_be_in_a_url_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    _install(monkeypatch, (name, "dapps.chdr:CHDr"))
    assert registry.names() == [] and "lower-case" in registry.problems()[name]
    with pytest.raises(registry.UnknownDApp, match="lower-case"):
        registry.load(name)


def test_one_name_from_two_packages_is_refused_with_both_origins(monkeypatch: pytest.MonkeyPatch) -> None:
    _install(monkeypatch, ("chdr", "dapps.chdr:CHDr"), ("chdr", "dapps.strokedr:StrokeDr"))
    with pytest.raises(registry.UnknownDApp, match=r"dapps\.chdr:CHDr and by dapps\.strokedr:StrokeDr"):
        registry.load("chdr")


def test_other_versions_come_from_the_package_of_the_default_one_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    _install(monkeypatch, ("chdr", "dapps.chdr:CHDr"), ("chdr.old", "dapps.chdr:CHDr"), ("chdr.o/d", "dapps.chdr:CHDr"))
    assert registry.names() == ["chdr"] and registry.others("chdr") == ["chdr.old"]
    assert registry.public("chdr.old") == "chdr" and isinstance(registry.load("chdr.old"), DApp)
    assert list(registry.problems()) == ["chdr.o/d"]
    monkeypatch.setattr(registry, "_package", lambda point: "stranger" if "." in point.name else "leben-mesh")
    assert registry.others("chdr") == [] and "only the package of chdr" in registry.problems()["chdr.old"]
    _install(monkeypatch, ("nobody.old", "dapps.chdr:CHDr"))
    assert registry.others("nobody") == [] and "only the package" in registry.problems()["nobody.old"]


def test_importing_the_dapps_loads_no_torch() -> None:
    program = (
        "import dapps, dapps.chdr, dapps.strokedr, dapps.conformance.suite, sys; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_importing_dapps_loads_no_heavy_library() -> None:
    program = (
        "import dapps, sys; heavy = {'torch', 'matplotlib', 'pydicom', 'scipy', 'pydantic', 'ray'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def _install(monkeypatch: pytest.MonkeyPatch, *offers: tuple[str, str]) -> None:
    points = [EntryPoint(name=name, value=value, group=registry.GROUP) for name, value in offers]
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
