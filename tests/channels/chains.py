"""Worlds whose ledger is a chain: py-evm in this process, or a real anvil; the same contracts, keys and money."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from eth_tester.exceptions import TransactionFailed
from web3 import EthereumTesterProvider, Web3

from channels.evm.chain import Chain
from channels.evm.chain_file import ChainFile
from channels.evm.configs import Configs
from channels.evm.deploy import init, mint
from channels.evm.ledger import EvmLedger
from channels.evm.payer import ChainPayer
from channels.evm.sender import Patience, Sender
from channels.journal.journal import Journal
from channels.protocol.signer import Signer
from tests.anvil import Anvil
from tests.channels.conftest import MESH, PAYER, RECEIVER, World
from tests.contracts.conftest import CHAIN, SPLIT, TOKEN, fresh

RECEIVER_KEY = Signer(bytes([5] * 32))
STRANGER = Signer(bytes([9] * 32))
QUICK = Patience(replace_s=1.0, give_up_s=20.0, poll_s=0.01)
ETHER = 10**18


class Tester(EthereumTesterProvider):
    """py-evm's provider, answering refusals and its chain's id as a node does."""

    def make_request(self, method: Any, params: Any) -> Any:
        if method == "eth_chainId":
            return {"jsonrpc": "2.0", "id": 1, "result": CHAIN}
        try:
            return super().make_request(method, params)
        except TransactionFailed as error:
            reason = error.args[0]
            raw = reason if isinstance(reason, bytes) else str(reason).removeprefix("execution reverted: ")
            data = raw if isinstance(raw, bytes) else ast.literal_eval(raw) if raw.startswith("b'") else b""
            message = {"code": 3, "message": "execution reverted", "data": "0x" + data.hex()}
            return {"jsonrpc": "2.0", "id": 1, "error": message}


class TesterHost:
    def __init__(self) -> None:
        self.chain = fresh()
        self.provider: Any = Tester(self.chain.tester)
        web3 = Web3(self.provider)
        genesis = web3.to_hex(web3.eth.get_block(0)["hash"])
        self.facts = ChainFile(CHAIN, genesis, TOKEN, "Leben Dev Dollar", "1", 6, SPLIT)
        for signer in (RECEIVER_KEY, PAYER, STRANGER, MESH):
            web3.eth.send_transaction({"from": web3.eth.accounts[0], "to": signer.address, "value": ETHER})

    def snapshot(self) -> Any:
        return self.chain.tester.take_snapshot()

    def revert(self, mark: Any) -> None:
        self.chain.tester.revert_to_snapshot(mark)

    def travel(self, to_s: int) -> None:
        self.chain.tester.time_travel(to_s)
        self.chain.tester.mine_block()


class AnvilHost:
    def __init__(self) -> None:
        self.anvil = Anvil()
        self.provider: Any = self.anvil.provider
        self.facts = init(self.provider, RECEIVER_KEY)
        for signer in (RECEIVER_KEY, PAYER, STRANGER, MESH):
            self.anvil.ask("anvil_setBalance", signer.address, hex(ETHER))

    def snapshot(self) -> Any:
        return self.anvil.ask("evm_snapshot")

    def revert(self, mark: Any) -> None:
        assert self.anvil.ask("evm_revert", mark)

    def travel(self, to_s: int) -> None:
        self.anvil.ask("evm_setNextBlockTimestamp", to_s)
        self.anvil.ask("evm_mine")

    def close(self) -> None:
        self.anvil.close()


class ChainClock:
    """The chain's own time; setting it makes a block."""

    def __init__(self, host: Any) -> None:
        self._host, self._web3 = host, Web3(host.provider)

    def __call__(self) -> float:
        return self.now_s

    @property
    def now_s(self) -> float:
        return float(self._web3.eth.get_block("latest")["timestamp"])

    @now_s.setter
    def now_s(self, to_s: float) -> None:
        self._host.travel(int(to_s))


@dataclass
class EvmWorld(World):
    host: Any = None
    facts: ChainFile | None = None

    def __post_init__(self) -> None:
        self.clock = ChainClock(self.host)
        self.facts = self.facts or self.host.facts
        self.journal = Journal.open(self.journal_url)
        self.token = self.journal.acquire("test")
        self.charged, self.seq, self.stream, self.calls = {}, {}, 0, 0
        self.chain = Chain(self.host.provider, self.facts)
        self.chain.check()
        self.chain_id = self.facts.chain_id
        self.sender = Sender(self.chain, RECEIVER_KEY, QUICK)
        self.ledger: Any = self.opened()

    def opened(self) -> EvmLedger:
        """The ledger as a treasury that starts now opens it."""

        def lookup(name: str) -> Any:
            copy = self.journal.channel(name)
            return copy.config if copy else None

        configs = Configs(self.chain_id, lookup, [copy.config for copy in self.journal.channels()])
        return EvmLedger(self.chain, self.sender, configs, self.clock, poll_s=0)

    def changed(self, **facts: Any) -> EvmWorld:
        """The same world under other facts of its chain."""
        return EvmWorld(host=self.host, facts=replace(self.facts, **facts))

    def close(self) -> None:
        self.journal.close()

    def fund(self, address: str, amount: int) -> None:
        mint(self.chain, self.sender, address, amount)

    def holdings(self) -> dict[str, int]:
        contracts = (self.chain.escrow.address, self.chain.split.address)
        held = {who: self.ledger.wallet(who) for who in (PAYER.address, RECEIVER, *contracts)}
        return held | {"all": self.chain.read(self.chain.token.functions.totalSupply())}

    def claimed(self) -> int:
        totals = self.chain.read(self.chain.escrow.functions.receivers(RECEIVER, self.facts.token))
        return totals[0] - self.ledger.wallet(self.chain.split.address)

    def verify(self) -> None:
        """The contracts hold what they owe, exactly."""
        see = self.chain.escrow.functions
        claimed, settled = self.chain.read(see.receivers(RECEIVER, self.facts.token))
        left = sum(state.left for name in self.ledger.configs if (state := self.ledger.channel(name)) is not None)
        assert self.ledger.wallet(self.chain.escrow.address) == left + claimed - settled

    def payer(self, signer: Signer = PAYER) -> ChainPayer:
        return ChainPayer(self.chain, signer, QUICK)

    def start_withdraw(self, amount: int, nonce: int, signer: Signer = PAYER, salt: int = 0) -> None:
        self.payer(signer).initiate(self.config(salt), amount)

    def finish_withdraw(self, nonce: int, salt: int = 0) -> None:
        self.payer().finalize(self.config(salt))


@contextmanager
def on(host: Any, **facts: Any) -> Iterator[EvmWorld]:
    """A world on a host, which is as before afterwards."""
    mark = host.snapshot()
    world = EvmWorld(host=host, facts=replace(host.facts, **facts))
    try:
        yield world
    finally:
        world.close()
        host.revert(mark)
