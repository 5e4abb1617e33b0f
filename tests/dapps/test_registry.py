"""Mirror of dapps/registry.py: DApps are found by entry point, and finding one loads no torch."""

import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest

from dapps import registry
from dapps.api import DApp


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


def test_an_entry_point_that_is_no_dapp_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _install(monkeypatch, "odd", "pathlib:Path")
    with pytest.raises(TypeError, match="not a DApp class"):
        registry.load("odd")


@pytest.mark.parametrize("name", ["../etc", "Upper", "a b", "", "a" * 64])
def test_a_name_that_could_not_be_in_a_url_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    _install(monkeypatch, name, "dapps.chdr:CHDr")
    with pytest.raises(ValueError, match="lower-case"):
        registry.names()


def test_importing_the_dapps_loads_no_torch() -> None:
    program = "import dapps, dapps.chdr, dapps.strokedr, dapps.testing, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def _install(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    point = EntryPoint(name=name, value=value, group=registry.GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point])
