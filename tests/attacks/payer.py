"""`Payer`: signs whatever it is told to, honest or not; and ways to bend a payment that was good."""

from __future__ import annotations

import copy
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
"""A signature of the right form by nobody: who reports anything but the signature has not looked at it."""


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
        authorizer = ZERO_ADDRESS if self.zero_authorizer else self.voucher_signer.address
        receivers = (payee.receiver, payee.receiver_authorizer)
        return ChannelConfig(
            self.signer.address, authorizer, *receivers, payee.asset, payee.withdraw_delay_s, self.salt
        )

    @property
    def channel(self) -> str:
        return channel_id(self.quote.payee.chain_id, self.config)

    def voucher(self, maximum: int, signer: Signer | None = None, digest: bytes | None = None) -> Payment:
        digest = digest or voucher_digest(self.quote.payee.chain_id, self.channel, maximum)
        signature = (signer or self.voucher_signer).sign(digest)
        return Payment(
            "voucher", self.quote.requirement(), self.config, Voucher(self.channel, maximum, signature), None
        )

    def refund(self, maximum: int, amount: int | None = None) -> Payment:
        return replace(self.voucher(maximum), kind="refund", refund_amount=amount)

    def deposit(
        self,
        maximum: int,
        amount: int,
        salt: int = 1,
        valid_after: int = 0,
        valid_before: int | None = None,
        signer: Signer | None = None,
        token: Domain | None = None,
    ) -> Payment:
        payee = self.quote.payee
        until_s = int(time.time()) + 600 if valid_before is None else valid_before
        token = token or Domain.of(payee.asset_name, payee.asset_version, payee.chain_id, payee.asset)
        nonce = deposit_nonce(self.channel, f"0x{salt:064x}")
        digest = deposit_digest(token, self.signer.address, amount, valid_after, until_s, nonce)
        signed = (signer or self.signer).sign(digest)
        deposit = Deposit(amount, valid_after, until_s, f"0x{salt:064x}", signed)
        return replace(self.voucher(maximum), kind="deposit", deposit=deposit)


def tree(payment: Payment) -> Json:
    """A payment's wire JSON, to be bent."""
    return decode_header(payment.to_header())


def bent(payment: Payment, path: str, value: Any) -> str:
    """The header of a payment with one field, named by a dotted path, set to something else; deleted if `...`."""
    whole = copy.deepcopy(tree(payment))
    *way, last = path.split(".")
    spot: Any = whole
    for name in way:
        spot = spot[name]
    if value is ...:
        del spot[last]
    else:
        spot[last] = value
    return encode_header(whole)


def unsigned(payment: Payment) -> Payment:
    """The payment with signatures that nobody made: only what is checked before them can refuse it by another name."""
    deposit = replace(payment.deposit, signature=WRONG) if payment.deposit else None
    return replace(payment, voucher=replace(payment.voucher, signature=WRONG), deposit=deposit)
