"""`docs/write-a-dapp.md` as it stands, on a running mesh: from nothing to a paid call, updated while calls are paid.

The mesh runs in an environment of its own, in which nothing is installed but the hello DApp's wheel beside the mesh:
what is found there was found by its entry point.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import pytest

from channels.payer import ChannelAuth, receipt
from dapps.conformance import scaffold
from serving.config.mesh_file import FILE
from tests.conftest import RunningMesh, free_ports

DOCS = Path(__file__).parent.parent / "docs"
GUIDE = (DOCS / "write-a-dapp.md").read_text()
SCRIPT = "#!{python}\nfrom serving.cli.main import main\nmain()\n"


@pytest.fixture(scope="module")
def hello_mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    """A mesh in a clean environment, with the hello DApp's wheel and nothing else installed in it."""
    folder = tmp_path_factory.mktemp("clean")
    binaries = folder / "venv" / "bin"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True, timeout=60)
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    # The mesh itself is not built anew; hello is found here and nowhere else.
    (site / "mesh.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    (binaries / "leben").write_text(SCRIPT.format(python=binaries / "python"))
    (binaries / "leben").chmod(0o755)
    pip = [str(binaries / "python"), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(_copy(folder))]
    subprocess.run([*pip, *build], check=True, timeout=120, capture_output=True)
    (wheel,) = folder.glob("hello_dapp-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--no-index", str(wheel)], check=True, timeout=60)
    assert (site / "hello" / "CARD.yaml").exists()
    environment = {"LEBEN_TRUSTED_DAPPS": "hello"}
    with RunningMesh(folder / "data", free_ports(), 0, environment, program=str(binaries / "leben")) as running:
        yield running


