"""A wheel is unpacked beside its other versions, or refused before anything of it is: by its names and its needs."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from dapps.packages.registry import UnknownDApp
from serving.config.settings import Settings
from serving.errors import StartError
from serving.mesh import wheels


def wheel(folder: Path, name: str, version: str, offers: str, needs: str = "leben-mesh") -> Path:
    """A wheel of one module, as a build writes it."""
    module = name.replace("-", "_")
    file = folder / f"{module}-{version}-py3-none-any.whl"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Dist: {needs}\n"
    members = {
        f"{module}.py": f"VERSION = {version!r}\n",
        f"{module}-{version}.dist-info/METADATA": metadata,
        f"{module}-{version}.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{module}-{version}.dist-info/entry_points.txt": offers,
        f"{module}-{version}.dist-info/RECORD": "",
    }
    with zipfile.ZipFile(file, "w") as archive:
        for path, text in members.items():
            archive.writestr(path, text)
    return file


def offer(name: str) -> str:
    return f"[leben.dapps]\n{name} = some:Thing\n"


def test_versions_lie_side_by_side_and_the_same_wheel_is_unpacked_once(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path / "data")
    built = {version: wheel(tmp_path, "side-by", version, offer("side")) for version in ("1.0", "2.0")}
    places = []
    for version in ("1.0", "2.0", "1.0"):
        place, (found,) = wheels.unpack(settings, built[version])
        assert found.name == "side"
        assert (settings.packages / place / "side_by.py").read_text() == f"VERSION = {version!r}\n"
        places.append(place)
    assert places[0] == places[2] != places[1] and len(list((settings.packages / "side_by").iterdir())) == 2
    assert not settings.packages.is_relative_to(settings.home), "an isolated DApp sees its package, never the data"


@pytest.mark.parametrize(
    ("offers", "needs", "says"),
    [
        pytest.param(offer("chdr"), "leben-mesh", r"chdr is offered by leben-mesh .* and by odd 1\.0", id="taken-name"),
        pytest.param(offer("odd"), "no-such-package>=3", "no-such-package>=3: install it", id="not-installed"),
        pytest.param(offer("odd"), "numpy<1", r"numpy<1 \(there is 2", id="another-version"),
        pytest.param(offer("Odd"), "leben-mesh", "is no name", id="bad-name"),
        pytest.param("[console_scripts]\nodd = some:main\n", "leben-mesh", "offers no DApp", id="offers-nothing"),
    ],
)
def test_what_cannot_be_served_is_refused_and_not_unpacked(tmp_path: Path, offers: str, needs: str, says: str) -> None:
    settings = Settings(data=tmp_path / "data")
    with pytest.raises((StartError, UnknownDApp), match=says):
        wheels.unpack(settings, wheel(tmp_path, "odd", "1.0", offers, needs))
    assert not settings.packages.exists()


def test_a_name_that_another_unpacked_package_offers_is_taken_too(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path / "data")
    wheels.unpack(settings, wheel(tmp_path, "first", "1.0", offer("same")))
    with pytest.raises(StartError, match=r"same is offered by first 1\.0 and by second 1\.0"):
        wheels.unpack(settings, wheel(tmp_path, "second", "1.0", offer("same")))


def test_what_is_no_wheel_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a-1.0-py3-none-any.whl").write_text("no zip")
    with pytest.raises(UnknownDApp, match="is no wheel"):
        wheels.unpack(Settings(data=tmp_path / "data"), tmp_path / "a-1.0-py3-none-any.whl")
