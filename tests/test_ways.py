"""The ways of a request and of a voucher through the code, as their pages tell them: every file is named, none is lost.

A call runs through the whole ring in this process, and each function that is entered gives its file.
"""

from __future__ import annotations

import ast
import asyncio
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest

from channels.payer import Wallet
from channels.protocol import Signer
from tests.attacks.ring import open_ring

ROOT = Path(__file__).parent.parent
PAGES = ("docs/one-request.md", "docs/one-voucher.md")
FUNCTION = re.compile(r"`((?:serving|channels|dapps)/[\w/]+\.py)`: ((?:`[\w.]+`(?:, )?)+)")


class Way:
    """Collects the product's files whose functions run while it is open, in every thread started after it was made."""

    def __init__(self) -> None:
        self.files: set[str] = set()
        self._open = False
        threading.setprofile(self._enter)
        sys.setprofile(self._enter)

    @contextmanager
    def open(self) -> Iterator[None]:
        self._open = True
        try:
            yield
        finally:
            self._open = False

    def close(self) -> None:
        threading.setprofile(None)
        sys.setprofile(None)

    def _enter(self, frame: FrameType, event: str, argument: object) -> None:
        if self._open and event == "call":
            path = Path(frame.f_code.co_filename)
            if path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in ("serving", "channels", "dapps"):
                self.files.add(str(path.relative_to(ROOT)))


def walk(tmp_path: Path, store_url: str) -> tuple[set[str], set[str]]:
    """The files of one paid call, and those in which its charge is drained, settled, proved and stated."""
    way = Way()

    async def run() -> tuple[set[str], set[str]]:
        async with open_ring(tmp_path, store_url) as ring:
            wallet = Wallet(Signer.generate())
            ring.ledger.fund(wallet.address, 1_000_000)
            async with ring.client(wallet) as client:
                with way.open():
                    answer = await client.post("/diagnose", content=b"21")
                assert answer.status_code == 200, answer.text
            call, way.files = way.files, set()
            with way.open():
                settled = await ring.treasury.settle()
            assert int(settled["claimed"]) > 0
            return call, way.files

    try:
        return asyncio.run(run())
    finally:
        way.close()


def missing(page: str, files: set[str]) -> list[str]:
    text = (ROOT / page).read_text()
    return sorted(file for file in files if not any(f"`{name}`" in text for name in (file, f"{Path(file).parent}/")))


def test_the_pages_name_every_file_of_the_way(tmp_path: Path, store_url: str) -> None:
    call, settlement = walk(tmp_path, store_url)
    assert len(call) > 20 and len(settlement) > 10
    assert missing("docs/one-request.md", {file for file in call if not file.startswith("channels/")}) == []
    voucher = {file for file in call | settlement if file.startswith("channels/")}
    assert missing("docs/one-voucher.md", voucher) == []


@pytest.mark.parametrize("page", PAGES)
def test_every_function_that_a_page_names_is_there(page: str) -> None:
    named = FUNCTION.findall((ROOT / page).read_text())
    assert len(named) > 5
    for path, functions in named:
        tree = ast.parse((ROOT / path).read_text())
        there = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        for kind in (node for node in tree.body if isinstance(node, ast.ClassDef)):
            there |= {kind.name} | {f"{kind.name}.{node.name}" for node in kind.body if hasattr(node, "name")}
        for function in re.findall(r"`([\w.]+)`", functions):
            assert function in there, f"{page}: {path} has no {function}"
