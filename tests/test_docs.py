"""The documentation is true: code in it runs, and nothing that a user meets is missing from it."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dapps
from channels import errors
from channels.payer import Wallet
from channels.redis_store import keys
from dapps import IntakeRefused
from dapps.packages import registry
from serving.cli.lazy import Group
from serving.cli.main import COMMANDS
from serving.config.settings import Settings
from serving.control.openapi import document
from serving.device.torch_runner import TorchRunner
from serving.errors import CallError
from serving.protocol.refusals import STATUS, describe
from tests import api_page
from tests.conftest import RunningMesh

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def block(name: str, page: str = "README.md") -> str:
    match = re.search(rf"<!-- {name} -->\n```python\n(.*?)```", (ROOT / page).read_text(), re.S)
    assert match, f"{page} has no block {name}"
    return match[1]


def test_the_readme_client_pays(mesh: RunningMesh, tmp_path: Path) -> None:
    program = block("client")
    assert len([line for line in program.splitlines() if line.strip()]) <= 12
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    address = subprocess.run(
        ["leben", "wallet", "new", "payer.key"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    mesh.leben("wallet", "fund", address, "1000000")
    (tmp_path / "client.py").write_text(program.replace("http://127.0.0.1:8700", mesh.url))
    done = subprocess.run([sys.executable, "client.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert re.search(r"charged [1-9]\d* 0x[0-9a-f]{64}", done.stdout), done.stdout


CHECK = """
from channels.payer import receipt
assert wallet.spending.today("chdr") == wallet.spending.today() == receipt(answer).receipt.amount > 0
"""


def test_the_client_of_the_payers_page_pays_within_its_budget(mesh: RunningMesh, tmp_path: Path) -> None:
    wallet = Wallet.from_file(tmp_path / "payer.key")
    mesh.leben("wallet", "fund", wallet.address, "2000000")
    (tmp_path / "heart.wav").write_bytes(registry.load("chdr").sample().data)
    program = block("budget", "docs/pay.md").replace("http://127.0.0.1:8700", mesh.url)
    (tmp_path / "client.py").write_text(program + CHECK)
    done = subprocess.run([sys.executable, "client.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_the_readme_dapp_runs() -> None:
    program = block("dapp")
    assert len([line for line in program.splitlines() if line.strip()]) <= 12
    scope: dict[str, object] = {"__name__": "readme"}
    exec(compile(program, "README.md", "exec"), scope)  # noqa: S102 - our own README

    async def run() -> None:
        dapp = scope["Brightness"]()  # type: ignore[operator]
        runner = TorchRunner(dapp)
        await runner.start()
        out = await runner.run({"IMAGE": dapp.example()["IMAGE"] + 7})
        runner.close()
        assert out["MEAN"].tolist() == [[7.0]]

    asyncio.run(run())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_files_named_in_the_pages_exist(page: Path) -> None:
    text = page.read_text()
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (page.parent / link).exists(), link
    for name in re.findall(r"`((?:serving|channels|dapps|tests|docs)/[\w./]+)`", text):
        assert (ROOT / name).exists(), name


def test_every_setting_has_its_row_with_its_default() -> None:
    text = (ROOT / "docs/operate.md").read_text()
    for name, field in Settings.model_fields.items():
        row = re.search(rf"\| [^|]*`LEBEN_{name.upper()}`[^|]* \| (.*?) \|", text)
        assert row, name
        if isinstance(field.default, int | float):
            assert float(row[1].replace(" ", "")) == float(field.default), name


def test_every_command_has_its_row() -> None:
    text = (ROOT / "docs/operate.md").read_text()
    names = []
    for name, entry in COMMANDS.items():
        names += (
            [f"leben {name} {inner}" for inner in entry.commands] if isinstance(entry, Group) else [f"leben {name}"]
        )
    assert len(names) >= 9
    for name in names:
        assert f"`{name}`" in text, name


def raised_codes() -> set[tuple[bool, str]]:
    """Every code that the sources raise, and whether x402's prefix stands before it."""
    ours = [
        "CallError",
        "IntakeRefused",
        "JournalError",
        "StaleToken",
        "BrokenBooks",
        "DishonestServer",
        "BudgetExceeded",
        "KeyFileError",
        "AccountRefused",
    ]
    kinds = "|".join([name for name in vars(errors) if name[0].isupper()] + ours)
    raised = re.compile(rf'(?:{kinds})\(\s*(X402 \+ )?f?"([a-z][a-z_0-9]+)"')
    sources = [path for name in ("serving", "channels", "dapps") for path in (ROOT / name).rglob("*.py")]
    ledger = re.compile(r'\brefused\(\s*"([a-z][a-z_0-9]+)"')  # of `ledger_rules.py`, which writes x402's prefix
    codes = {(bool(x402), code) for path in sources for x402, code in raised.findall(path.read_text())}
    return codes | {(True, code) for path in sources for code in ledger.findall(path.read_text())}


