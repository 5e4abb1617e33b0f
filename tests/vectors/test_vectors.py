"""Computes every id, digest, nonce, signature and header of `x402.json` as the stock x402 package does."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from channels.metering.channel import Outcome
from channels.metering.quote import Payee, Quote, Transfer, corrective_state, refund_header, response_header
from channels.metering.store import StepResult
from channels.protocol.digests import (
    Domain,
    channel_id,
    claim_digest,
    deposit_digest,
    deposit_nonce,
    refund_digest,
    voucher_digest,
)
from channels.protocol.signer import Signer, Verifier, well_formed
from channels.protocol.x402 import ChannelConfig, Payment, Voucher, decode_header, parse_amount

FOLDER = Path(__file__).parent
KNOWN: dict[str, Any] = json.loads((FOLDER / "x402.json").read_text())
SIGNERS = {name: Signer(row["number"].to_bytes(32, "big")) for name, row in KNOWN["keys"].items()}
TOKEN = KNOWN["token"]
CHANNELS = [pytest.param(row, id=f"{row['chainId']}: {row['name']}") for row in KNOWN["channels"]]


def raw(hexadecimal: str) -> bytes:
    return bytes.fromhex(hexadecimal.removeprefix("0x"))


def voucher_signer(config: ChannelConfig) -> Signer:
    return SIGNERS["voucherKey" if config.payer_authorizer == SIGNERS["voucherKey"].address else "payer"]


def test_the_file_is_what_the_script_writes() -> None:
    spec = importlib.util.spec_from_file_location("vectors_write", FOLDER / "write.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.text() == (FOLDER / "x402.json").read_text(), "run python tests/vectors/write.py"


def test_the_keys_have_these_addresses() -> None:
    for name, row in KNOWN["keys"].items():
        assert SIGNERS[name].address == row["address"]


@pytest.mark.parametrize("row", CHANNELS)
def test_channel_ids_voucher_digests_and_signatures(row: dict[str, Any]) -> None:
    config = ChannelConfig.from_json(row["channelConfig"])
    assert config.to_json() == row["channelConfig"]
    assert channel_id(row["chainId"], config) == row["channelId"]
    signer, verifier = voucher_signer(config), Verifier(row["chainId"])
    for voucher in row["vouchers"]:
        max_claimable, signature = parse_amount(voucher["maxClaimableAmount"], "amount"), raw(voucher["signature"])
        digest = voucher_digest(row["chainId"], row["channelId"], max_claimable)
        assert digest == raw(voucher["digest"]) and signer.sign(digest) == signature
        assert verifier.voucher(Voucher(row["channelId"], max_claimable, signature), config)


def test_claim_batches() -> None:
    for row in KNOWN["claims"]:
        digest = claim_digest(
            row["chainId"], [(name, int(max_claimable), int(total)) for name, max_claimable, total in row["rows"]]
        )
        assert digest == raw(row["digest"])
        assert SIGNERS["receiverAuthorizer"].sign(digest) == raw(row["signature"])


def test_refunds() -> None:
    for row in KNOWN["refunds"]:
        digest = refund_digest(row["chainId"], row["channelId"], int(row["nonce"]), int(row["amount"]))
        assert digest == raw(row["digest"])
        assert SIGNERS["receiverAuthorizer"].sign(digest) == raw(row["signature"])


@pytest.mark.parametrize("row", [pytest.param(row, id=f"{row['chainId']}") for row in KNOWN["deposits"]])
def test_deposits_and_their_headers(row: dict[str, Any]) -> None:
    payment = Payment.from_header(row["header"])
    deposit = payment.deposit
    assert payment.kind == "deposit" and deposit is not None
    nonce = deposit_nonce(row["channelId"], deposit.salt)
    assert payment.voucher.channel_id == channel_id(row["chainId"], payment.config) == row["channelId"]
    assert nonce == raw(row["nonce"])
    token = Domain.of(TOKEN["name"], TOKEN["version"], row["chainId"], TOKEN["address"])
    digest = deposit_digest(
        token,
        payer=payment.config.payer,
        amount=deposit.amount,
        valid_after=deposit.valid_after,
        valid_before=deposit.valid_before,
        nonce=nonce,
    )
    assert digest == raw(row["digest"]) and SIGNERS["payer"].sign(digest) == deposit.signature
    assert Verifier(row["chainId"]).voucher(payment.voucher, payment.config)
    ours, stock = decode_header(payment.to_header()), decode_header(row["header"])
    assert ours["payload"] == stock["payload"] == row["payload"] and ours["accepted"] == stock["accepted"]


WIRE = KNOWN["wire"]
PAYEE = Payee(
    31337,
    TOKEN["address"],
    TOKEN["name"],
    TOKEN["version"],
    SIGNERS["receiver"].address,
    SIGNERS["receiverAuthorizer"].address,
    900,
)
QUOTE = Quote(PAYEE, 1_000, 10_000, timeout_s=60)


def first_call() -> tuple[Payment, StepResult]:
    """The payment of the first call, and the store's answer after it was charged 700 of 1 000."""
    opening = Payment.from_header(KNOWN["deposits"][0]["header"])
    proof = (opening.voucher.max_claimable, opening.voucher.signature)
    return opening, StepResult(Outcome.CHARGED, 700, 0, 10_000, 0, 0, *proof)


