"""Builds the x402 requirement of a 402 and the PAYMENT-RESPONSE of an answered call.

The response header is the most dangerous text we emit: a stock client that cannot read it believes it has no channel
and deposits again on every call. No other module builds it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from channels.errors import X402, PaymentRefused
from channels.metering.store import StepResult
from channels.protocol import SCHEME, STATE_FIELDS, ChannelConfig, Json, encode_header


@dataclass(frozen=True, slots=True)
class Payee:
    """The receiver and the asset: the part of every requirement that is the same for a whole mesh."""

    chain_id: int
    asset: str
    asset_name: str
    asset_version: str
    receiver: str
    receiver_authorizer: str
    withdraw_delay_s: int = 86_400

    @property
    def network(self) -> str:
        """CAIP-2 name of the chain."""
        return f"eip155:{self.chain_id}"


@dataclass(frozen=True, slots=True)
class Quote:
    """The price of one call and how it may be paid.

    Attributes:
        payee: who is paid, in which asset.
        amount: the most that the call can cost, in atomic units.
        minimum_deposit: the smallest deposit that opens a channel, in atomic units.
        timeout_s: how long a payment for this quote is accepted.
        terms: a digest of the prices and shares behind the quote; a payment for other terms is refused.
    """

    payee: Payee
    amount: int
    minimum_deposit: int
    timeout_s: int = 120
    terms: str = ""

    def requirement(self, state: Json | None = None) -> Json:
        """The entry of `accepts`; `state` is what a corrective 402 adds about the channel."""
        payee = self.payee
        extra: Json = {
            "name": payee.asset_name,
            "version": payee.asset_version,
            "receiverAuthorizer": payee.receiver_authorizer,
            "withdrawDelay": payee.withdraw_delay_s,
            "minDeposit": str(self.minimum_deposit),
        }
        if self.terms:
            extra["terms"] = self.terms
        return {
            "scheme": SCHEME,
            "network": payee.network,
            "asset": payee.asset,
            "amount": str(self.amount),
            "payTo": payee.receiver,
            "maxTimeoutSeconds": self.timeout_s,
            "extra": extra | (state or {}),
        }

    def accepted_by(self, echoed: Json) -> bool:
        """True if a client accepted exactly this quote: a voucher for a cheap route must not buy an expensive one."""
        extra = echoed.get("extra")
        if not isinstance(extra, dict):
            return False
        plain = {name: value for name, value in extra.items() if name not in STATE_FIELDS}
        return echoed | {"extra": plain} == self.requirement()

    def required_header(self, url: str, error: str, state: Json | None = None) -> str:
        """PAYMENT-REQUIRED for this quote."""
        return encode_header(
            {"x402Version": 2, "error": error, "resource": {"url": url}, "accepts": [self.requirement(state)]}
        )

    def check(self, config: ChannelConfig) -> None:
        """Refuses a channel that does not pay this payee in this asset.

        Raises:
            PaymentRefused: with x402's code for the field that differs.
        """
        payee = self.payee
        fields = (
            ("receiver_mismatch", "receiver", config.receiver, payee.receiver),
            (
                "receiver_authorizer_mismatch",
                "receiverAuthorizer",
                config.receiver_authorizer,
                payee.receiver_authorizer,
            ),
            ("token_mismatch", "token", config.token, payee.asset),
            ("withdraw_delay_mismatch", "withdrawDelay", config.withdraw_delay, payee.withdraw_delay_s),
        )
        for code, name, actual, expected in fields:
            if actual != expected:
                message = f"channelConfig.{name} is not that of the quote: open a channel from the quote"
                raise PaymentRefused(X402 + code, message)


@dataclass(frozen=True, slots=True)
class Transfer:
    """A deposit or refund that the ledger executed for this request; `amount` in atomic units."""

    transaction: str
    amount: int


def channel_state(channel_id: str, result: StepResult, charged: int | None) -> Json:
    """x402's `channelState`; `charged` is None where the client could not derive the same number."""
    state: Json = {
        "channelId": channel_id,
        "balance": str(result.usable),
        "totalClaimed": str(result.claimed),
        "withdrawRequestedAt": 0,
        "refundNonce": str(result.refund_nonce),
    }
    return state | ({} if charged is None else {"chargedCumulativeAmount": str(charged)})


def corrective_state(channel_id: str, result: StepResult) -> Json:
    """What a corrective 402 adds to `extra`: the present state, and the payer's own last signature as its proof."""
    signature = "0x" + result.proof_signature.hex()
    return {
        "channelState": channel_state(channel_id, result, result.charged + result.held),
        "voucherState": {"signedMaxClaimable": str(result.proof_maximum), "signature": signature},
    }


def refund_header(quote: Quote, payer: str, channel_id: str, result: StepResult, transfer: Transfer) -> str:
    """PAYMENT-RESPONSE of a refund: what went back, and the channel's state after it."""
    body: dict[str, Any] = {
        "success": True,
        "payer": payer,
        "transaction": transfer.transaction,
        "network": quote.payee.network,
        "amount": str(transfer.amount),
        "extra": {"channelState": channel_state(channel_id, result, result.charged)},
    }
    return encode_header(body)


def response_header(
    quote: Quote, payer: str, channel_id: str, result: StepResult, charged: int, maximum: int, settled: Transfer | None
) -> str:
    """PAYMENT-RESPONSE of an answered call: what it was charged, and the channel's state after it.

    Args:
        quote: the quote that was accepted.
        payer: the channel's payer.
        channel_id: the channel.
        result: of the charge or, for a call that failed after a deposit, of the hold.
        charged: atomic units charged for this call; 0 for one that failed.
        maximum: the call's ceiling.
        settled: the deposit that came with the call; None if none was settled.
    """
    derivable = maximum - quote.amount + charged
    cumulative = result.record.after if result.record else result.charged
    state = channel_state(channel_id, result, cumulative if cumulative == derivable else None)
    body: dict[str, Any] = {
        "success": True,
        "payer": payer,
        "transaction": settled.transaction if settled else "",
        "network": quote.payee.network,
        "amount": str(settled.amount) if settled else "",
        "extra": {"chargedAmount": str(charged), "channelState": state},
    }
    return encode_header(body)
