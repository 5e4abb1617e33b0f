"""Keeps the payer's sums of one channel, and accepts from a mesh only what it can check.

A charge above the quote, a cumulative amount that jumps, a receipt that does not fit, or a corrective 402 without this
payer's own signature closes the channel instead of being paid. Amounts are atomic units.
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
"""Codes of 5xx responses that guarantee that nothing was charged."""
MAX_CHARGED_KEYS = 4_096
"""Idempotency-Keys that a channel remembers as charged: each may be repeated without being counted again."""


class DishonestServer(ChannelError):
    """The mesh charged or showed what this payer never agreed to; nothing more is signed on this channel.

    A refund or a withdrawal returns what is left in it; the vouchers signed so far bound what the mesh can claim.
    """


@dataclass(frozen=True, slots=True)
class Turn:
    """The turn to fund a channel: one call holds it at a time, so that calls in flight share one deposit.

    A client with an event loop takes `task_lock`, a client on threads `thread_lock`.
    """

    task_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    thread_lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(slots=True)
class PayerChannel:
    """One channel in its payer's books, in atomic units.

    Attributes:
        mesh: the address that must sign receipts; the first receipt's signer if none was given.
        deposited: the largest balance that the mesh has shown, less refunds.
        charged: the cumulative charge.
        outstanding: the quote of every call whose charge is not known yet, by Idempotency-Key.
        charged_keys: the Idempotency-Keys of the latest calls whose charge is counted.
        pending: a deposit that is not confirmed. Until it is, the same authorization is sent again, never a second one.
        closed: why nothing more is signed here.
    """

    config: ChannelConfig
    id: str
    chain_id: int
    mesh: str = ""
    deposited: int = 0
    charged: int = 0
    outstanding: dict[str, int] = field(default_factory=dict, repr=False)
    charged_keys: OrderedDict[str, None] = field(default_factory=OrderedDict, repr=False)
    pending: Deposit | None = None
    closed: DishonestServer | None = None
    turn: Turn = field(default_factory=Turn, repr=False)

    @property
    def max_claimable(self) -> int:
        """The voucher amount that covers every call signed so far."""
        return self.charged + sum(self.outstanding.values())

    def needs_deposit(self, price: int) -> bool:
        """True if a call of this price needs a deposit first."""
        return self.max_claimable + price > self.deposited

    def max_claimable_with(self, key: str, price: int) -> int:
        """The voucher amount that covers every call signed so far and this one.

        Raises:
            DishonestServer: the channel is closed.
        """
        if self.closed is not None:
            raise DishonestServer(self.closed.code, self.closed.message)
        return self.max_claimable - self.outstanding.get(key, 0) + price

    def record_response(
        self, key: str, deposit: Deposit | None, *, status: int, code: str, headers: Mapping[str, str]
    ) -> int | None:
        """Checks a response and counts what it charged.

        Args:
            key: the call's Idempotency-Key.
            deposit: what was sent with the call.
            status: the HTTP status.
            code: the stable code of a refusal.
            headers: by lower-case name.

        Returns:
            What the call adds to the cumulative charge, or None while that is not known: the call stays covered.

        Raises:
            DishonestServer: the response contradicts the quote, the vouchers or the receipt.
        """
        header = headers.get("payment-response")
        if header is None and status < 300:
            self._close("no_payment_response", "the mesh answered without saying what it charged")
        if header is None:
            if (status < 500 and status != 409) or code in CERTAINLY_FREE:
                self.outstanding.pop(key, None)
                return 0
            return None
        try:
            settled = decode_header(header)
            extra = settled["extra"]
            charged = parse_amount(extra["chargedAmount"], "chargedAmount")
            state = extra.get("channelState", {})
            balance = parse_amount(state.get("balance", "0"), "balance")
            cumulative = parse_amount(state.get("chargedCumulativeAmount", "0"), "chargedCumulativeAmount")
        except (ChannelError, LookupError, TypeError, AttributeError):
            self._close("bad_payment_response", "the mesh's PAYMENT-RESPONSE cannot be read")
        if key not in self.charged_keys and charged > self.outstanding[key]:
            self._close("charged_above_quote", "the mesh charged more than it quoted")
        if cumulative > self.max_claimable:
            self._close("cumulative_jump", "the mesh says that more is charged in all than was signed for")
        if "leben-receipt" in headers:
            self._check_receipt(headers["leben-receipt"], charged)
        self.deposited = max(self.deposited, balance)
        # A mesh does not settle a deposit that the balance made needless: it stays pending, for the next shortage.
        if deposit is not None and settled.get("amount"):
            self.pending = None
        self.outstanding.pop(key, None)
        # A repeated key repeats its charge in the response: counted again, it would be signed for twice.
        if key in self.charged_keys:
            return 0
        if charged:
            self.charged_keys[key] = None
        if len(self.charged_keys) > MAX_CHARGED_KEYS:
            self.charged_keys.popitem(last=False)
        self.charged += charged
        return charged

    def correct(self, requirement: Json, signer: Signer) -> bool:
        """Takes over the state in a corrective 402, if this payer's own signature proves it.

        Returns:
            True if the 402 held a state.

        Raises:
            DishonestServer: this payer never signed for that state.
        """
        extra = requirement["extra"]
        state, proof = extra.get("channelState"), extra.get("voucherState")
        if not isinstance(state, dict) or not isinstance(proof, dict):
            return False
        try:
            max_claimable = parse_amount(proof.get("signedMaxClaimable"), "signedMaxClaimable")
            charged = parse_amount(state.get("chargedCumulativeAmount"), "chargedCumulativeAmount")
        except MalformedPayment:
            self._close("forged_state", "the mesh shows a channel state that cannot be read")
        # Signatures are deterministic (RFC 6979): signing again gives the bytes that this wallet sent before.
        signature = signer.sign(voucher_digest(self.chain_id, self.id, max_claimable))
        signed = state.get("channelId") == self.id and proof.get("signature") == "0x" + signature.hex()
        if not signed or charged > max_claimable:
            self._close("forged_state", "the mesh shows a channel state that this wallet never signed for")
        self.charged = max(self.charged, charged - sum(self.outstanding.values()))
        return True

    def _check_receipt(self, header: str, charged: int) -> None:
        try:
            signed = SignedReceipt.from_json(decode_header(header))
        except ChannelError:
            self._close("bad_receipt", "the mesh's receipt cannot be read")
        receipt = signed.receipt
        self.mesh = self.mesh or signed.signer(self.chain_id)
        fits = receipt.channel_id == self.id and receipt.amount == charged and receipt.after <= self.max_claimable
        if not fits or not signed.verify(self.chain_id, self.mesh):
            self._close("bad_receipt", "the mesh's receipt is not for this charge, or not signed by this mesh")

    def _close(self, code: str, message: str) -> NoReturn:
        self.closed = DishonestServer(code, f"{message}: nothing more is signed on this channel; ask for a refund")
        raise self.closed
