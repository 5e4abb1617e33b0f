"""`leben dapp new`, `check` and `serve`: a new package holds every rule, and a broken one is reported with its line."""

from __future__ import annotations

import json
import multiprocessing
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from typer.testing import CliRunner

from dapps.packages.source import offers
from serving.cli.dev_server import ServerProcess
from serving.cli.main import app
from serving.config import Settings, mesh_file
from tests.conftest import LEBEN, free_ports

ROOT = Path(__file__).parent.parent.parent


def leben(*words: str) -> Any:
    return CliRunner().invoke(app, ["dapp", *words], env={"COLUMNS": "200"})


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("author")
    done = leben("new", "first-light", "--into", str(folder))
    assert done.exit_code == 0 and "CARD.yaml" in done.output, done.output
    return folder / "first-light"


def changed(package: Path, tmp_path: Path, *edits: tuple[str, str], file: str = "first_light/__init__.py") -> Path:
    """A copy of the package with some of its text replaced."""
    for path in (path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts):
        copy = tmp_path / path.relative_to(package)
        copy.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text()
        for old, new in edits if path == package / file else ():
            assert old in text, old
            text = text.replace(old, new)
        copy.write_text(text)
    return tmp_path


def test_a_new_package_holds_every_rule(package: Path) -> None:
    # Its own tests are run where the guide is followed, in tests/test_write_a_dapp.py.
    done = leben("check", str(package), "--json")
    assert done.exit_code == 0, done.output
    steps = [json.loads(line) for line in done.stdout.splitlines()]
    assert [step["step"] for step in steps][:4] == ["declaration", "card", "start-up", "example"] and len(steps) >= 8
    assert not any("rule" in step or "skipped" in step for step in steps) and steps[-1]["peak_bytes"] > 10 << 20


@pytest.mark.parametrize("name", ["Upper", "class", "torch", "../x", "9lives", ""])
def test_a_name_that_cannot_be_used_makes_nothing(tmp_path: Path, name: str) -> None:
    done = leben("new", name, "--into", str(tmp_path))
    assert done.exit_code == 1 and "name" in done.output and not list(tmp_path.iterdir())


def test_an_existing_folder_is_left_unchanged(package: Path) -> None:
    (package / "CARD.txt").write_text("mine")
    done = leben("new", "first-light", "--into", str(package.parent))
    (package / "CARD.txt").unlink()
    assert done.exit_code == 1 and "exists already" in done.output


@pytest.mark.parametrize(
    ("edits", "rule", "line"),
    [
        pytest.param([("operator=500", "operator=499")], "shares", "operator=499", id="9999-basis-points"),
        pytest.param([("Price(50", "Price(0.5")], "price", "Price(0.5", id="float-price"),
        pytest.param([('"FP32"', '"FLOAT"')], "tensors", '"FLOAT"', id="unknown-datatype"),
        pytest.param([("import io", "import io\nimport nowhere_to_be_found")], "import", "nowhere", id="import"),
        pytest.param([("def load(", "def load(:")], "import", "def load(:", id="syntax"),
        pytest.param(
            [("import io", "import io, os"), ("self.threshold = 128.0", "os.abort()")], "crash", "", id="aborts"
        ),
        pytest.param(
            [("self.threshold = 128.0", "self.hoard = [bytearray(1 << 28) for _ in range(64)]")],
            "memory",
            "self.hoard",
            id="allocates-without-bound",
        ),
    ],
)
def test_a_broken_rule_is_reported_with_its_line(
    package: Path, tmp_path: Path, edits: list[tuple[str, str]], rule: str, line: str
) -> None:
    folder = changed(package, tmp_path, *edits)
    done = leben("check", str(folder), "--json", "--memory", "2048")
    assert done.exit_code == 1, done.output
    failures = [row for row in map(json.loads, done.stdout.splitlines()) if "rule" in row]
    assert [row["rule"] for row in failures] == [rule], failures
    if line:
        file, _, number = failures[0]["place"].rpartition(":")
        assert Path(file).is_relative_to(folder) and line in Path(file).read_text().splitlines()[int(number) - 1]


def test_the_version_is_that_of_the_package(package: Path, tmp_path: Path) -> None:
    edit = ('version = "0.1.0"', 'version = "0.7.0"')
    folder = changed(package, tmp_path / "metadata", edit, file="pyproject.toml")
    script = "import sys, pathlib, dapps.packages as p; print(p.offers(pathlib.Path(sys.argv[1]))[0].load().version)"
    done = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=True)
    assert done.stdout == "0.7.0\n"
    stated = ("    inputs =", '    version = "0.1.1"\n    inputs =')
    output = leben("check", str(changed(package, tmp_path / "class", stated))).output
    assert "version: the version of the class is 0.1.1, that of its package 0.1.0" in output


