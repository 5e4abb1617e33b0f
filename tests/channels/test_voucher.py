"""Compares digests, ids and signatures with those of the stock x402 package and eth-account, for any values."""

from __future__ import annotations

import pytest
from eth_account.messages import SignableMessage, encode_typed_data
from eth_hash.auto import keccak
from eth_keys.constants import SECPK1_N
from hypothesis import given
from hypothesis import strategies as st
from x402.mechanisms.evm.batch_settlement.encoding import build_erc3009_deposit_nonce
from x402.mechanisms.evm.batch_settlement.types import ChannelConfig as StockConfig
from x402.mechanisms.evm.batch_settlement.utils import compute_channel_id, get_batch_settlement_eip712_domain

from channels.protocol.digests import (
    COLLECTOR,
    Domain,
    channel_id,
    claim_digest,
    deposit_digest,
    deposit_nonce,
    refund_digest,
    voucher_digest,
)
from channels.protocol.signer import Signer, Verifier, recover, signed_by, well_formed
from channels.protocol.x402 import ChannelConfig, Voucher

CHAIN = 31337
hashes = st.binary(min_size=32, max_size=32).map(lambda raw: "0x" + raw.hex())
keys = st.integers(1, SECPK1_N - 1).map(lambda value: Signer(value.to_bytes(32, "big")))
amounts = st.integers(0, 2**128 - 1)


def config(payer: Signer, salt: str, delay: int = 900, authorizer: str | None = None) -> ChannelConfig:
    token = "0xDe70000000000000000000000000000000000001"
    receiver = Signer(b"\2" * 32).address
    return ChannelConfig(payer.address, authorizer or payer.address, receiver, receiver, token, delay, salt)


def typed(
    kind: str, fields: list[tuple[str, str]], message: dict[str, object], more: dict[str, object] | None = None
) -> bytes:
    domain = get_batch_settlement_eip712_domain(CHAIN)
    types = {kind: [{"name": n, "type": t} for n, t in fields], **(more or {})}
    signable = encode_typed_data(domain_data=domain, message_types=types, message_data=message)
    return signed_hash(signable)


def signed_hash(signable: SignableMessage) -> bytes:
    return keccak(b"\x19" + signable.version + signable.header + signable.body)


@given(payer=keys, salt=hashes, delay=st.integers(0, 2**40 - 1))
def test_channel_ids_equal_the_stock_ones(payer: Signer, salt: str, delay: int) -> None:
    ours = config(payer, salt, delay)
    stock = StockConfig.from_dict(ours.to_json())
    assert channel_id(CHAIN, ours) == compute_channel_id(stock, CHAIN).lower()


@given(channel=hashes, amount=amounts, nonce=st.integers(0, 2**256 - 1))
def test_digests_equal_eth_accounts(channel: str, amount: int, nonce: int) -> None:
    voucher = [("channelId", "bytes32"), ("maxClaimableAmount", "uint128")]
    message = {"channelId": channel, "maxClaimableAmount": amount}
    assert voucher_digest(CHAIN, channel, amount) == typed("Voucher", voucher, message)
    refund = [("channelId", "bytes32"), ("nonce", "uint256"), ("amount", "uint128")]
    message = {"channelId": channel, "nonce": nonce, "amount": amount}
    assert refund_digest(CHAIN, channel, nonce, amount) == typed("Refund", refund, message)


@given(rows=st.lists(st.tuples(hashes, amounts, amounts), min_size=1, max_size=4))
def test_claim_batches_hash_without_a_length_word(rows: list[tuple[str, int, int]]) -> None:
    names = ("channelId", "maxClaimableAmount", "totalClaimed")
    entry = [{"name": n, "type": t} for n, t in zip(names, ("bytes32", "uint128", "uint128"), strict=True)]
    message = {"claims": [dict(zip(names, row, strict=True)) for row in rows]}
    assert claim_digest(CHAIN, rows) == typed(
        "ClaimBatch", [("claims", "ClaimEntry[]")], message, {"ClaimEntry": entry}
    )


@given(channel=hashes, salt=hashes)
def test_deposit_nonces_equal_the_stock_ones(channel: str, salt: str) -> None:
    assert "0x" + deposit_nonce(channel, salt).hex() == build_erc3009_deposit_nonce(channel, salt).lower()


