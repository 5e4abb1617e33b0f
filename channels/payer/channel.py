"""`PayerChannel`: what a payer knows of one channel, and what it believes of what a mesh says about it.

A mesh is trusted with nothing that can be checked here: a charge above the quote, a cumulative that jumps, a receipt
that does not fit, or a corrective 402 without this payer's own signature close the channel instead of being paid.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NoReturn

from channels.errors import ChannelError, MalformedPayment
from channels.protocol import ChannelConfig, Deposit, Json, Signer, decode_header, parse_amount, voucher_digest
from channels.receipts import SignedReceipt

CERTAINLY_FREE = frozenset({"internal", "not_ready", "deadline", "exposure", "store_unavailable", "hold_lost", "busy"})
"""Codes of 5xx answers that say for certain that nothing was charged."""
ANSWERED_KEPT = 4_096
"""Calls that a channel remembers as charged: as many may be repeated without being counted again."""


class DishonestServer(ChannelError):
    """The mesh took or showed what this payer never agreed to; nothing more is signed on this channel.

    What is left in it comes back by a refund or a withdrawal; the vouchers signed so far bound what the mesh can claim.
    """


@dataclass(slots=True)
class PayerChannel:
    """One channel as its payer knows it, in atomic units.

    `outstanding` holds the quote of every call whose charge is not known yet, by its Idempotency-Key; `answered` the
    keys of the latest calls whose charge is counted; `pending` a deposit that is not confirmed: until it is, the same
    authorisation is sent again and never a second one. `mesh` is the address that receipts are signed by: the first
    receipt's, if none was given.
    """

    config: ChannelConfig
    id: str
    chain_id: int
    mesh: str = ""
    deposited: int = 0
    charged: int = 0
    outstanding: dict[str, int] = field(default_factory=dict, repr=False)
    answered: OrderedDict[str, None] = field(default_factory=OrderedDict, repr=False)
    pending: Deposit | None = None
    closed: DishonestServer | None = None
    opening: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False)
    thread_opening: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def ceiling(self) -> int:
        """What covers every call signed so far."""
        return self.charged + sum(self.outstanding.values())

    def short(self, price: int) -> bool:
        """True if a call of this price needs a deposit first."""
        return self.ceiling + price > self.deposited

    def covering(self, key: str, price: int) -> int:
        """The ceiling that covers every call signed so far and this one.

        Raises:
            DishonestServer: the channel was closed by an earlier answer.
        """
        if self.closed is not None:
            raise DishonestServer(self.closed.code, self.closed.message)
        return self.ceiling - self.outstanding.get(key, 0) + price

    def account(
        self, key: str, deposit: Deposit | None, status: int, code: str, headers: Mapping[str, str]
    ) -> int | None:
        """Books what an answer says was charged.

        Args:
            key: the call's Idempotency-Key.
            deposit: what was sent with it.
            status: the answer's status.
            code: the stable code of a refusal.
            headers: the answer's headers, in lower case.

        Returns:
            What the call cost, or None if that is not known yet: it stays covered.

        Raises:
            DishonestServer: it was not what was agreed.
        """
        raw = headers.get("payment-response")
        if raw is None and status < 300:
            self._close("no_payment_response", "the mesh answered without saying what it charged")
        if raw is None:
            if (status < 500 and status != 409) or code in CERTAINLY_FREE:
                self.outstanding.pop(key, None)
                return 0
            return None
        try:
            said = decode_header(raw)
            extra = said["extra"]
            charged = parse_amount(extra["chargedAmount"], "chargedAmount")
            state = extra.get("channelState", {})
            balance = parse_amount(state.get("balance", "0"), "balance")
            cumulative = parse_amount(state.get("chargedCumulativeAmount", "0"), "chargedCumulativeAmount")
        except (ChannelError, LookupError, TypeError, AttributeError):
            self._close("bad_payment_response", "the mesh's PAYMENT-RESPONSE cannot be read")
        if key not in self.answered and charged > self.outstanding[key]:
            self._close("charged_above_quote", "the mesh charged more than it quoted")
        if cumulative > self.ceiling:
            self._close("cumulative_jump", "the mesh says that more is charged in all than was signed for")
        if "leben-receipt" in headers:
            self._check(headers["leben-receipt"], charged)
        self.deposited = max(self.deposited, balance)
        # A deposit that was not needed after all is not settled: it stays pending and is sent again when it is needed.
        if deposit is not None and said.get("amount"):
            self.pending = None
        self.outstanding.pop(key, None)
        # A repeated key is charged once but its charge is told again: counted twice, it would be signed for twice.
        if key in self.answered:
            return 0
        if charged:
            self.answered[key] = None
        if len(self.answered) > ANSWERED_KEPT:
            self.answered.popitem(last=False)
        self.charged += charged
        return charged

    def correct(self, requirement: Json, signer: Signer) -> bool:
        """Takes over the state in a corrective 402, if it proves itself by this payer's own signature.

        Returns:
            True if there was one.

        Raises:
            DishonestServer: the state is not one that this payer has signed for.
        """
        extra = requirement["extra"]
        state, proof = extra.get("channelState"), extra.get("voucherState")
        if not isinstance(state, dict) or not isinstance(proof, dict):
            return False
        try:
            claimed = parse_amount(proof.get("signedMaxClaimable"), "signedMaxClaimable")
            charged = parse_amount(state.get("chargedCumulativeAmount"), "chargedCumulativeAmount")
        except MalformedPayment:
            self._close("forged_state", "the mesh shows a channel state that cannot be read")
        ours = signer.sign(voucher_digest(self.chain_id, self.id, claimed))
        if state.get("channelId") != self.id or proof.get("signature") != "0x" + ours.hex() or charged > claimed:
            self._close("forged_state", "the mesh shows a channel state that this wallet never signed for")
        self.charged = max(self.charged, charged - sum(self.outstanding.values()))
        return True

    def _check(self, raw: str, charged: int) -> None:
        try:
            signed = SignedReceipt.from_json(decode_header(raw))
        except ChannelError:
            self._close("bad_receipt", "the mesh's receipt cannot be read")
        receipt = signed.receipt
        self.mesh = self.mesh or signed.signer(self.chain_id)
        fits = receipt.channel_id == self.id and receipt.amount == charged and receipt.after <= self.ceiling
        if not fits or not signed.verify(self.chain_id, self.mesh):
            self._close("bad_receipt", "the mesh's receipt is not for this charge, or not signed by this mesh")

    def _close(self, code: str, message: str) -> NoReturn:
        self.closed = DishonestServer(code, f"{message}: nothing more is signed on this channel; ask for a refund")
        raise self.closed
