"""Signs any payment, honest or not, and bends payments that were good."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Any

from channels.metering.quote import Quote
from channels.protocol.digests import Domain, channel_id, deposit_digest, deposit_nonce, voucher_digest
from channels.protocol.signer import Signer
from channels.protocol.x402 import (
    ZERO_ADDRESS,
    ChannelConfig,
    Deposit,
    Json,
    Payment,
    Voucher,
    decode_header,
    encode_header,
)

MARK = "Jane-Doe-4711"
"""Stands for a patient's name: nothing that a caller sends may come back in an answer or reach a log."""
WRONG = b"\x11" * 64 + b"\x1b"
"""A well-formed signature by nobody: a refusal under any other name was made before the signature was checked."""


@dataclass
class Payer:
    """A channel's payer, who may sign with any key."""

    quote: Quote
    signer: Signer = field(default_factory=Signer.generate)
    authorizer: Signer | None = None
    salt: str = "0x" + "00" * 32
    zero_authorizer: bool = False

    @property
    def voucher_signer(self) -> Signer:
        return self.authorizer or self.signer

    @property
    def config(self) -> ChannelConfig:
        payee = self.quote.payee
        return ChannelConfig(
            payer=self.signer.address,
            payer_authorizer=ZERO_ADDRESS if self.zero_authorizer else self.voucher_signer.address,
            receiver=payee.receiver,
            receiver_authorizer=payee.receiver_authorizer,
            token=payee.asset,
            withdraw_delay=payee.withdraw_delay_s,
            salt=self.salt,
        )

    @property
    def channel(self) -> str:
        return channel_id(self.quote.payee.chain_id, self.config)

    def voucher(self, max_claimable: int, signer: Signer | None = None, digest: bytes | None = None) -> Payment:
        digest = digest or voucher_digest(self.quote.payee.chain_id, self.channel, max_claimable)
        signature = (signer or self.voucher_signer).sign(digest)
        voucher = Voucher(self.channel, max_claimable, signature)
        return Payment("voucher", self.quote.requirement(), self.config, voucher)

    def refund(self, max_claimable: int, amount: int | None = None) -> Payment:
        return replace(self.voucher(max_claimable), kind="refund", refund_amount=amount)

    def deposit(
        self,
        max_claimable: int,
        amount: int,
        salt: int = 1,
        valid_after: int = 0,
        valid_before: int | None = None,
        signer: Signer | None = None,
        token: Domain | None = None,
    ) -> Payment:
        payee = self.quote.payee
        if valid_before is None:
            valid_before = int(time.time()) + 600
        token = token or Domain.of(payee.asset_name, payee.asset_version, payee.chain_id, payee.asset)
        nonce = deposit_nonce(self.channel, f"0x{salt:064x}")
        digest = deposit_digest(
            token,
            payer=self.signer.address,
            amount=amount,
            valid_after=valid_after,
            valid_before=valid_before,
            nonce=nonce,
        )
        signature = (signer or self.signer).sign(digest)
        deposit = Deposit(amount, valid_after, valid_before, f"0x{salt:064x}", signature)
        return replace(self.voucher(max_claimable), kind="deposit", deposit=deposit)


def tree(payment: Payment) -> Json:
    """A payment's wire JSON, free to be changed."""
    return decode_header(payment.to_header())


def bent(payment: Payment, path: str, value: Any) -> str:
    """The header of a payment with one field, named by a dotted path, changed, or deleted if the value is `...`."""
    header = tree(payment)
    *parents, last = path.split(".")
    holder: Any = header
    for name in parents:
        holder = holder[name]
    if value is ...:
        del holder[last]
    else:
        holder[last] = value
    return encode_header(header)


def unsigned(payment: Payment) -> Payment:
    """The payment with signatures that nobody made: only a check that comes before them can refuse it otherwise."""
    deposit = replace(payment.deposit, signature=WRONG) if payment.deposit else None
    return replace(payment, voucher=replace(payment.voucher, signature=WRONG), deposit=deposit)
