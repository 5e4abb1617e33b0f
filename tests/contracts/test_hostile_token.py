"""Tokens that take a fee or call back: the escrow and the split lose nothing by them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from eth_tester.exceptions import TransactionFailed
from vyper.compiler import compile_code

from tests.contracts.conftest import PAYER, RECEIVER, Chain, as_tuple, config, reverts, row

SOURCE = Path(__file__).with_name("Hostile.vy").read_text()


@pytest.fixture
def token(chain: Chain) -> Any:
    build = compile_code(SOURCE, output_formats=["abi", "bytecode"])
    factory = chain.web3.eth.contract(abi=build["abi"], bytecode=build["bytecode"])
    name = factory.constructor().transact({"from": chain.web3.eth.accounts[0], "gas": 5_000_000})
    address = chain.web3.eth.get_transaction_receipt(name)["contractAddress"]
    placed = chain.web3.eth.contract(address=address, abi=build["abi"])
    chain.send(placed.functions.mint(PAYER.address, 10_000))
    return placed


def deposit(chain: Chain, token: Any, amount: int, salt: int = 0) -> None:
    channel = config(salt, token=token.address)
    chain.send(chain.escrow.functions.deposit(as_tuple(channel), amount, token.address, b""))


def test_a_deposit_that_arrives_short_is_refused(chain: Chain, token: Any) -> None:
    chain.send(token.functions.arm(1, "0x" + "00" * 20, b""))
    with reverts("DepositNotReceived"):
        deposit(chain, token, 1_000)
    assert token.functions.balanceOf(PAYER.address).call() == 10_000


def test_an_epoch_that_arrives_short_is_refused(chain: Chain, token: Any) -> None:
    sender = chain.own(RECEIVER)
    chain.send(token.functions.mint(sender, 1_000))
    chain.send(token.functions.arm(1, "0x" + "00" * 20, b""))
    credit = (PAYER.address, 0, b"chdr".ljust(32, b"\0"), 100)
    chain.refuses("DepositNotReceived", chain.split.functions.split(token.address, 1, b"\1" * 32, [credit]), sender)


@pytest.mark.parametrize("inner", ["deposit", "settle", "refund", "finalizeWithdraw"])
def test_a_token_cannot_call_back_into_the_escrow(chain: Chain, token: Any, inner: str) -> None:
    channel, escrow = config(token=token.address), chain.escrow
    deposit(chain, token, 1_000)
    chain.claim([row(channel, 900, 600)])
    arguments: dict[str, list[Any]] = {
        "deposit": [as_tuple(channel), 1, token.address, b""],
        "settle": [RECEIVER.address, token.address],
        "refund": [as_tuple(channel), 1],
        "finalizeWithdraw": [as_tuple(channel)],
    }
    back = bytes.fromhex(escrow.encode_abi(inner, arguments[inner])[2:])
    chain.send(token.functions.arm(0, escrow.address, back))
    with pytest.raises(TransactionFailed):
        chain.send(escrow.functions.settle(RECEIVER.address, token.address))
    with pytest.raises(TransactionFailed):
        deposit(chain, token, 10)
    chain.send(token.functions.arm(0, "0x" + "00" * 20, b""))
    chain.send(escrow.functions.settle(RECEIVER.address, token.address))
    assert token.functions.balanceOf(RECEIVER.address).call() == 600
    assert token.functions.balanceOf(escrow.address).call() == 400
