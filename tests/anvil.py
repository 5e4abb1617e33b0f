"""Runs a real node for the tests: anvil of the npm package, which `make anvil` fetches into `.anvil`."""

from __future__ import annotations

import subprocess
import time
from typing import Any

import pytest
from web3 import HTTPProvider

from serving.cli.dev_chain import find_anvil
from tests.conftest import free_ports

CHAIN = 31337


def find() -> str:
    """The program's path; skips the test where there is none."""
    program = find_anvil()
    if not program:
        pytest.skip("no anvil here: make anvil fetches it (needs Node)")
    return program


class Anvil:
    """A node on a free port; it makes a block for each transaction, unless `options` say otherwise."""

    def __init__(self, *options: str) -> None:
        port = free_ports()
        self.url = f"http://127.0.0.1:{port}"
        words = [find(), "--port", str(port), "--chain-id", str(CHAIN), "--silent", *options]
        self._process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.provider = HTTPProvider(self.url, request_kwargs={"timeout": 10}, exception_retry_configuration=None)
        until = time.monotonic() + 90
        while True:
            try:
                self.ask("eth_chainId")
                return
            except OSError:
                if self._process.poll() is not None or time.monotonic() > until:
                    raise
                time.sleep(0.05)

    def ask(self, method: str, *words: Any) -> Any:
        answer = self.provider.make_request(method, list(words))
        assert "error" not in answer, answer
        return answer.get("result")

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(60)