@given(payer=keys, amount=amounts, before=st.integers(0, 2**64), nonce=hashes)
def test_deposit_digests_equal_eth_accounts(payer: Signer, amount: int, before: int, nonce: str) -> None:
    token = "0xDe70000000000000000000000000000000000001"
    names = [("from", "address"), ("to", "address"), ("value", "uint256"), ("validAfter", "uint256")]
    names += [("validBefore", "uint256"), ("nonce", "bytes32")]
    message = {
        "from": payer.address,
        "to": COLLECTOR,
        "value": amount,
        "validAfter": 0,
        "validBefore": before,
        "nonce": nonce,
    }
    domain = {"name": "Dev Dollar", "version": "1", "chainId": CHAIN, "verifyingContract": token}
    types = {"ReceiveWithAuthorization": [{"name": n, "type": t} for n, t in names]}
    signable = encode_typed_data(domain_data=domain, message_types=types, message_data=message)
    ours = deposit_digest(
        Domain.of("Dev Dollar", "1", CHAIN, token),
        payer=payer.address,
        amount=amount,
        valid_after=0,
        valid_before=before,
        nonce=bytes.fromhex(nonce[2:]),
    )
    assert ours == signed_hash(signable)


@given(signer=keys, digest=st.binary(min_size=32, max_size=32))
def test_signatures_are_low_s_deterministic_and_recover(signer: Signer, digest: bytes) -> None:
    signature = signer.sign(digest)
    assert signature == signer.sign(digest) and well_formed(signature) and signature[64] in (27, 28)
    assert signed_by(digest, signature, signer.address)
    key = recover(digest, signature)
    assert key is not None and key.to_checksum_address() == signer.address


@given(signer=keys, other=keys, salt=hashes, max_claimable=amounts)
def test_the_cached_verdict_is_the_recovered_one(signer: Signer, other: Signer, salt: str, max_claimable: int) -> None:
    verifier = Verifier(CHAIN)
    settings = config(signer, salt)
    name = channel_id(CHAIN, settings)
    for who in (signer, signer, other, signer):
        signature = who.sign(voucher_digest(CHAIN, name, max_claimable))
        expected = who.address == signer.address
        assert verifier.voucher(Voucher(name, max_claimable, signature), settings) is expected
        assert verifier.voucher(Voucher(name, max_claimable, signature), settings) is expected
        other_key = signature[:64] + bytes([55 - signature[64]])
        assert not verifier.voucher(Voucher(name, max_claimable, other_key), settings), "v says whose key it is"


def bad_signatures() -> list[object]:
    good = Signer(b"\1" * 32).sign(b"\5" * 32)
    r, s, v = good[:32], int.from_bytes(good[32:64], "big"), good[64]
    zero, order = bytes(32), SECPK1_N.to_bytes(32, "big")
    return [
        pytest.param(r + (SECPK1_N - s).to_bytes(32, "big") + bytes([55 - v]), id="high s"),
        *[pytest.param(good[:64] + bytes([value]), id=f"v {value}") for value in (0, 1, 26, 29, 35, 37, 255)],
        pytest.param(zero + good[32:], id="r 0"),
        pytest.param(r + zero + bytes([v]), id="s 0"),
        pytest.param(order + good[32:], id="r n"),
        pytest.param(r + order + bytes([v]), id="s n"),
        pytest.param(good[:64], id="64 bytes"),
        pytest.param(good + b"\0", id="66 bytes"),
        pytest.param(b"", id="nothing"),
    ]


@pytest.mark.parametrize("signature", bad_signatures())
def test_what_the_contract_refuses_is_refused_before_recovery(signature: bytes) -> None:
    assert not well_formed(signature) and recover(b"\5" * 32, signature) is None


def test_a_signature_for_another_chain_or_domain_is_nobodys() -> None:
    signer, channel = Signer(b"\1" * 32), "0x" + "ab" * 32
    signature = signer.sign(voucher_digest(1, channel, 5))
    assert not signed_by(voucher_digest(2, channel, 5), signature, signer.address)
    assert not signed_by(refund_digest(1, channel, 5, 5), signature, signer.address)


def test_no_key_in_a_repr() -> None:
    signer = Signer(b"\x11" * 32)
    assert "11" * 8 not in f"{signer!r}{signer}" and signer.address in repr(signer)