def test_the_readme_of_a_new_package_installs_it_twice(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = changed(package, tmp_path / "first-light")
    (line,) = re.findall(r"^leben dapp (install .*?) *#", (folder / "README.md").read_text(), re.M)
    monkeypatch.setenv("PIP_NO_BUILD_ISOLATION", "0")  # no test fetches a build system
    data = tmp_path / "data"
    settings = Settings(data=data)

    def install(*words: str) -> Any:
        return leben(*words, "--data", str(data))

    monkeypatch.chdir(folder)
    for _ in range(2):
        done = install(*line.split())
        assert done.exit_code == 0, done.output
    first = mesh_file.read(settings).dapps["first-light"].package
    source = folder / "first_light/__init__.py"
    source.write_text(source.read_text() + "# Another content.\n")
    monkeypatch.chdir(folder / "tests")
    refused = install("install", "..")
    assert refused.exit_code == 1 and "--force" in str(refused.exception)
    assert mesh_file.read(settings).dapps["first-light"].package == first
    assert install("install", "--force", "..").exit_code == 0
    entry = mesh_file.read(settings).dapps["first-light"]
    assert entry.package != first == entry.previous
    assert not list(folder.glob("build")) and not list(folder.glob("*.egg-info"))


def test_a_folder_that_cannot_be_installed_is_refused_before_it_is_built(tmp_path: Path) -> None:
    done = leben("install", str(tmp_path), "--data", str(tmp_path / "data"))
    assert done.exit_code == 1 and "has no pyproject.toml" in str(done.exception)


def test_a_refused_package_is_not_kept(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_BUILD_ISOLATION", "0")
    folder = changed(package, tmp_path / "first-light", ("operator=500", "operator=499"))
    data = tmp_path / "data"
    done = leben("install", "--trusted", str(folder), "--data", str(data))
    assert done.exit_code == 1 and "first-light is not installed" in done.output
    assert not list((Settings(data=data).packages / "first_light").iterdir())


def test_the_shortest_dapps_of_the_docs_hold_every_rule(tmp_path: Path) -> None:
    done = leben("check", str(ROOT / "docs/hello-dapp"))
    assert done.exit_code == 0 and "hello holds every rule\n" in done.output, done.output
    block = re.search(r"<!-- dapp -->\n```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert block
    (tmp_path / "brightness.py").write_text(block[1])
    done = leben("check", str(tmp_path / "brightness.py"))
    assert done.exit_code == 0 and "brightness holds every rule but these, which were left out: card" in done.output


def test_a_licence_that_forbids_selling_refuses_a_price(package: Path, tmp_path: Path) -> None:
    edit = ("non_commercial: false", "non_commercial: true")
    done = leben("check", str(changed(package, tmp_path, edit, file="first_light/CARD.yaml")))
    assert done.exit_code == 1 and "licence: non_commercial is true" in done.output
    (number,) = [
        at
        for at, line in enumerate((tmp_path / "first_light/__init__.py").read_text().splitlines(), 1)
        if line.strip().startswith("price =")
    ]
    assert f"__init__.py:{number}" in done.output


def test_a_built_in_is_checked_by_name_and_an_unknown_name_is_refused(tmp_path: Path) -> None:
    done = leben("check", "chdr")
    assert done.exit_code == 0 and "chdr holds every rule" in done.output, done.output
    done = leben("check", "nobody")
    assert done.exit_code == 1 and "no DApp named 'nobody' is installed" in done.output
    done = leben("check", str(tmp_path))
    assert done.exit_code == 1 and "has no pyproject.toml: make a package with leben dapp new" in done.output


def test_a_single_file_is_an_offer_too(tmp_path: Path) -> None:
    (tmp_path / "hello.py").write_text("from dapps import DApp\nclass Hello(DApp):\n    pass\n")
    (offer,) = offers(tmp_path / "hello.py")
    assert (offer.name, offer.value) == ("hello", "hello:Hello")


@contextmanager
def serving(folder: Path, port: int) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """`leben dapp serve` and its log; ends it by Ctrl-C and fails if it, or the server that it started, stays."""
    log = folder / "log"
    with log.open("w") as file:
        words = [LEBEN, "dapp", "serve", str(folder), "--port", str(port)]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=file, text=True)
    assert process.stdout is not None
    try:
        yield process, log
        servers = psutil.Process(process.pid).children()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0, log.read_text()
        assert not psutil.wait_procs(servers, timeout=10)[1]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_serve_answers_free_calls_and_restarts_after_a_change(package: Path, tmp_path: Path) -> None:
    folder, port = changed(package, tmp_path), free_ports()
    source = folder / "first_light/__init__.py"
    picture = offers(folder)[0].load().sample().data
    with serving(folder, port) as (process, log):
        assert process.stdout is not None
        url = f"http://127.0.0.1:{port}/v2/models/first-light"
        assert process.stdout.readline().startswith(f"ready {url} "), log.read_text()
        before = httpx.post(f"{url}/diagnose", content=picture, timeout=30)
        assert before.status_code == 200 and "payment-response" not in before.headers
        source.write_text(source.read_text().replace("The picture is {shade}.", "It is {shade}!"))
        assert process.stdout.readline().startswith(f"ready {url} "), log.read_text()
        after = httpx.post(f"{url}/diagnose", content=picture, timeout=30)
        assert before.json()["summary"].startswith("The picture is") and after.json()["summary"].startswith("It is")


def test_serve_ends_while_it_restarts(package: Path, tmp_path: Path) -> None:
    folder = changed(package, tmp_path)
    with serving(folder, free_ports()) as (process, log):
        assert process.stdout is not None and process.stdout.readline().startswith("ready ")
        (folder / "pyproject.toml").touch()
        while "restarting" not in log.read_text():
            time.sleep(0.01)


def test_a_server_whose_start_is_interrupted_is_ended(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = SpawnProcess.start

    def interrupted(process: SpawnProcess) -> None:
        started(process)
        raise KeyboardInterrupt

    monkeypatch.setattr(SpawnProcess, "start", interrupted)
    server = ServerProcess(offers(package)[0], free_ports())
    before = set(multiprocessing.active_children())
    with pytest.raises(KeyboardInterrupt):
        server.start()
    (child,) = set(multiprocessing.active_children()) - before
    server.stop()
    assert not child.is_alive()