def test_every_code_has_its_row() -> None:
    text = (ROOT / "docs/errors.md").read_text()
    codes = raised_codes()
    assert len(codes) > 50
    missing = [code for x402, code in sorted(codes) if f"`{'…_' if x402 else ''}{code}`" not in text
               and f"invalid_batch_settlement_evm_{code}`" not in text]  # fmt: skip
    assert not missing
    assert not [code for code in STATUS if f"`{code}`" not in text]


def test_a_file_that_cannot_be_answered_is_422_by_any_code() -> None:
    """`not_finite` is a record's code and a model's: the caller's mistake was told, and counted, as the model's."""
    table = (ROOT / "docs/errors.md").read_text().partition("## Clinical files (422)")[2].partition("\n## ")[0]
    codes = re.findall(
        r"`([a-z_]+)`", "\n".join(row.split("|")[1] for row in table.splitlines() if row.startswith("|"))
    )
    assert len(codes) > 40 and "not_finite" in codes
    assert {describe(IntakeRefused(code, "why"))[0] for code in codes} == {422}
    assert describe(CallError("not_finite", "why"))[0] == 500


def test_a_refusal_of_the_treasury_is_none_of_the_model() -> None:
    for code in ("store_unavailable", "stale_treasury", "not_ready"):
        assert describe(CallError(code, "why"))[0] == 503
    assert describe(CallError("withdraw_on_chain", "why"))[0] == 409


def test_every_store_key_is_described() -> None:
    text = (ROOT / "docs/one-voucher.md").read_text()
    kinds = {name for name, value in vars(keys).items() if callable(value) and not name.startswith("_")}
    names = kinds - {"bucket", "half"}
    assert len(names) == 10
    assert not [name for name in names if f"`{name}`" not in text]


def test_every_route_is_described() -> None:
    text = (ROOT / "docs/wire.md").read_text()
    sources = [
        (ROOT / f"serving/control/{name}.py").read_text()
        for name in ("application", "account_routes", "catalogue_routes")
    ]
    for path in re.findall(r'"(/[^"]*)": self\.', "".join(sources)):
        named = path.replace("{name}", "{dapp}")
        assert f"`GET {named}`" in text or f"`POST {named}`" in text, path
    page = document("0", "http://mesh", [], True)["paths"]
    for path in re.findall(r'"(/v1[^"]*)": self\.', "".join(sources)):
        assert path in page, path
    for path in re.findall(r'Route\(f"\{prefix\}(/\w+)"', (ROOT / "serving/replica/http.py").read_text()):
        assert f"/v2/models/{{dapp}}{path}`" in text, path


def test_the_page_of_the_dapp_api_is_what_the_docstrings_say() -> None:
    page = (ROOT / "docs/dapp-api.md").read_text()
    assert page == api_page.page(), "write it anew: python -m tests.api_page > docs/dapp-api.md"
    for name in dapps.__all__:
        assert f"### `{name}" in page, name


def test_the_changelog_begins_with_the_version() -> None:
    from importlib.metadata import version

    first = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert first and first[1] == version("leben-mesh")


def test_every_class_that_a_room_exports_is_in_the_glossary() -> None:
    text = (ROOT / "docs/glossary.md").read_text()
    exported = re.compile(r'"([A-Z][A-Za-z0-9]*[a-z][A-Za-z0-9]*)"')
    rooms = [path for top in ("serving", "channels", "dapps") for path in (ROOT / top).glob("*/__init__.py")]
    names = {name for path in rooms for name in exported.findall(path.read_text().partition("__all__")[2])}
    assert len(names) > 60
    assert not [name for name in sorted(names - {"CHDr", "StrokeDr", "Json"}) if f"`{name}`" not in text]
    rows = re.findall(r"^\| (?!word|---)(.+?) \| (.+?) \|$", text, re.M)
    assert len(rows) == len({word for word, _ in rows}) > 80
    assert not [word for word, meaning in rows if not meaning.endswith(".")]
