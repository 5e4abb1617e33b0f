"""Checks the rules of a channel on a ledger: x402's contract as pure functions.

A refusal has x402's own code where x402 defines one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from channels.errors import X402, LedgerError
from channels.ledger.ledger import DELAY_MAX_S, DELAY_MIN_S, ClaimRow, LedgerChannel, Terms
from channels.metering import AMOUNT_LIMIT
from channels.protocol import ZERO_ADDRESS, ChannelConfig, Deposit, Verifier, refund_digest, signed_by


def refused(code: str, message: str) -> LedgerError:
    """A refusal with one of x402's codes."""
    return LedgerError(X402 + code, message)


def check_config(config: ChannelConfig, terms: Terms) -> None:
    """Refuses a channel that this ledger cannot keep."""
    if config.token != terms.asset:
        raise refused("token_mismatch", "the channel is in another asset than this ledger")
    if not DELAY_MIN_S <= config.withdraw_delay <= DELAY_MAX_S:
        raise refused("withdraw_delay_out_of_range", f"withdrawDelay is {DELAY_MIN_S} to {DELAY_MAX_S} seconds")
    if ZERO_ADDRESS in (config.payer, config.receiver, config.receiver_authorizer):
        raise refused("authorizer_not_configured", "payer, receiver and receiverAuthorizer are not zero")


def check_deposit(channel: LedgerChannel, deposit: Deposit, wallet: int, now_s: float) -> None:
    """Refuses a deposit out of its window, above the limit, or above what the payer's wallet holds."""
    if deposit.amount <= 0:
        raise refused("deposit_payload", "a deposit is more than 0")
    if now_s <= deposit.valid_after:
        raise refused("payload_authorization_valid_after", "the authorization is not valid yet")
    if now_s >= deposit.valid_before:
        raise refused("payload_authorization_valid_before", "the authorization has expired")
    if channel.balance + deposit.amount >= AMOUNT_LIMIT:
        raise LedgerError("balance_limit", "a channel's balance stays below 2^53")
    if wallet < deposit.amount:
        raise refused("insufficient_balance", "the payer's wallet does not cover the deposit")


def check_payer(config: ChannelConfig, digest: bytes, signature: bytes) -> None:
    """Refuses a withdrawal that neither the payer nor its authorizer signed."""
    signers = {config.payer, config.payer_authorizer} - {ZERO_ADDRESS}
    if not any(signed_by(digest, signature, signer) for signer in signers):
        raise LedgerError("withdraw_signature", "the withdrawal is not signed by the payer for this ledger")


def claimable(
    rows: Sequence[ClaimRow], find: Callable[[ChannelConfig], LedgerChannel], verifier: Verifier
) -> list[tuple[LedgerChannel, int]]:
    """Each row's channel after it and the amount it moves: 0 for a total that was claimed before.

    Args:
        rows: in order; a later row of a channel follows the earlier one.
        find: returns a channel, or refuses.
        verifier: of voucher signatures.

    Raises:
        LedgerError: at the first bad row; the whole batch is refused.
    """
    if not rows:
        raise refused("claim_payload", "a claim has at least one row")
    now: dict[str, LedgerChannel] = {}
    result = []
    for row in rows:
        before = now.get(row.voucher.channel_id) or find(row.config)
        if before.channel_id != row.voucher.channel_id or before.config != row.config:
            raise refused("channel_id_mismatch", "the voucher is for another channel")
        amount = max(0, row.total_claimed - before.total_claimed)
        if amount:
            _check_row(before, row, verifier)
        version = before.version + (1 if amount else 0)
        after = replace(before, total_claimed=before.total_claimed + amount, version=version)
        now[before.channel_id] = after
        result.append((after, amount))
    return result


def refunded(channel: LedgerChannel, amount: int, nonce: int, signature: bytes, chain_id: int) -> LedgerChannel:
    """The channel after a refund of unclaimed money that the receiver's authorizer signed."""
    if nonce != channel.refund_nonce:
        raise LedgerError("refund_nonce", f"the channel's next refund has nonce {channel.refund_nonce}")
    digest = refund_digest(chain_id, channel.channel_id, nonce, amount)
    if not signed_by(digest, signature, channel.config.receiver_authorizer):
        raise refused("authorizer_address_mismatch", "the refund is not signed by the receiver's authorizer")
    if channel.left == 0:
        raise refused("refund_no_balance", "everything in the channel is claimed")
    if not 0 < amount <= channel.left:
        raise refused("refund_amount_invalid", "a refund is more than 0 and at most what is unclaimed")
    return replace(channel, balance=channel.balance - amount, refund_nonce=nonce + 1, version=channel.version + 1)


def withdrawing(channel: LedgerChannel, amount: int, now_s: float) -> LedgerChannel:
    """The channel with a withdrawal begun."""
    if channel.withdraw_amount:
        raise LedgerError("withdraw_pending", "a withdrawal of this channel is pending")
    if not 0 < amount <= channel.left:
        raise LedgerError("withdraw_amount", "a withdrawal is more than 0 and at most what is unclaimed")
    return replace(channel, withdraw_amount=amount, withdraw_requested_at_s=int(now_s), version=channel.version + 1)


def withdrawn(channel: LedgerChannel, now_s: float) -> LedgerChannel:
    """The channel after its withdrawal; the balance falls by what the payer gets."""
    if not channel.withdraw_amount:
        raise LedgerError("withdraw_not_pending", "no withdrawal of this channel is pending")
    if now_s < channel.withdraw_requested_at_s + channel.config.withdraw_delay:
        raise LedgerError("withdraw_too_early", "the withdraw delay has not passed")
    # Claims and refunds may have taken part of it since: the payer gets what is left, never more.
    balance = channel.balance - min(channel.withdraw_amount, channel.left)
    return replace(channel, balance=balance, withdraw_amount=0, withdraw_requested_at_s=0, version=channel.version + 1)


def _check_row(channel: LedgerChannel, row: ClaimRow, verifier: Verifier) -> None:
    if row.total_claimed > row.voucher.max_claimable:
        raise refused("charge_exceeds_signed_cumulative", "the claim is above the voucher's ceiling")
    if row.total_claimed > channel.balance:
        raise refused("cumulative_exceeds_balance", "the claim is above the channel's balance")
    if not verifier.voucher(row.voucher, row.config):
        raise refused("voucher_signature", "the voucher is not signed by the payer's authorizer")
