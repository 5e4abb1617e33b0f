"""Vouchers that nobody, or somebody else, has signed. Cases 14 to 17 and 47 of `docs/attacks.md`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from eth_keys.constants import SECPK1_N
from hypothesis import given
from hypothesis import strategies as st
from x402.mechanisms.evm.batch_settlement.facilitator.utils import verify_batch_settlement_voucher_typed_data

from channels.protocol.digests import (
    SETTLEMENT,
    VOUCHER_TYPE,
    Domain,
    channel_id,
    claim_digest,
    refund_digest,
    settlement_domain,
    uint256,
    voucher_digest,
)
from channels.protocol.keccak import keccak
from channels.protocol.signer import Signer, Verifier
from channels.protocol.x402 import ChannelConfig, Voucher
from tests.attacks.conftest import OnRing, opened, refused
from tests.attacks.payer import MARK, Payer, bent
from tests.attacks.ring import Ring

KNOWN: dict[str, Any] = json.loads((Path(__file__).parent.parent / "vectors" / "x402.json").read_text())


def encodings(good: bytes) -> dict[str, bytes]:
    """Other encodings of one good signature; the contract refuses each."""
    r, s, v = good[:32], int.from_bytes(good[32:64], "big"), good[64]
    order = SECPK1_N.to_bytes(32, "big")
    return {
        "high s": r + (SECPK1_N - s).to_bytes(32, "big") + bytes([55 - v]),
        **{f"v {value}": good[:64] + bytes([value]) for value in (0, 1, 29, 35, 37)},
        "v of the other key": good[:64] + bytes([55 - v]),
        "r 0": bytes(32) + good[32:],
        "s 0": r + bytes(32) + good[64:],
        "r n": order + good[32:],
        "s n": r + order + good[64:],
    }


def test_case_14_other_encodings_of_a_good_signature(on_ring: OnRing) -> None:
    async def scenario(ring: Ring) -> None:
        payer = await opened(ring)
        good = payer.voucher(500)
        for name, raw in encodings(good.voucher.signature).items():
            bad = replace(good, voucher=replace(good.voucher, signature=raw))
            answer = await refused(ring, bad, "voucher_signature", key=f"call-{name.replace(' ', '-')}")
            assert answer.status_code == 402
        assert (await ring.send(good)).status_code == 200, "the one encoding that the contract takes"

    on_ring(scenario)


FORMS = {
    "64 bytes": "0x" + "11" * 64,
    "66 bytes": "0x" + "11" * 66,
    "odd length": "0x" + "1" * 131,
    "no 0x": "11" * 65,
    "0X": "0X" + "11" * 65,
    "not hex": "0x" + "zz" * 65,
    "blanks between": "0x" + " 1" * 65,
    "other digits": "0x" + "\u0661" * 130,
    "nothing": "",
    "only 0x": "0x",
    "null": None,
    "a number": 17,
    "a list": ["0x" + "11" * 65],
    "words": MARK,
    "5 kB": "0x" + "11" * 2_500,
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_case_14_what_is_no_signature_is_refused_by_its_form(on_ring: OnRing, form: Any) -> None:
    async def scenario(ring: Ring) -> None:
        stranger = Payer(ring.quote)
        header = bent(stranger.voucher(400), "payload.voucher.signature", form)
        await refused(ring, header, "voucher_signature", says="voucher.signature is 65 bytes in hex")

    on_ring(scenario)


def test_case_14_a_signature_of_1_mb_is_refused_by_its_length(on_ring: OnRing) -> None:
    async def scenario(ring: Ring) -> None:
        header = bent(Payer(ring.quote).voucher(400), "payload.voucher.signature", "0x" + "11" * 500_000)
        await refused(ring, header, "header_too_large")

    on_ring(scenario)


def test_case_14_upper_case_hex_is_the_same_signature(on_ring: OnRing) -> None:
    async def scenario(ring: Ring) -> None:
        good = (await opened(ring)).voucher(500)
        header = bent(good, "payload.voucher.signature", "0x" + good.voucher.signature.hex().upper())
        assert (await ring.send(header)).status_code == 200

    on_ring(scenario)


def test_case_15_a_good_signature_for_another_chain_contract_version_or_name(on_ring: OnRing) -> None:
    async def scenario(ring: Ring) -> None:
        payer = await opened(ring)
        chain, name = ring.quote.payee.chain_id, payer.channel
        struct = keccak(VOUCHER_TYPE + bytes.fromhex(name[2:]) + uint256(500))
        domains = [
            settlement_domain(chain + 1),
            settlement_domain(1),
            Domain.of("x402 Batch Settlement", "2", chain, SETTLEMENT),
            Domain.of("x402 Batch settlement", "1", chain, SETTLEMENT),
            Domain.of("x402 Batch Settlement", "1", chain, ring.quote.payee.asset),
        ]
        for domain in domains:
            await refused(ring, payer.voucher(500, digest=domain.digest(struct)), "voucher_signature")
        assert settlement_domain(chain).digest(struct) == voucher_digest(chain, name, 500)

    on_ring(scenario)


def test_case_16_only_the_authorizer_signs_where_there_is_one(on_ring: OnRing) -> None:
    async def scenario(ring: Ring) -> None:
        payer = await opened(ring, authorizer=Signer(b"\6" * 32))
        await refused(ring, payer.voucher(500, signer=payer.signer), "voucher_signature")
        assert (await ring.send(payer.voucher(500))).status_code == 200

    on_ring(scenario)


def test_case_16_the_payer_signs_where_the_authorizer_is_the_payer_or_zero(on_ring: OnRing) -> None:
    async def scenario(ring: Ring) -> None:
        thief = Signer(b"\6" * 32)
        for who in ({}, {"zero_authorizer": True}):
            payer = await opened(ring, **who)
            await refused(ring, payer.voucher(500, signer=thief), "voucher_signature")
            assert (await ring.send(payer.voucher(500))).status_code == 200

    on_ring(scenario)


def test_case_16_a_wallet_that_is_a_contract_cannot_be_asked_and_so_is_refused(on_ring: OnRing) -> None:
    async def scenario(ring: Ring) -> None:
        contract = replace(Payer(ring.quote, zero_authorizer=True).config, payer="0x" + "Cc" * 20)
        name = channel_id(ring.quote.payee.chain_id, contract)
        for signature in (b"\x11" * 64 + b"\x1b", Signer(b"\6" * 32).sign(voucher_digest(1, name, 400))):
            payment = replace(Payer(ring.quote).voucher(400), config=contract, voucher=Voucher(name, 400, signature))
            await refused(ring, payment, "voucher_signature")

    on_ring(scenario)


def test_case_16_the_zero_address_signs_for_nobody(on_ring: OnRing) -> None:
    async def scenario(ring: Ring) -> None:
        nobody = replace(Payer(ring.quote, zero_authorizer=True).config, payer="0x" + "00" * 20)
        name = channel_id(ring.quote.payee.chain_id, nobody)
        payment = replace(
            Payer(ring.quote).voucher(400), config=nobody, voucher=Voucher(name, 400, b"\1" * 64 + b"\x1b")
        )
        await refused(ring, payment, "voucher_signature")

    on_ring(scenario)


def test_case_17_a_claim_or_refund_signature_is_no_voucher(on_ring: OnRing) -> None:
    async def scenario(ring: Ring) -> None:
        payer = await opened(ring)
        chain, name = ring.quote.payee.chain_id, payer.channel
        others = [claim_digest(chain, [(name, 500, 500)]), refund_digest(chain, name, 0, 500)]
        others.append(refund_digest(chain, name, 500, 0))
        for digest in others:
            await refused(ring, payer.voucher(500, digest=digest), "voucher_signature")

    on_ring(scenario)


def verdicts(chain: int, config: ChannelConfig, maximum: int, signature: bytes) -> tuple[bool, bool]:
    """Ours, and that of the stock package's verifier."""
    name = channel_id(chain, config)
    ours = Verifier(chain).voucher(Voucher(name, maximum, signature), config)
    fields = (name, str(maximum), config.payer_authorizer, config.payer, "0x" + signature.hex(), chain)
    return ours, verify_batch_settlement_voucher_typed_data(None, *fields)


