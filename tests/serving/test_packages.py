"""A wheel is unpacked beside its other versions, or refused in one sentence before any of it is."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from dapps.packages import UnknownDApp
from serving.config import Settings
from serving.errors import StartError
from serving.mesh import wheels
from tests.serving.test_cli import leben

WHEEL = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def members(name: str, version: str, offers: str, requires: str = "leben-mesh") -> dict[str, str]:
    """The files of a wheel of one module, but for its RECORD."""
    module = name.replace("-", "_")
    information = f"{module}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Dist: {requires}\n"
    return {
        f"{module}.py": f"VERSION = {version!r}\n",
        f"{information}/METADATA": metadata,
        f"{information}/WHEEL": WHEEL,
        f"{information}/entry_points.txt": offers,
    }


def record(files: Mapping[str, str]) -> str:
    """The RECORD of files, as a build writes it."""
    rows = []
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        rows.append(f"{path},sha256={digest},{len(text.encode())}\n")
    return "".join(rows)


def pack(file: Path, files: Mapping[str, str], name: str = "odd", version: str = "1.0") -> Path:
    """Writes a wheel with its RECORD, unless `files` has one."""
    place = f"{name.replace('-', '_')}-{version}.dist-info/RECORD"
    with zipfile.ZipFile(file, "w") as archive:
        for path, text in {place: f"{record(files)}{place},,\n", **files}.items():
            archive.writestr(path, text)
    return file


def wheel(folder: Path, name: str, version: str, offers: str, requires: str = "leben-mesh") -> Path:
    file = folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    return pack(file, members(name, version, offers, requires), name, version)


def offer(name: str) -> str:
    return f"[leben.dapps]\n{name} = some:Thing\n"


def test_versions_lie_side_by_side_and_the_same_wheel_is_unpacked_once(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path / "data")
    built = {version: wheel(tmp_path, "side-by", version, offer("side")) for version in ("1.0", "2.0")}
    places = []
    for version in ("1.0", "2.0", "1.0"):
        place, (dapp,) = wheels.unpack(settings, built[version])
        assert dapp.name == "side"
        assert (settings.packages / place / "side_by.py").read_text() == f"VERSION = {version!r}\n"
        places.append(place)
    assert places[0] == places[2] != places[1] and len(list((settings.packages / "side_by").iterdir())) == 2
    assert not settings.packages.is_relative_to(settings.home), "an isolated DApp sees its package, never the data"


def test_other_content_under_one_version_is_refused_without_force(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path / "data")
    files = members("odd", "1.0", offer("odd"))
    file = tmp_path / "odd-1.0-py3-none-any.whl"
    first, _ = wheels.unpack(settings, pack(file, files))
    changed = pack(file, files | {"odd.py": "VERSION = 'another'\n"})
    with pytest.raises(StartError, match=r"odd 1\.0 is installed already with other content \(1\.0-.*--force"):
        wheels.unpack(settings, changed)
    assert [folder.name for folder in (settings.packages / "odd").iterdir()] == [Path(first).name]
    second, _ = wheels.unpack(settings, changed, force=True)
    assert second != first and wheels.unpack(settings, changed)[0] == second


def test_one_source_built_twice_is_one_package(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path / "data")
    files = members("odd", "1.0", offer("odd"))
    file = pack(tmp_path / "odd-1.0-py3-none-any.whl", files)
    first, _ = wheels.unpack(settings, file)
    before = file.read_bytes()
    pack(file, dict(reversed(files.items())))
    assert file.read_bytes() != before and wheels.unpack(settings, file)[0] == first


def test_a_package_that_an_earlier_mesh_unpacked_is_not_unpacked_again(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path / "data")
    file = wheel(tmp_path, "odd", "1.0", offer("odd"))
    earlier = f"odd/1.0-{hashlib.sha256(file.read_bytes()).hexdigest()[:12]}"
    (settings.packages / earlier).mkdir(parents=True)
    assert wheels.unpack(settings, file)[0] == earlier


@pytest.mark.parametrize(
    ("offers", "requires", "says"),
    [
        pytest.param(offer("chdr"), "leben-mesh", r"chdr is offered by leben-mesh .* and by odd 1\.0", id="taken-name"),
        pytest.param(offer("odd"), "no-such-package>=3", "no-such-package>=3: install it", id="not-installed"),
        pytest.param(offer("odd"), "numpy<1", r"numpy<1 \(there is 2", id="another-version"),
        pytest.param(offer("odd"), "numpy >>> 1", "numpy >>> 1", id="no-requirement"),
        pytest.param(offer("Odd"), "leben-mesh", "is no name", id="bad-name"),
        pytest.param("[leben.dapps]\nodd = some thing\n", "leben-mesh", "is no module:Class", id="no-class"),
        pytest.param("[console_scripts]\nodd = some:main\n", "leben-mesh", "offers no DApp", id="offers-nothing"),
    ],
)
def test_a_wheel_that_cannot_be_served_is_refused_and_not_unpacked(
    tmp_path: Path, offers: str, requires: str, says: str
) -> None:
    settings = Settings(data=tmp_path / "data")
    with pytest.raises((StartError, UnknownDApp), match=says):
        wheels.unpack(settings, wheel(tmp_path, "odd", "1.0", offers, requires))
    assert not settings.packages.exists()


def test_a_name_that_another_unpacked_package_offers_is_taken_too(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path / "data")
    wheels.unpack(settings, wheel(tmp_path, "first", "1.0", offer("same")))
    with pytest.raises(StartError, match=r"same is offered by first 1\.0 and by second 1\.0"):
        wheels.unpack(settings, wheel(tmp_path, "second", "1.0", offer("same")))


ODD = members("odd", "1.0", offer("odd"))
INFORMATION = "odd-1.0.dist-info"
MALFORMED = {
    "no-metadata": ({path: text for path, text in ODD.items() if "METADATA" not in path}, "has no METADATA"),
    "record-alone": ({"odd.py": ""}, "has no METADATA"),
    "two-packages": (ODD | {"even-1.0.dist-info/METADATA": "Name: even\n"}, "has 2 folders"),
    "no-equals-sign": (ODD | {f"{INFORMATION}/entry_points.txt": "[leben.dapps]\nodd\n"}, "entry_points.txt cannot be"),
    "no-wheel-version": (ODD | {f"{INFORMATION}/WHEEL": ""}, "cannot be unpacked"),
    "another-name": (
        {path.replace("odd-1.0", "even-1.0"): text for path, text in ODD.items()},
        "cannot be unpacked|has 2 folders",
    ),
    "not-as-recorded": (
        ODD | {f"{INFORMATION}/RECORD": f"{record(ODD | {'odd.py': 'other'})}{INFORMATION}/RECORD,,\n"},
        "didn't match RECORD",
    ),
    "unrecorded": (ODD | {f"{INFORMATION}/RECORD": ""}, "not mentioned in RECORD"),
    "outside": (ODD | {"../../odd.py": ""}, "outside of the target"),
}


@pytest.mark.parametrize("fault", MALFORMED)
def test_a_malformed_wheel_is_refused_in_one_sentence_and_leaves_nothing(tmp_path: Path, fault: str) -> None:
    files, says = MALFORMED[fault]
    settings, file = Settings(data=tmp_path / "data"), pack(tmp_path / "odd-1.0-py3-none-any.whl", files)
    with pytest.raises((StartError, UnknownDApp), match=says) as refused:
        wheels.unpack(settings, file)
    assert "\n" not in str(refused.value)
    assert list(settings.packages.rglob("*.py")) == list(tmp_path.rglob("odd.py")) == []


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("a-1.0-py3-none-any.whl", "is no wheel"),
        ("odd.whl", "no file name of a wheel"),
        ("odd-1.0-cp27-cp27m-win32.whl", "is not built for this Python"),
    ],
)
def test_a_file_that_is_no_wheel_for_this_python_is_refused(tmp_path: Path, name: str, says: str) -> None:
    file = tmp_path / name
    if name.startswith("a"):
        file.write_text("no zip")
    else:
        pack(file, ODD)
    with pytest.raises((StartError, UnknownDApp), match=says):
        wheels.unpack(Settings(data=tmp_path / "data"), file)


def test_the_command_says_so_in_one_line(tmp_path: Path) -> None:
    file = pack(tmp_path / "odd-1.0-py3-none-any.whl", MALFORMED["no-metadata"][0])
    done = leben("dapp", "install", str(file), "--data", str(tmp_path / "data"))
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("leben: ") and "has no METADATA" in done.stderr and "Traceback" not in done.stderr