def _copy(folder: Path) -> Path:
    copy = folder / "hello"
    shutil.copytree(DOCS / "hello-dapp", copy, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    return copy


@dataclass
class Reader:
    """Somebody who reads the guide and types what it says."""

    mesh: RunningMesh
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        binaries = Path(self.mesh.program).parent
        path = {"PATH": f"{binaries}:{Path(sys.executable).parent}:{os.environ['PATH']}"}
        # What is at hand builds the wheel: no test fetches a build system.
        extra = {"LEBEN_DATA": str(self.mesh.data), "PIP_NO_BUILD_ISOLATION": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
        self.environment = variables | path | extra | {"LEBEN_TRUSTED_DAPPS": "hello"}

    def run(self, *words: str, fails: bool = False) -> str:
        done = subprocess.run(words, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=240)
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        return done.stdout + done.stderr

    def does(self, name: str) -> str:
        block = re.search(rf"<!-- run: {name} -->\n```sh\n(.*?)```", GUIDE, re.S)
        assert block, name
        return self.run("bash", "-ec", block[1])


class Callers:
    """Two payers who call without a pause until they are stopped, and what each got."""

    def __init__(self, mesh: RunningMesh, path: str, body: bytes) -> None:
        self._url, self._body, self._stop = f"{mesh.url}{path}", body, threading.Event()
        self.wallets = [mesh.payer(), mesh.payer()]
        self.auths = [ChannelAuth(wallet) for wallet in self.wallets]
        self.answers: list[list[httpx.Response]] = [[], []]
        self._threads = [threading.Thread(target=self._call, args=(at,)) for at in range(2)]

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=60)

    def _call(self, at: int) -> None:
        with httpx.Client(auth=self.auths[at], timeout=60) as client:
            while not self._stop.is_set():
                self.answers[at].append(client.post(self._url, content=self._body))


def test_the_hello_dapp_has_fifteen_lines_and_is_found_served_called_and_paid(hello_mesh: RunningMesh) -> None:
    files = [(DOCS / "hello-dapp" / name).read_text().splitlines() for name in ("hello/__init__.py", "pyproject.toml")]
    assert sum(len([line for line in lines if line.strip()]) for lines in files) <= 15
    reader = Reader(hello_mesh, hello_mesh.data.parent)
    assert "hello" in reader.run("leben", "dapp", "list")
    row = {"name": "X", "datatype": "FP32", "shape": [2, 1], "data": [3, 4.5]}
    with httpx.Client(auth=ChannelAuth(hello_mesh.payer()), timeout=60) as client:
        answer = client.post(f"{hello_mesh.url}/v2/models/hello/infer", json={"inputs": [row]})
    assert answer.status_code == 200 and answer.json()["outputs"][0]["data"] == [6.0, 9.0], answer.text
    paid = receipt(answer).receipt
    assert (paid.amount, paid.dapp, sum(share.amount for share in paid.shares)) == (200, "hello", 200)


def test_the_guide_goes_from_nothing_to_a_paid_call_and_to_the_next_version(
    hello_mesh: RunningMesh, tmp_path: Path
) -> None:
    reader = Reader(hello_mesh, tmp_path)
    output = reader.does("write")
    assert "first-light holds every rule" in output and "2 passed" in output
    reader.folder = tmp_path / "first-light"
    assert f"first-light 0.1.0 is served at {hello_mesh.url}" in reader.does("install")
    block = re.search(r"<!-- call -->\n```python\n(.*?)```", GUIDE, re.S)
    assert block
    (reader.folder / "call.py").write_text(block[1].replace("http://127.0.0.1:8700", hello_mesh.url))
    answer = reader.run("python", "call.py")
    assert re.search(r"The picture is \w+\. charged 50 \{'knowledge': 25, 'data': 10,", answer), answer

    sys.path.insert(0, str(reader.folder))
    try:
        from first_light import FirstLight  # type: ignore[import-not-found] # the guide has made it
    finally:
        sys.path.pop(0)
        sys.modules.pop("first_light", None)  # later tests of this process make packages of that name
    picture = FirstLight().sample().data
    with Callers(hello_mesh, "/v2/models/first-light/diagnose", picture) as callers:
        while not all(callers.answers):
            threading.Event().wait(0.05)
        # All but the last line: a DApp that is off answers nobody, and that is no lost call.
        update = re.search(r"<!-- run: update -->\n```sh\n(.*?)leben dapp disable", GUIDE, re.S)
        assert update
        output = reader.run("bash", "-ec", update[1])
    assert output.index("first-light 0.2.0 is served") < output.index("first-light 0.1.0 is served")
    for wallet, auth, answers in zip(callers.wallets, callers.auths, callers.answers, strict=True):
        assert {answer.status_code for answer in answers} == {200}, "no call is lost over an update"
        receipts = [receipt(answer).receipt for answer in answers]
        versions = [row.version for row in receipts]
        assert {"0.1.0", "0.2.0"} == set(versions) and versions[0] == versions[-1] == "0.1.0", versions
        assert [row.seq for row in receipts] == list(range(1, len(receipts) + 1))
        assert (
            int(hello_mesh.channel(wallet, auth)["charged"])
            == sum(row.amount for row in receipts)
            == 50 * len(receipts)
        )

    # The operator's own words stay in the file, and a line that cannot be is output by its number.
    file = hello_mesh.data / FILE
    text = file.read_text()
    assert text.startswith("# Which DApps this mesh serves") and "previous: first_light/0.2.0-" in text
    file.write_text(text.replace("  first-light:", "  # Ours.\n  first-light:"))

    # Without --trusted the same wheel answers from a process of its own.
    assert "first-light 0.2.0 is served" in reader.run("bash", "-ec", "leben dapp install .")
    with httpx.Client(auth=ChannelAuth(hello_mesh.payer()), timeout=60) as client:
        answer = client.post(f"{hello_mesh.url}/v2/models/first-light/diagnose", content=picture)
    assert answer.status_code == 200 and receipt(answer).receipt.version == "0.2.0", answer.text
    walled = [process for process in psutil.process_iter(["cmdline"]) if _walled(process, hello_mesh.data)]
    assert walled, "its code runs behind the walls"
    page = httpx.get(f"{hello_mesh.url}/v1/dapps/first-light", timeout=30).json()
    assert page["samples"] == ["sample"], "its child has ended since the catalogue was made"
    assert "first-light" in reader.run("leben", "dapp", "list")
    reader.run("leben", "dapp", "example", "first-light", "--out", str(tmp_path / "example.json"))
    assert base64.b64decode(json.loads((tmp_path / "example.json").read_bytes())["file"])
    assert "isolates first-light" in reader.run("leben", "dapp", "evaluate", "first-light", "--data", ".", fails=True)

    assert "first-light is off" in reader.run("leben", "dapp", "disable", "first-light")
    assert httpx.get(f"{hello_mesh.url}/v2/models/first-light", timeout=30).status_code == 404
    names = [row["name"] for row in httpx.get(f"{hello_mesh.url}/v1/catalogue", timeout=30).json()["dapps"]]
    assert names == ["hello"] and "# Ours." in file.read_text()
    text = file.read_text()
    file.write_text(text.replace("enabled: false", "enabled: perhaps"))
    assert "enabled" in reader.run("leben", "dapp", "enable", "hello", fails=True)
    file.write_text(text)
    hello_mesh.leben("ledger", "verify")


def _walled(process: psutil.Process, data: Path) -> bool:
    words = " ".join(process.info["cmdline"] or [])
    return "sandbox.py" in words and '"first-light"' in words and str(data) in words


def test_what_cannot_be_served_is_refused_and_taken_back(hello_mesh: RunningMesh, tmp_path: Path) -> None:
    reader = Reader(hello_mesh, tmp_path)
    for file in scaffold.make("short-shares", tmp_path / "short-shares"):
        file.write_text(file.read_text().replace("operator=500", "operator=499"))
    reader.run("python", "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), "./short-shares")
    before = (hello_mesh.data / FILE).read_bytes()
    (wheel,) = tmp_path.glob("*.whl")
    output = reader.run("leben", "dapp", "install", "--trusted", str(wheel), fails=True)
    assert "shares: ValueError: shares are non-negative basis points that sum to 10000" in output
    assert (hello_mesh.data / FILE).read_bytes() == before, "what does not start is not asked for at the next start"
    assert httpx.get(f"{hello_mesh.url}/v2/models/hello/ready", timeout=30).status_code == 200
