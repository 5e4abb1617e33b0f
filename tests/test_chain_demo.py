"""`leben demo --ledger evm`: a mesh, its payer, its owners and a chain of its own, as anybody runs it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from channels.evm.chain import Chain
from channels.evm.chain_file import ChainFile
from channels.evm.configs import Configs
from channels.evm.ledger import EvmLedger
from channels.evm.sender import Sender
from channels.protocol.signer import Signer
from serving.cli.dev_chain import DevChain
from tests import anvil
from tests.conftest import LEBEN, free_ports
from tests.scheduling import one_at_a_time


@pytest.mark.starts_mesh
def test_the_demo_on_a_chain_adds_up_and_the_chain_still_says_so_after_a_restart(tmp_path: Path) -> None:
    anvil.find()
    data, file, port = tmp_path / "demo", tmp_path / "story.json", free_ports()
    words = ["demo", "--ledger", "evm", "--once", "--json", str(file), "--data", str(data), "--port", str(port)]
    with one_at_a_time("start"):
        done = subprocess.run([LEBEN, *words], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    story = json.loads(file.read_text())
    held = {who: {when: int(amount) for when, amount in both.items()} for who, both in story["balances"].items()}
    claimed = int(story["channel"]["claimed"])
    assert claimed > 0 and story["mesh"]["ledger"] == "evm"
    assert claimed == sum(int(call["charged"]) for call in story["calls"]) == int(story["channel"]["charged"])
    assert claimed == int(story["settlement"]["claimed"])
    assert claimed == sum(int(row["amount"]) for row in story["settlement"]["payouts"])
    assert claimed == held["owners"]["after"] - held["owners"]["before"]
    assert held["payer"]["before"] - held["payer"]["after"] == claimed + held["channel"]["after"]
    assert story["withdrawal"]["transaction"].startswith("0x")

    chain = DevChain(port, data / "chain-state.json")
    try:
        reached = Chain.open(chain.url, ChainFile.read(data / "chain.json"))
        ledger = EvmLedger(reached, Sender(reached, Signer.generate()), Configs(reached.facts.chain_id))
        receiver = Signer.from_file(data / "keys" / "receiver.key").address
        assert ledger.root(story["receipt"]["epoch"], receiver) == story["receipt"]["root"]
        assert sum(part.amount for part in ledger.payouts(story["receipt"]["epoch"], receiver)) == claimed
    finally:
        chain.stop()
