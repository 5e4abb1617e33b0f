"""ChannelEscrow: digests are x402's, money moves as vouchers allow, and nothing else moves it."""

from __future__ import annotations

import pytest

from channels.protocol.digests import channel_id, claim_digest, refund_digest, voucher_digest
from tests.contracts.conftest import (
    AUTHORIZER,
    CHAIN,
    PAYER,
    RECEIVER,
    TOKEN,
    Chain,
    as_tuple,
    config,
    reverts,
    row,
    voucher,
)


@pytest.fixture
def opened(chain: Chain) -> Chain:
    chain.fund(PAYER.address, 10_000_000)
    chain.deposit(config(), 10_000)
    return chain


def test_digests_are_those_that_vouchers_are_signed_for(chain: Chain) -> None:
    see, channel = chain.escrow.functions, config(7)
    name = channel_id(CHAIN, channel)
    raw = bytes.fromhex(name[2:])
    assert see.getChannelId(as_tuple(channel)).call().hex() == name[2:]
    assert see.getVoucherDigest(raw, 1_700).call() == voucher_digest(CHAIN, name, 1_700)
    assert see.getRefundDigest(raw, 3, 700).call() == refund_digest(CHAIN, name, 3, 700)
    rows = [row(config(salt), 1_700, 1_400) for salt in (7, 8)]
    batch = [(channel_id(CHAIN, config(salt)), 1_700, 1_400) for salt in (7, 8)]
    assert see.getClaimBatchDigest(rows).call() == claim_digest(CHAIN, batch)


def test_a_channels_whole_life(opened: Chain) -> None:
    channel = config()
    assert opened.channel(channel) == (10_000, 0) and opened.held(PAYER.address) == 9_990_000
    opened.claim([row(channel, 1_700, 1_400)])
    assert opened.channel(channel) == (10_000, 1_400)
    assert opened.escrow.functions.receivers(RECEIVER.address, TOKEN).call() == [1_400, 0]
    opened.claim([row(channel, 1_700, 1_400), row(channel, 1_000, 700)])
    assert opened.channel(channel) == (10_000, 1_400), "what was claimed before moves nothing, and is no error"
    opened.send(opened.escrow.functions.settle(RECEIVER.address, TOKEN))
    opened.send(opened.escrow.functions.settle(RECEIVER.address, TOKEN))
    assert opened.held(RECEIVER.address) == 1_400
    digest = refund_digest(CHAIN, channel_id(CHAIN, channel), 0, 600)
    refund = opened.escrow.functions.refundWithSignature(as_tuple(channel), 600, 0, AUTHORIZER.sign(digest))
    opened.send(refund)
    assert opened.channel(channel) == (9_400, 1_400) and opened.held(PAYER.address) == 9_990_600
    opened.refuses("InvalidNonce", refund)
    payer = opened.own(PAYER)
    opened.send(opened.escrow.functions.initiateWithdraw(as_tuple(channel), 8_000), payer)
    opened.refuses("TooEarly", opened.escrow.functions.finalizeWithdraw(as_tuple(channel)), payer)
    opened.claim([row(channel, 3_000, 2_400)])
    opened.later(901)
    opened.send(opened.escrow.functions.finalizeWithdraw(as_tuple(channel)), payer)
    assert opened.channel(channel) == (2_400, 2_400) and opened.held(PAYER.address) == 9_997_600, (
        "what is left, not more"
    )
    opened.send(opened.escrow.functions.settle(RECEIVER.address, TOKEN))
    assert opened.held(RECEIVER.address) == 2_400 and opened.held(opened.escrow.address) == 0


def test_claim_and_refund_go_together(opened: Chain) -> None:
    channel, escrow = config(), opened.escrow
    rows = [row(channel, 1_700, 1_400)]
    digest = refund_digest(CHAIN, channel_id(CHAIN, channel), 0, 8_600)
    claim = escrow.encode_abi("claimWithSignature", [rows, opened.batch(rows)])
    refund = escrow.encode_abi("refundWithSignature", [as_tuple(channel), 8_600, 0, AUTHORIZER.sign(digest)])
    opened.send(escrow.functions.multicall([bytes.fromhex(claim[2:]), bytes.fromhex(refund[2:])]))
    assert opened.channel(channel) == (1_400, 1_400) and opened.held(PAYER.address) == 9_998_600


