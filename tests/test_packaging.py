"""The wheel holds what it must and nothing else; a payer installs it alone, a mesh with its extras."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAYER = ("channels.errors", "channels.payer", "channels.protocol", "channels.receipts")
"""The rooms that the bare install must be able to import."""
ABSENT = ("alembic", "matplotlib", "numpy", "ray", "redis", "sqlalchemy", "starlette", "torch", "tritonclient", "web3")
BARE_LIMIT_BYTES = 60_000_000


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the sources."""
    tmp_path = tmp_path_factory.mktemp("wheel")
    source = tmp_path / "source"
    for name in ("serving", "channels", "dapps"):
        shutil.copytree(ROOT / name, source / name)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = tmp_path.glob("*.whl")
    return built


def test_the_wheel_has_three_packages_with_their_scripts_weights_and_cards(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"serving", "channels", "dapps"}
    for name in (
        "channels/redis_store/scripts/hold.lua",
        "channels/redis_store/scripts/_head.lua",
        "channels/sql/migrations/env.py",
        "channels/sql/migrations/versions/v0001_as_released.py",
        "channels/evm/contracts/Split.json",
        "channels/evm/contracts/Split.vy",
        "dapps/chdr/weights.safetensors",
        "dapps/strokedr/weights.safetensors",
        "dapps/strokedr/prognosis/weights.safetensors",
        "dapps/chdr/CARD.md",
        "dapps/chdr/CARD.yaml",
        "dapps/py.typed",
        "serving/control/pages/home.html",
        "serving/control/pages/style.css",
        "serving/control/pages/icon.svg",
        "dapps/knowledge/guidelines/stroke-ivt-2026.yaml",
    ):
        assert name in names


def test_paying_and_the_door_need_no_torch_and_no_ray() -> None:
    program = "import channels.payer, serving.replica.http, sys; assert not {'torch', 'ray'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_a_payer_installs_little_and_needs_no_more(wheel: Path, tmp_path: Path) -> None:
    """`pip install leben-mesh` alone: a wallet, its payments and receipts, and the command."""
    place = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", place], check=True, timeout=120)
    python, leben = place / "bin/python", place / "bin/leben"
    install = [python, "-m", "pip", "install", "--quiet", "--no-compile", "--disable-pip-version-check"]
    subprocess.run([*install, "--constraint", ROOT / "constraints.txt", wheel], check=True, timeout=300)

    def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)

    program = f"""
import importlib.metadata, importlib.util, sys
for room in {PAYER}:
    __import__(room)
print([name for name in {ABSENT} if importlib.util.find_spec(name)])
ours = [dist for dist in importlib.metadata.distributions() if dist.metadata["Name"] not in ("pip", "setuptools")]
files = [file.locate() for dist in ours for file in dist.files if file.suffix != ".pyc"]
print(sum(path.stat().st_size for path in files if path.exists()))
"""
    imported = run(python, "-c", program)
    assert imported.returncode == 0, imported.stderr
    present, size = imported.stdout.splitlines()
    assert present == "[]"
    assert int(size) < BARE_LIMIT_BYTES
    assert run(leben, "--help").returncode == 0
    output = run(leben, "wallet", "new", "payer.key")
    assert output.returncode == 0 and re.fullmatch(r"0x[0-9a-fA-F]{40}\n", output.stdout), output.stderr
    for extra, command in (("serve", ("up",)), ("serve", ("dapp", "list")), ("chain", ("chain", "root", "1"))):
        refused = run(leben, *command)
        assert refused.returncode == 2, (command, refused.stdout, refused.stderr)
        text = " ".join((refused.stdout + refused.stderr).split())
        assert f'pip install "leben-mesh[{extra}]"' in text and "Traceback" not in text, text


def test_every_direct_import_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]

    def names(requirements: list[str]) -> set[str]:
        return {re.split(r"[^A-Za-z0-9._-]", line)[0].lower().replace("_", "-") for line in requirements}

    bare = names(project["dependencies"])
    every = bare | names(extras["serve"]) | names(extras["chain"]) | names(extras["train"]) | {"vyper"}
    distributions = packages_distributions()
    undeclared = set()
    for path in (path for top in ("serving", "channels", "dapps") for path in (ROOT / top).rglob("*.py")):
        room = ".".join(path.relative_to(ROOT).with_suffix("").parts[:2])
        declared = bare if room in PAYER else every
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            else:
                modules = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            for top in {module.split(".")[0] for module in modules} - set(sys.stdlib_module_names):
                if top in ("serving", "channels", "dapps"):
                    continue
                names = {name.lower().replace("_", "-") for name in distributions.get(top, [top])}
                if not names & declared:
                    undeclared.add((room, top))
    # The payer's library drives gevent only where the caller's own stock client has brought it.
    assert undeclared <= {("channels.payer", "gevent")}