STOCK_TAKES = {"high s", "v - 27", "v + 8", "v + 10"}
"""Encodings that the stock verifier takes and its own contract refuses: it would work for vouchers it cannot claim."""


@pytest.mark.parametrize("case", KNOWN["badSignatures"]["cases"], ids=lambda case: case["case"])
def test_case_47_we_refuse_what_the_contract_refuses_also_where_the_stock_verifier_does_not(case: Any) -> None:
    bad = KNOWN["badSignatures"]
    config, signature = ChannelConfig.from_json(bad["config"]), bytes.fromhex(case["signature"][2:])
    ours, stock = verdicts(bad["chainId"], config, int(bad["maxClaimableAmount"]), signature)
    assert not ours and stock is (case["case"] in STOCK_TAKES)


@given(
    key=st.binary(min_size=32, max_size=32).map(lambda raw: Signer(keccak(raw))),
    maximum=st.integers(0, 2**128 - 1),
    flip=st.none() | st.tuples(st.integers(0, 64), st.integers(1, 255)),
    other=st.booleans(),
)
def test_case_47_we_are_only_ever_stricter_than_the_stock_verifier(
    key: Signer, maximum: int, flip: tuple[int, int] | None, other: bool
) -> None:
    row = KNOWN["channels"][0]
    config = replace(ChannelConfig.from_json(row["channelConfig"]), payer_authorizer=key.address)
    chain = row["chainId"]
    digest = voucher_digest(chain + other, channel_id(chain, config), maximum)
    signature = bytearray(key.sign(digest))
    if flip:
        signature[flip[0]] ^= flip[1]
    ours, stock = verdicts(chain, config, maximum, bytes(signature))
    assert ours <= stock
    assert ours is (flip is None and not other)
