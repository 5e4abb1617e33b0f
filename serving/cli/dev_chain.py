"""Runs a private chain for demo and tests: one anvil process on loopback, with its state in the data folder.

Whoever reaches its port can do anything on it, so it holds no real money. Its state is written every second: a killed
demo finds its channels again.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

from web3 import HTTPProvider

from channels.evm.chain_file import ChainFile
from channels.evm.deploy import http, init
from serving.cluster import data_folder, processes
from serving.config import Settings
from serving.errors import StartError

START_TIMEOUT_S = 30.0
CHAIN_ID = 31337
PACKAGES = Path(__file__).parents[2] / ".anvil" / "node_modules"
NO_ANVIL = "anvil is not installed: make anvil fetches it (needs Node); without --ledger evm the ledger is SQLite"


def find_anvil() -> str | None:
    """The path of anvil's binary: on the PATH, or where `make anvil` puts it."""
    native = sorted(PACKAGES.glob("@foundry-rs/anvil-*/bin/anvil"))
    return shutil.which("anvil") or (str(native[0]) if native else None)


class DevChain:
    """A running node.

    Args:
        port: of loopback.
        state: file of its state; None: kept in memory.
        options: more of anvil's options.

    Raises:
        StartError: anvil is not installed, or does not start.
    """

    def __init__(self, port: int, state: Path | None = None, *options: str) -> None:
        program = find_anvil()
        if program is None:
            raise StartError(NO_ANVIL)
        command = [program, "--host", "127.0.0.1", "--port", str(port), "--chain-id", str(CHAIN_ID), "--silent"]
        if state is not None:
            # With its blocks, not balances alone: channels are found in events.
            command += ["--state", str(state), "--state-interval", "1", "--preserve-historical-states"]
        # A session of its own: Ctrl-C ends the mesh in order, not the chain under it.
        self._process = subprocess.Popen(  # noqa: S603 - a packaged program and our own words
            [*command, *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=processes.end_with_parent,
        )
        self.url = f"http://127.0.0.1:{port}"
        self.provider: HTTPProvider = http(self.url)
        until = time.monotonic() + START_TIMEOUT_S
        while not self.provider.is_connected():
            if self._process.poll() is not None or time.monotonic() > until:
                self.stop()
                raise StartError("anvil does not start: is its port taken, or its state of another version?")
            time.sleep(0.05)

    def stop(self) -> None:
        """Ends the process, which writes its state first."""
        self._process.terminate()
        try:
            self._process.wait(timeout=START_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def started(settings: Settings) -> DevChain:
    """Starts the data folder's chain; the first start deploys the contracts and writes `chain.json`.

    Raises:
        StartError: it does not start.
        ChannelError: the chain is not the one of `chain.json`.
    """
    data_folder.Lock(settings.home).release()  # refuses if a demo still runs on this chain
    chain = DevChain(settings.port + 5, settings.home / "chain-state.json")
    try:
        if not settings.chain_file.exists():
            init(chain.provider, data_folder.signers(settings)["receiver"]).write(settings.chain_file)
        ChainFile.read(settings.chain_file)
    except BaseException:
        chain.stop()
        raise
    return chain