def test_offers_are_the_stock_ones() -> None:
    assert QUOTE.requirement() == WIRE["requirement"]
    assert decode_header(QUOTE.required_header(WIRE["url"], "payment_required")) == decode_header(WIRE["offer"])
    opening, answer = first_call()
    code = "invalid_batch_settlement_evm_cumulative_amount_mismatch"
    ours = QUOTE.required_header(WIRE["url"], code, corrective_state(opening.voucher.channel_id, answer))
    assert decode_header(ours) == decode_header(WIRE["corrective"])


def test_answers_are_the_stock_ones() -> None:
    opening, answer = first_call()
    where = (QUOTE, opening.config.payer, opening.voucher.channel_id)
    settled = Transfer("0x" + "ab" * 32, 10_000)
    ours = response_header(*where, answer, 700, opening.voucher.max_claimable, settled)
    assert decode_header(ours) == decode_header(WIRE["answer"])
    after = StepResult(Outcome.ACCEPTED, 700, 0, 10_000, 0, 1)
    ours = refund_header(*where, after, Transfer("0x" + "cd" * 32, 9_300))
    assert decode_header(ours) == decode_header(WIRE["answerRefund"])


def test_the_stock_headers_of_calls_and_refunds_are_read_and_written_alike() -> None:
    for name, kind, refund in (("voucher", "voucher", None), ("refund", "refund", None)):
        payment = Payment.from_header(WIRE[name])
        assert (payment.kind, payment.refund_amount) == (kind, refund)
    partial = Payment.from_header(WIRE["refundPartial"])
    assert partial.refund_amount == 3_000 and partial.voucher.max_claimable == 700
    for name in ("voucher", "refund", "refundPartial"):
        payment, stock = Payment.from_header(WIRE[name]), decode_header(WIRE[name])
        ours = decode_header(payment.to_header())
        assert ours["payload"] == stock["payload"] and QUOTE.accepted_by(payment.accepted)
        assert Verifier(31337).voucher(payment.voucher, payment.config)


def test_fifteen_encodings_of_a_good_signature_that_the_contract_refuses_are_refused() -> None:
    bad = KNOWN["badSignatures"]
    config = ChannelConfig.from_json(bad["config"])
    name, max_claimable = channel_id(bad["chainId"], config), int(bad["maxClaimableAmount"])
    assert len(bad["cases"]) == 15
    for case in bad["cases"]:
        signature = raw(case["signature"])
        assert not Verifier(bad["chainId"]).voucher(Voucher(name, max_claimable, signature), config), case["case"]
        assert case["case"] == "v of the other key" or not well_formed(signature)
