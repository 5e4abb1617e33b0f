"""A chain in this process (py-evm): our contracts at x402's addresses, a token, and accounts that sign."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from eth_tester import EthereumTester, PyEVMBackend
from eth_tester.exceptions import TransactionFailed
from web3 import EthereumTesterProvider, Web3

from channels.evm.contracts.build import built
from channels.protocol.digests import (
    COLLECTOR,
    SETTLEMENT,
    Domain,
    channel_id,
    claim_digest,
    deposit_digest,
    deposit_nonce,
    voucher_digest,
)
from channels.protocol.keccak import keccak
from channels.protocol.signer import Signer
from channels.protocol.x402 import ChannelConfig

CHAIN = 31337
TOKEN = "0xDe70000000000000000000000000000000000001"
SPLIT = "0x5711700000000000000000000000000000000001"
PAYER, RECEIVER, AUTHORIZER, OWNER = (Signer(bytes([number] * 32)) for number in (1, 2, 3, 4))
ETHER = 10**18


def config(salt: int = 0, **changes: Any) -> ChannelConfig:
    plain = {
        "payer": PAYER.address,
        "payer_authorizer": PAYER.address,
        "receiver": RECEIVER.address,
        "receiver_authorizer": AUTHORIZER.address,
        "token": TOKEN,
        "withdraw_delay": 900,
        "salt": f"0x{salt:064x}",
    }
    return ChannelConfig(**(plain | changes))


def as_tuple(channel_config: ChannelConfig) -> tuple[Any, ...]:
    addresses = (
        channel_config.payer,
        channel_config.payer_authorizer,
        channel_config.receiver,
        channel_config.receiver_authorizer,
        channel_config.token,
    )
    return (*addresses, channel_config.withdraw_delay, bytes.fromhex(channel_config.salt[2:]))


def voucher(channel_config: ChannelConfig, maximum: int, signer: Signer = PAYER) -> bytes:
    return signer.sign(voucher_digest(CHAIN, channel_id(CHAIN, channel_config), maximum))


def row(channel_config: ChannelConfig, maximum: int, total: int, signature: bytes | None = None) -> tuple[Any, ...]:
    return (
        (as_tuple(channel_config), maximum),
        voucher(channel_config, maximum) if signature is None else signature,
        total,
    )


@dataclass
class Chain:
    tester: EthereumTester
    web3: Web3
    keys: dict[str, str] = field(default_factory=dict)

    def at(self, name: str, address: str) -> Any:
        return self.web3.eth.contract(address=Web3.to_checksum_address(address), abi=built(name).abi)

    @property
    def escrow(self) -> Any:
        return self.at("ChannelEscrow", SETTLEMENT)

    @property
    def token(self) -> Any:
        return self.at("DevToken", TOKEN)

    @property
    def split(self) -> Any:
        return self.at("Split", SPLIT)

    def send(self, call: Any, sender: str | None = None) -> Any:
        """Sends a transaction and gives its receipt; a revert raises."""
        options = {"from": sender or self.web3.eth.accounts[0], "gas": 16_000_000}
        call.call(options)  # tells why, if it reverts
        receipt = self.web3.eth.get_transaction_receipt(call.transact(options))
        assert receipt["status"] == 1
        return receipt

    def own(self, signer: Signer) -> str:
        """Makes a signer an account that can send."""
        if signer.address not in self.web3.eth.accounts:
            self.tester.add_account("0x" + signer.secret())
        if not self.web3.eth.get_balance(signer.address):  # a snapshot takes money back, not accounts
            self.web3.eth.send_transaction({"from": self.web3.eth.accounts[0], "to": signer.address, "value": ETHER})
        return signer.address

    def fund(self, address: str, amount: int) -> None:
        self.send(self.token.functions.mint(address, amount))

    def deposit(
        self, channel_config: ChannelConfig, amount: int, salt: int = 1, payer: Signer = PAYER, **changes: int
    ) -> Any:
        after, before = changes.get("after", 0), changes.get("before", 4_102_444_800)
        name, word = channel_id(CHAIN, channel_config), f"0x{salt:064x}"
        domain = Domain.of("Leben Dev Dollar", "1", CHAIN, TOKEN)
        digest = deposit_digest(domain, payer.address, amount, after, before, deposit_nonce(name, word))
        kinds = ["uint256", "uint256", "uint256", "bytes"]
        data = self.web3.codec.encode(kinds, [after, before, salt, payer.sign(digest)])
        return self.send(self.escrow.functions.deposit(as_tuple(channel_config), amount, COLLECTOR, data))

    def claim(self, rows: Sequence[tuple[Any, ...]], signer: Signer = AUTHORIZER) -> Any:
        return self.send(self.escrow.functions.claimWithSignature(list(rows), self.batch(rows, signer)))

    def batch(self, rows: Sequence[tuple[Any, ...]], signer: Signer = AUTHORIZER) -> bytes:
        entries = []
        for (fields, maximum), _, total in rows:
            channel_config = ChannelConfig(*fields[:6], "0x" + fields[6].hex())
            entries.append((channel_id(CHAIN, channel_config), maximum, total))
        return signer.sign(claim_digest(CHAIN, entries))

    def channel(self, channel_config: ChannelConfig) -> tuple[int, int]:
        balance, claimed = self.escrow.functions.channels(bytes.fromhex(channel_id(CHAIN, channel_config)[2:])).call()
        return balance, claimed

    def held(self, address: str) -> int:
        return int(self.token.functions.balanceOf(address).call())

    def later(self, seconds: int) -> None:
        self.tester.time_travel(self.web3.eth.get_block("latest")["timestamp"] + seconds)

    def refuses(self, error: str, call: Any, sender: str | None = None) -> None:
        """Fails unless the call reverts with this custom error."""
        with reverts(error):
            self.send(call, sender)


@contextmanager
def reverts(error: str) -> Iterator[None]:
    """Fails unless the block ends in this custom error of a contract."""
    with pytest.raises(TransactionFailed) as reverted:
        yield
    reason = reverted.value.args[0]
    raw = reason if isinstance(reason, bytes) else ast.literal_eval(str(reason).removeprefix("execution reverted: "))
    assert raw[:4] == keccak(f"{error}()".encode())[:4], raw


def fresh() -> Chain:
    parameters = PyEVMBackend.generate_genesis_params(overrides={"gas_limit": 60_000_000})
    state = PyEVMBackend.generate_genesis_state(num_accounts=3, overrides={"balance": 10**6 * ETHER})
    for name, address in {
        "ChannelEscrow": SETTLEMENT,
        "ERC3009Collector": COLLECTOR,
        "DevToken": TOKEN,
        "Split": SPLIT,
    }.items():
        code = bytes.fromhex(built(name).runtime[2:])
        state[bytes.fromhex(address[2:])] = {"balance": 0, "nonce": 1, "code": code, "storage": {}}
    backend = PyEVMBackend(genesis_parameters=parameters, genesis_state=state)
    # py-evm's own chain id is another; what contracts see must be the one that vectors are signed for.
    backend.chain.chain_id = CHAIN
    type(backend.chain).chain_id = CHAIN
    tester = EthereumTester(backend)
    return Chain(tester, Web3(EthereumTesterProvider(tester)))


@pytest.fixture(scope="module")
def _chain() -> Chain:
    return fresh()


@pytest.fixture
def chain(_chain: Chain) -> Iterator[Chain]:
    """The chain, as it was, after every test."""
    before = _chain.tester.take_snapshot()
    yield _chain
    _chain.tester.revert_to_snapshot(before)
