"""A real node for the tests: anvil of the npm package, fetched by `make anvil` into `.anvil`.

Where it is absent, its tests are skipped with one line; with CI=true that is a failure.
"""

from __future__ import annotations

import os
import subprocess
import time
from typing import Any

import pytest
from web3 import HTTPProvider

from serving.cli.dev_chain import find_anvil
from tests.conftest import free_ports

CHAIN = 31337


def find() -> str:
    """The binary, or a skip."""
    found = find_anvil()
    if not found:
        reason = "no anvil here: make anvil fetches it (needs Node)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


class Anvil:
    """A node on a free port; blocks are made when a transaction comes, unless told otherwise."""

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