@pytest.mark.parametrize(
    ("error", "rows"),
    [
        ("ClaimExceedsCeiling", lambda: [row(config(), 1_000, 1_001)]),
        ("ClaimExceedsBalance", lambda: [row(config(), 20_000, 10_001)]),
        ("InvalidSignature", lambda: [row(config(), 1_000, 700, voucher(config(), 1_001))]),
        ("InvalidSignature", lambda: [row(config(), 1_000, 700, voucher(config(), 1_000, RECEIVER))]),
        ("ClaimExceedsBalance", lambda: [row(config(9), 1_000, 700)]),
        ("NotAuthorizer", lambda: [row(config(), 1_000, 700), row(config(1, receiver_authorizer=PAYER.address), 1, 0)]),
    ],
)
def test_one_bad_row_moves_nothing(opened: Chain, error: str, rows: object) -> None:
    good = config(5)
    opened.deposit(good, 5_000, salt=2)
    batch = [*rows(), row(good, 100, 100)]  # type: ignore[operator]
    opened.refuses(error, opened.escrow.functions.claimWithSignature(batch, opened.batch(batch)))
    assert opened.channel(good) == (5_000, 0) and opened.channel(config()) == (10_000, 0)


def test_only_the_authorizer_claims_and_refunds_and_only_the_payer_withdraws(opened: Chain) -> None:
    channel, escrow, rows = config(), opened.escrow.functions, [row(config(), 1_000, 700)]
    opened.refuses("InvalidSignature", escrow.claimWithSignature(rows, opened.batch(rows, PAYER)))
    opened.refuses("InvalidSignature", escrow.claimWithSignature(rows, opened.batch([row(channel, 1_000, 699)])))
    opened.refuses("NotAuthorizer", escrow.claim(rows))
    opened.refuses("NotAuthorizer", escrow.refund(as_tuple(channel), 1), opened.own(RECEIVER))
    opened.refuses("NotPayer", escrow.initiateWithdraw(as_tuple(channel), 1), opened.own(AUTHORIZER))
    opened.refuses("NoWithdrawalPending", escrow.finalizeWithdraw(as_tuple(channel)), opened.own(PAYER))
    opened.refuses("EmptyBatch", escrow.claimWithSignature([], bytes(65)))
    opened.send(escrow.claim(rows), opened.own(AUTHORIZER))
    opened.send(escrow.refund(as_tuple(channel), 300), AUTHORIZER.address)
    assert opened.channel(channel) == (9_700, 700)


@pytest.mark.parametrize("kind", ["high s", "v 0", "v 1", "v 29", "zero r", "zero s", "r of n", "short"])
def test_a_signature_has_one_form(opened: Chain, kind: str) -> None:
    n = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
    good = voucher(config(), 1_000)
    r, s, v = good[:32], int.from_bytes(good[32:64], "big"), good[64]
    bad = {
        "high s": r + (n - s).to_bytes(32, "big") + bytes([55 - v]),
        "v 0": good[:64] + bytes([v - 27]),
        "v 1": good[:64] + b"\x01",
        "v 29": good[:64] + bytes([v + 2]),
        "zero r": bytes(32) + good[32:],
        "zero s": r + bytes(32) + bytes([v]),
        "r of n": n.to_bytes(32, "big") + good[32:],
        "short": good[:64],
    }[kind]
    rows = [row(config(), 1_000, 700, bad)]
    opened.refuses("InvalidSignature", opened.escrow.functions.claimWithSignature(rows, opened.batch(rows)))


def test_an_authorisation_pays_one_channel_once_and_in_its_time(opened: Chain) -> None:
    with reverts("NonceUsed"):
        opened.deposit(config(), 100, salt=1)
    with reverts("Expired"):
        opened.deposit(config(), 100, salt=5, before=1)
    with reverts("NotYetValid"):
        opened.deposit(config(), 100, salt=5, after=4_000_000_000)
    with reverts("InvalidSignature"):
        opened.deposit(config(), 100, salt=5, payer=RECEIVER)
    assert opened.channel(config()) == (10_000, 0)


@pytest.mark.parametrize(
    ("error", "changes"),
    [
        ("WithdrawDelayOutOfRange", {"withdraw_delay": 899}),
        ("WithdrawDelayOutOfRange", {"withdraw_delay": 2_592_001}),
        ("InvalidChannel", {"receiver": "0x" + "00" * 20}),
        ("InvalidChannel", {"receiver_authorizer": "0x" + "00" * 20}),
    ],
)
def test_a_channel_that_cannot_be_kept_takes_no_money(opened: Chain, error: str, changes: dict[str, object]) -> None:
    with reverts(error):
        opened.deposit(config(3, **changes), 100, salt=9)
    assert opened.held(PAYER.address) == 9_990_000
