"""Split: what owners can take out is what was moved in, once an epoch, and only they take it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from channels.protocol.keccak import keccak
from channels.protocol.signer import Signer
from tests.contracts.conftest import OWNER, PAYER, RECEIVER, TOKEN, Chain
from tests.examples import examples

ROOT = b"\7" * 32
DAPP = b"chdr".ljust(32, b"\0")


@pytest.fixture
def earned(chain: Chain) -> Chain:
    chain.fund(chain.own(RECEIVER), 10_000)
    chain.send(chain.token.functions.approve(chain.split.address, 2**255), RECEIVER.address)
    return chain


def credit(owner: Signer, amount: int, carrier: int = 0) -> tuple[Any, ...]:
    return (owner.address, carrier, DAPP, amount)


def test_an_epoch_is_paid_and_published_once(earned: Chain) -> None:
    split = earned.split.functions.split(TOKEN, 1, ROOT, [credit(OWNER, 600), credit(PAYER, 400, 2)])
    earned.send(split, RECEIVER.address)
    assert earned.split.functions.roots(RECEIVER.address, TOKEN, 1).call() == ROOT
    assert earned.split.functions.earnings(TOKEN, OWNER.address).call() == 600
    assert earned.held(earned.split.address) == 1_000 and earned.held(RECEIVER.address) == 9_000
    earned.refuses("EpochPublished", split, RECEIVER.address)
    earned.refuses("EpochPublished", earned.split.functions.split(TOKEN, 2, bytes(32), []), RECEIVER.address)
    earned.refuses(
        "InvalidCredit", earned.split.functions.split(TOKEN, 3, ROOT, [credit(OWNER, 1, 5)]), RECEIVER.address
    )


def test_each_owner_takes_out_its_own_and_no_more(earned: Chain) -> None:
    earned.send(earned.split.functions.split(TOKEN, 1, ROOT, [credit(OWNER, 600)]), RECEIVER.address)
    see, owner = earned.split.functions, earned.own(OWNER)
    earned.refuses("InvalidAmount", see.withdraw(TOKEN, owner, 601), owner)
    earned.refuses("InvalidAmount", see.withdraw(TOKEN, owner, 0), owner)
    earned.refuses("InvalidAmount", see.withdraw(TOKEN, RECEIVER.address, 1), RECEIVER.address)
    earned.send(see.withdraw(TOKEN, owner, 200), owner)
    digest = see.getPayoutDigest(TOKEN, owner, PAYER.address, 300, 0).call()
    earned.refuses(
        "InvalidSignature", see.withdrawWithSignature(TOKEN, owner, PAYER.address, 300, 0, PAYER.sign(digest))
    )
    earned.refuses(
        "InvalidSignature", see.withdrawWithSignature(TOKEN, owner, RECEIVER.address, 300, 0, OWNER.sign(digest))
    )
    signed = see.withdrawWithSignature(TOKEN, owner, PAYER.address, 300, 0, OWNER.sign(digest))
    earned.send(signed)
    earned.refuses("InvalidNonce", signed)
    assert earned.held(PAYER.address) == 300 and earned.held(owner) == 200
    assert see.earnings(TOKEN, owner).call() == 100 == earned.held(earned.split.address)


def test_the_payout_digest_is_bound_to_chain_and_contract(earned: Chain) -> None:
    digest = earned.split.functions.getPayoutDigest(TOKEN, OWNER.address, PAYER.address, 300, 0).call()
    kind = keccak(b"Payout(address token,address owner,address to,uint256 amount,uint256 nonce)")
    encode = earned.web3.codec.encode
    values = [kind, TOKEN, OWNER.address, PAYER.address, 300, 0]
    struct = keccak(encode(["bytes32", "address", "address", "address", "uint256", "uint256"], values))
    domain = keccak(b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)")
    named = [domain, keccak(b"Leben Mesh Split"), keccak(b"1"), 31337, earned.split.address]
    separator = keccak(encode(["bytes32", "bytes32", "bytes32", "uint256", "address"], named))
    assert digest == keccak(b"\x19\x01" + separator + struct)


@settings(max_examples=examples(8), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 400)), max_size=12))
def test_credits_are_what_was_moved_in_to_the_last_unit(earned: Chain, parts: list[tuple[int, int, int]]) -> None:
    mark = earned.tester.take_snapshot()
    owners = [Signer(bytes([50 + number]) * 32) for number in range(3)]
    credits = [credit(owners[number], amount, carrier) for number, carrier, amount in parts]
    earned.send(earned.split.functions.split(TOKEN, 9, ROOT, credits), RECEIVER.address)
    total = sum(amount for _, _, amount in parts)
    assert sum(earned.split.functions.earnings(TOKEN, owner.address).call() for owner in owners) == total
    assert earned.held(earned.split.address) == total and earned.held(RECEIVER.address) == 10_000 - total
    earned.tester.revert_to_snapshot(mark)
